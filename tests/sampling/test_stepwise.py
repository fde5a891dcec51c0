"""Sampling step by step gives the numbers of the whole program, can be watched, and can be stopped."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from vdit.data.patches import token_grid
from vdit.generate.generator import noise_of
from vdit.generate.verbs import edit, extend
from vdit.sampling.config import Structure
from vdit.sampling.packed import RowSize, sample_packed


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(slides=True)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("sampler", "calls"), [("euler", 3), ("heun", 5), ("ddpm", 3)]
)
def test_the_numbers_are_those_of_the_whole_program(generator, sampler, calls):
    seen = []
    watched = dataclasses.replace(generator, watch=seen.append)
    asked = {"sampler": sampler, "steps": 3, "guidance": 2.0, "negative": "b", "seed": 7}
    made = watched(["a", "bc"], **asked)
    np.testing.assert_allclose(made, generator(["a", "bc"], **asked), atol=2e-5)
    assert [step.done for step in seen] == list(range(1, calls + 1))
    assert {step.calls for step in seen} == {calls}
    latents = generator(["a", "bc"], latents=True, **asked)
    assert seen[-1].estimate.shape == latents.shape
    if sampler == "euler":  # its last step goes onto what the network expects
        np.testing.assert_allclose(seen[-1].estimate, latents, atol=2e-5)


def test_a_remembering_network_goes_on_from_step_to_step(generator):
    asked = {"steps": 4, "reuse": 0.3, "seed": 1}
    watched = dataclasses.replace(generator, watch=lambda step: None)
    np.testing.assert_allclose(watched("a", **asked), generator("a", **asked), atol=2e-5)


def test_verbs_are_watched(generator):
    """Whatever is made by canvases, in latents and in pixels, tells its steps."""
    video = np.random.default_rng(0).uniform(-1, 1, (17, *tiny.SIZE, 3)).astype(np.float32)
    seen = []
    watched = dataclasses.replace(generator, watch=seen.append)
    for verb, asked in [
        (extend, {"after": 24}),
        (edit, {"strength": 0.7, "invert": True, "structure": Structure(factor=2.0)}),
    ]:
        seen.clear()
        np.testing.assert_allclose(
            verb(watched, "a", video, steps=2, **asked), verb(generator, "a", video, steps=2, **asked), atol=2e-4
        )
        assert len(seen) >= 2


def test_a_program_of_the_watcher_is_the_one_that_is_called_elsewhere(generator):
    """It is not traced again, as it would be with a mesh in context."""
    traced = []
    program = jax.jit(lambda x: traced.append(1) or x + 1)
    program(np.zeros(2))
    watched = dataclasses.replace(generator, watch=lambda step: program(np.zeros(2)))
    watched(["a"], frames=5, steps=2)
    tasks = [watched.task(watched.method(steps=2), 5, (8, 8)) for _ in range(2)]
    noise = [noise_of(watched, [k], frames=5, size=(8, 8))[0] for k in range(2)]
    rows = RowSize(tokens=48, frames=8, clips=3, text=generator.experiment.text.max_length)
    watched.run_packed(tasks, (watched.tokens(["a", "b"]), watched.tokens(["", ""])), noise, rows)
    assert len(traced) == 1


def test_what_the_watcher_raises_ends_the_work_between_two_steps(generator):
    seen = []

    def watch(step):
        seen.append(step.done)
        if step.done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        dataclasses.replace(generator, watch=watch)("a", steps=5)
    assert seen == [1, 2]


def test_clips_of_several_sizes_side_by_side_are_those_that_are_made_alone(generator):
    """One compiled step for every mix; heun, so that the sampler's state lies in rows too."""
    method = generator.method(steps=2, guidance=2.0, sampler="heun")
    shapes = [(9, (16, 16)), (5, (16, 24))]
    texts, negative = ["a", "bcd"], ["gh", ""]
    tasks = [generator.task(method, frames, size) for frames, size in shapes]
    noise = [noise_of(generator, [k], frames=f, size=s)[0] for k, (f, s) in enumerate(shapes)]
    size = RowSize(tokens=48, frames=8, clips=3, text=generator.experiment.text.max_length)
    assert len(size.rows([token_grid((1, *task.latent_shape), (1, 2, 2)) for task in tasks])) == 1
    seen = []
    made = sample_packed(
        tasks, generator.mesh, generator._parameters(tasks[0]),
        (generator.tokens(texts), generator.tokens(negative)), noise, size=size, watch=seen.append,
    )  # fmt: skip
    assert [step.done for step in seen] == [1, 2, 3]
    for k, (frames, shape) in enumerate(shapes):
        alone = generator(
            texts[k], frames=frames, size=shape, steps=2, guidance=2.0, sampler="heun", negative=negative[k],
            noise=noise[k][None],
        )  # fmt: skip
        np.testing.assert_allclose(made[k], alone[0], atol=5e-5)
        assert seen[-1].estimate[k].shape == tasks[k].latent_shape


def test_a_clip_too_large_for_a_row_is_not_packed():
    size = RowSize(tokens=10, frames=4, clips=2, text=4)
    assert size.rows([(2, 2, 2), (1, 1, 2), (1, 1, 1)]) == [[0, 1], [2]]
    assert size.rows([(3, 2, 2)]) is None
    assert size.rows([(5, 1, 1)]) is None
