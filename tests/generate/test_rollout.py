"""Rollouts with tiny networks: the first window is the generator's, windows go on from each other bit for bit, the
decoder's stream has no seam, nothing is compiled or kept that grows with the length."""

import gc
import itertools

import jax
import numpy as np
import pytest

import vdit
from tests import tiny
from vdit.errors import ConfigError, ShapeError
from vdit.generate import generator as generating

SHAPES = [{"stride": 1}, {"stride": 2}, {"stride": 4}, {"stride": 2, "patch_frames": 2, "window": 15}]


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(stride=2, window=9, memory=True)


@pytest.fixture
def drawn(monkeypatch):
    """What was asked for in each window: (task, prompt's tokens, canvas, made)."""
    calls, draw = [], generating.sample

    def spy(task, mesh, parameters, prompts, key, noise, given):
        made = draw(task, mesh, parameters, prompts, key, noise, given)
        calls.append((task, np.asarray(prompts[0].ids), given.canvas, np.asarray(made)))
        return made

    monkeypatch.setattr(generating, "sample", spy)
    return calls


@pytest.fixture
def noise(monkeypatch):
    """In the place of networks: noise wherever nothing is known. The canvases, and `noise.tasks`."""
    canvases = Asked()

    def draw(task, mesh, parameters, prompts, key, noise, given):
        canvas = given.canvas
        canvases.append(canvas)
        canvases.tasks.append(task)
        drawn = np.random.default_rng(len(canvases)).normal(size=canvas.latents.shape)
        return np.where(canvas.level[..., None] == 0, canvas.latents, drawn).astype(np.float32)

    monkeypatch.setattr(generating, "sample", draw)
    return canvases


class Asked(list):
    def __init__(self):
        super().__init__()
        self.tasks = []


def whole(pieces):
    return np.concatenate(list(pieces))


def frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *tiny.SIZE, 3)).astype(np.uint8)


def test_one_window_is_the_generators_video(generator):
    for seed in (0, 3):
        one = whole(vdit.rollout(generator, "ab", frames=9, seed=seed))
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, np.asarray(generator("ab", frames=9, seed=seed))[0], atol=1e-6)


def test_windows_go_on_from_each_other_and_decode_as_one_stream(generator, drawn):
    pieces = list(vdit.rollout(generator, "ab", frames=30, seed=1))
    latents = drawn[0][3]
    assert latents.shape[1] == 5
    assert not drawn[0][2].latents.any()
    for (_, _, canvas, made), (_, _, _, before) in zip(drawn[1:], drawn):
        known = int((canvas.level[0, :, 0, 0] == 0).sum())
        assert int(canvas.start_position[0]) == 1
        assert 1 <= known < canvas.latents.shape[1]
        np.testing.assert_array_equal(canvas.latents[:, :known], before[:, -known:])
        np.testing.assert_array_equal(made[:, :known], before[:, -known:])
        latents = np.concatenate([latents, made[:, known:]], axis=1)
    assert len(drawn) == len(pieces) > 3
    new = [made[:, -1] for _, _, _, made in drawn]
    assert all(np.abs(a - b).max() > 1e-2 for a, b in itertools.pairwise(new)), "each window has noise of its own"
    decoded = np.asarray(generator.vae.decode(latents))[0]
    np.testing.assert_allclose(np.concatenate(pieces), decoded[:30], atol=1e-5)


def test_neither_programs_nor_arrays_grow_with_the_length(generator):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    pieces = vdit.rollout(generator, [(0.0, "a"), (4.0, "b")], frames=80, seed=2)
    for _ in range(3):
        next(pieces)
    compiled.clear()
    gc.collect()
    arrays = len(jax.live_arrays())
    counts = [len(jax.live_arrays()) for _ in pieces]
    assert len(counts) > 5
    assert max(counts) <= arrays
    assert not [name for name in compiled if "compile" in name]


def test_a_window_is_made_by_the_prompt_of_its_first_new_frame(generator, drawn):
    script = [(0.0, "a"), (1.5, "bc"), (3.0, "d")]
    lengths = [len(piece) for piece in vdit.rollout(generator, script, frames=40, fps=10)]
    starts = np.cumsum([0, *lengths])[:-1]
    expected = ["a" if start < 15 else "bc" if start < 30 else "d" for start in starts]
    assert set(expected) == {"a", "bc", "d"}
    for (_, ids, _, _), prompt in zip(drawn, expected):
        np.testing.assert_array_equal(ids, generator.tokens([prompt]).ids)
    drawn.clear()
    list(vdit.rollout(generator, script, frames=30, fps=10, video=frames(20)))
    np.testing.assert_array_equal(drawn[0][1], generator.tokens(["bc"]).ids)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_length_after_any_beginning(shape, noise):
    generator = tiny.generator(**shape)
    for has in (0, 1, 7, 40):
        for length in (12, 41, 63):
            begins = {"video": frames(has)} if has else {}
            if length <= has:
                with pytest.raises(ShapeError, match=f"{has} are given, give a length of more"):
                    vdit.rollout(generator, "a", frames=length, **begins)
                continue
            noise.clear()
            pieces = list(vdit.rollout(generator, "a", frames=length, **begins))
            made = np.concatenate(pieces)
            assert made.shape == (length, *tiny.SIZE, 3)
            np.testing.assert_array_equal(np.round((made[:has] + 1) * 127.5), frames(has))
            window = generator.experiment.data.frames[1]
            most = 1 + (window - 1) // generator.experiment.vae.temporal_stride
            assert all(canvas.latents.shape[1] <= most for canvas in noise)
            assert all(0 in canvas.level for canvas in noise[0 if has else 1 :])
            starts = {int(canvas.start_position[0]) for canvas in noise[1:]}
            assert starts <= {0 if shape["stride"] == 1 else 1}


def test_a_given_beginning_is_known_to_the_first_window(generator, noise):
    video = frames(30)
    list(vdit.rollout(generator, "a", frames=50, video=video, context=4))
    known = generator.vae.encode(video[None, -3:])  # as many latents as a later window knows: 2
    canvas = noise[0]
    np.testing.assert_allclose(canvas.latents[:, : known.shape[1]], known, atol=1e-5)
    np.testing.assert_array_equal(canvas.level[0, :, 0, 0] == 0, np.arange(canvas.latents.shape[1]) < known.shape[1])
    image = np.random.default_rng(1).integers(0, 256, (20, 32, 3)).astype(np.uint8)
    made = whole(vdit.rollout(generator, "a", frames=20, image=image, size=(16, 24)))
    assert made.shape == (20, 16, 24, 3)


def test_an_anchor_is_known_to_every_window(generator, noise):
    made = whole(vdit.rollout(generator, "a", frames=40, anchor=True))
    assert len(made) == 40
    assert len(noise) > 5
    first = noise[1].latents[:, :1]
    assert np.abs(first).max() > 0.1
    for canvas in noise[1:]:
        np.testing.assert_array_equal(canvas.latents[:, :1], first)
        assert int(canvas.start_position[0]) == 0
        assert canvas.latents.shape[1] == 5
    with pytest.raises(ConfigError, match="leave one of them out"):
        vdit.rollout(generator, "a", frames=40, anchor=True, keep=True)


def test_sampling_is_as_asked_for(generator, noise):
    list(vdit.rollout(generator, "a", frames=12, known_level=0.2, steps=1, negative="b"))
    assert {(task.method.known_level, task.method.grid.steps) for task in noise.tasks} == {(0.2, 1)}


def test_a_causal_model_goes_on_from_what_it_keeps():
    generator = tiny.generator(stride=2, window=9, causal=True)
    plain = vdit.rollout(generator, "a", frames=9)
    pieces = list(vdit.rollout(generator, [(0.0, "a"), (2.5, "b")], frames=40))
    np.testing.assert_array_equal(pieces[0], next(plain))
    assert [len(piece) for piece in pieces] == [9, 4, 4, 4, 4, 4, 4, 4, 3]
    other = list(vdit.rollout(generator, "a", frames=40))
    starts = np.cumsum([0, *map(len, pieces)])[:-1] / 8
    changed = [np.abs(piece - before).max() > 1e-5 for piece, before in zip(pieces, other)]
    np.testing.assert_array_equal(changed, starts >= 2.5)
    assert len({piece.tobytes() for piece in pieces}) == len(pieces)
    with pytest.raises(ConfigError, match="keep=True: only of a causal model"):
        vdit.rollout(generator, "a", frames=40, keep=True, context_guidance=2.0)


def test_errors_come_at_once_and_name_value_rule_and_mend(generator):
    make = lambda **options: vdit.rollout(generator, options.pop("prompts", "a"), **options)  # noqa: E731
    for wrong, error, message in [
        ({}, ConfigError, "frames=None, seconds=None: give one of them"),
        ({"frames": 3, "seconds": 2}, ConfigError, "give one of them"),
        ({"seconds": 0.0}, ShapeError, "a video of 0 frames: give 1 or more"),
        ({"frames": 30, "window": 1}, ShapeError, "window=1: .* or more"),
        ({"frames": 30, "context": 9}, ShapeError, "context=9: .* window of 9 give"),
        ({"frames": 3, "size": (15, 16)}, ShapeError, "height=15 must be a multiple of 8"),
        ({"frames": 9, "video": frames(4), "image": frames(1)[0]}, ConfigError, "image and video: give one"),
        ({"frames": 9, "video": frames(4), "size": (16, 16)}, ConfigError, "leave it out"),
        ({"frames": 9, "image": frames(2)}, ShapeError, "2 images: give one"),
        ({"frames": 9, "prompts": ["a", "b"]}, ConfigError, "give a text, or pairs"),
    ]:
        with pytest.raises(error, match=message):
            make(**wrong)
