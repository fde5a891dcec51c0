"""Models that were never trained on canvases: every task says so, and is sampled with steps repeated."""

import dataclasses
import warnings

import numpy as np
import pytest

import vdit
from tests import tiny
from vdit.errors import VditWarning
from vdit.experiment.canvases import CanvasConfig
from vdit.generate import generator as generating
from vdit.samplers import Euler, Heun, Resample
from vdit.sampling.config import sampling_config

VIDEO = np.random.default_rng(0).integers(0, 256, (9, *tiny.SIZE, 3)).astype(np.uint8)
MASK = np.zeros(tiny.SIZE, bool)
MASK[:8] = True
TASKS = {
    "animate": lambda g, **more: vdit.animate(g, "a", VIDEO[0], frames=9, **more),
    "extend": lambda g, **more: vdit.extend(g, "a", VIDEO, after=4, **more),
    "loop": lambda g, **more: vdit.loop(g, "a", VIDEO, passage=4, **more),
    "connect": lambda g, **more: vdit.connect(g, "a", VIDEO, VIDEO, frames=4, **more),
    "inpaint": lambda g, **more: vdit.inpaint(g, "a", VIDEO, MASK, **more),
    "edit a part": lambda g, **more: vdit.edit(g, "a", VIDEO, mask=MASK, **more),
    "edit in windows": lambda g, **more: vdit.edit(g, "a", np.tile(VIDEO, (3, 1, 1, 1)), **more),
    "rollout": lambda g, **more: list(vdit.rollout(g, "a", video=VIDEO, frames=12, **more)),
    "long rollout": lambda g, **more: list(vdit.rollout(g, "a", frames=21, **more)),
    "image": lambda g, **more: g("a", image=VIDEO[0], **more),
}
NOTHING_KNOWN = {
    "prompt": lambda g: g("a"),
    "short rollout": lambda g: list(vdit.rollout(g, "a", frames=5)),
    "edit": lambda g: vdit.edit(g, "a", VIDEO),
}


@pytest.fixture(scope="module")
def trained():
    return tiny.generator()


@pytest.fixture
def untrained(trained):
    experiment = dataclasses.replace(trained.experiment, canvases=CanvasConfig())
    return dataclasses.replace(trained, experiment=experiment)


@pytest.fixture
def methods(monkeypatch):
    """The methods that are sampled with; nothing is."""
    used = []

    def note(task, mesh, parameters, prompts, *rest):
        used.append(task.method)
        return np.zeros((prompts[0].ids.shape[0], *task.output_shape), np.float32)

    monkeypatch.setattr(generating, "sample", note)
    return used


@pytest.mark.parametrize("task", TASKS)
def test_each_task_says_that_the_model_knows_no_canvases_and_repeats_steps(untrained, methods, task):
    with pytest.warns(VditWarning, match="not trained on canvases"):
        TASKS[task](untrained)
    assert {type(method.sampler) for method in methods} == {Resample}
    assert {method.conditioning for method in methods} == {"replacement"}
    with pytest.warns(VditWarning):
        TASKS[task](untrained, sampler="heun")  # what is asked for is done
    assert type(methods[-1].sampler) is Heun


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_was_trained_on_canvases_is_told_what_is_known(trained, methods, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error", VditWarning)
        TASKS[task](trained)
    assert {(type(method.sampler), method.conditioning) for method in methods} == {(Euler, "clean")}


@pytest.mark.parametrize("task", NOTHING_KNOWN)
def test_where_nothing_is_known_nothing_is_said(untrained, methods, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error", VditWarning)
        NOTHING_KNOWN[task](untrained)
    assert {type(method.sampler) for method in methods} == {Euler}


@pytest.mark.parametrize(("sampler", "steps", "calls"), [("euler", 20, 20), ("heun", 20, 40), ("unipc", 2, 4)])
def test_repeated_steps_ask_the_network_about_as_often(untrained, sampler, steps, calls):
    sample = dataclasses.replace(untrained.experiment.sample, sampler=sampler, steps=steps)
    generator = dataclasses.replace(untrained, experiment=dataclasses.replace(untrained.experiment, sample=sample))
    with pytest.warns(VditWarning):
        method = generator.method(given=True)
    assert method.grid.steps * method.sampler.times == calls
    assert method.guidance == sampling_config(generator.experiment).guidance
