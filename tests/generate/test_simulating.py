"""A simulator with tiny networks: one program for all steps, what is done reaches the frames that follow, what is not
there is not seen, what is forgotten matters no more."""

import dataclasses
import gc

import jax
import numpy as np
import pytest

import vdit
from tests import tiny
from vdit.errors import ConfigError, ShapeError
from vdit.generate.simulating import Simulator
from vdit.models.cache import KVCache
from vdit.nn.rope import rotate, rotations
from vdit.sampling.canvas import Canvas
from vdit.sampling.denoise import fill
from vdit.sampling.kv import Continuation, Memory, keeps

RIGHT, DOWN = (1.0, 0.0), (0.0, 1.0)


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(stride=2, window=9, actions=2, memory=True)


@pytest.fixture(scope="module")
def simulator(request):
    """Of 5 places: with stride 1 all of them in turn, with stride 2 one for the first frame and 4 for later ones."""
    stride = getattr(request, "param", 2)
    generator = request.getfixturevalue("generator") if stride == 2 else tiny.generator(stride=1, window=5, actions=2)
    return Simulator(generator, "ab", start=frames(1)[0], seed=3)


@pytest.fixture
def fresh(simulator):
    simulator.reset(start=frames(1)[0], prompt="ab", seed=3)
    return simulator


def frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *tiny.SIZE, 3)).astype(np.uint8)


def play(simulator, actions):
    return np.concatenate(list(simulator.run(actions)))


def latents(simulator, world):
    """Those that are there: [t h w c]."""
    step, at = simulator._step, int(world.known.at)
    return np.asarray(world.known.latents[0, step.first if at == step.places - 1 else 0 : at])


def changed(world, place, *names):
    """The world with other values at a place."""
    changes = {name: getattr(world.known, name).at[:, place].add(5) for name in names}
    return dataclasses.replace(world, known=dataclasses.replace(world.known, **changes))


def test_step_by_step_it_is_the_same_as_again_from_any_world(fresh):
    assert fresh.action_shape == (fresh.frames.shape[0] * fresh._grouping.step, 2)
    actions = [RIGHT, DOWN, RIGHT, RIGHT, DOWN, DOWN, RIGHT]
    one = [fresh.step(action) for action in actions[:4]]
    world = fresh.world
    one += [fresh.step(action) for action in actions[4:]]
    assert one[0].shape == (fresh.action_shape[0], *tiny.SIZE, 3)
    assert one[0].dtype == np.float32
    np.testing.assert_array_equal(fresh.frames, one[-1])
    fresh.world = world
    np.testing.assert_array_equal(play(fresh, actions[4:]), np.concatenate(one[4:]))
    fresh.reset()
    np.testing.assert_array_equal(play(fresh, actions), np.concatenate(one))
    fresh.reset(seed=4)
    assert np.abs(play(fresh, actions[:1]) - one[0]).max() > 1e-3
    fresh.reset(prompt="b", seed=3)
    assert np.abs(play(fresh, actions[:1]) - one[0]).max() > 1e-4


def test_every_step_is_one_program(fresh):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    fresh.step(RIGHT)
    compiled.clear()
    gc.collect()
    arrays = len(jax.live_arrays())
    for _ in range(8):
        fresh.step(DOWN)
        assert len(jax.live_arrays()) <= arrays
    assert not [name for name in compiled if "compile" in name]


def test_what_is_done_shows_from_then_on_and_not_before(fresh):
    first = play(fresh, [RIGHT] * 6)
    fresh.reset()
    other = play(fresh, [RIGHT] * 3 + [DOWN] + [RIGHT] * 2)
    step = fresh.action_shape[0]
    np.testing.assert_array_equal(first[: 3 * step], other[: 3 * step])
    for k in range(3, 6):
        assert np.abs(first[k * step : (k + 1) * step] - other[k * step : (k + 1) * step]).max() > 1e-5
    fresh.reset()
    each = np.arange(step * 2, dtype=np.float32).reshape(step, 2)
    ahead, world = fresh.step(each), fresh.world
    np.testing.assert_array_equal(world.known.action[0, 1], each.reshape(-1))
    if step > 1:
        fresh.reset()
        assert np.abs(fresh.step(each[::-1]) - ahead).max() > 1e-5


@pytest.mark.parametrize("simulator", [1, 2], ids=["each frame alone", "stride 2"], indirect=True)
def test_the_newest_is_known_and_the_oldest_forgotten(fresh):
    step = fresh._step
    seen, done = [latents(fresh, fresh.world)[0]], [np.zeros(step.network.backbone.action_width)]
    for k in range(9):
        fresh.step((k, -k))
        seen.append(latents(fresh, fresh.world)[-1])
        done.append(np.tile((k, -k), fresh._grouping.step))
        at = int(fresh.world.known.at)
        assert at == min(k + 2, step.places - 1)
        held = latents(fresh, fresh.world)
        assert len(held) == min(k + 2, step.context)
        np.testing.assert_array_equal(held, np.stack(seen[-len(held) :]))
        np.testing.assert_array_equal(fresh.world.known.action[0, at - len(held) : at], np.stack(done[-len(held) :]))
    first = fresh.world
    frame = fresh.step(RIGHT)
    if step.first:  # the place of the video's beginning, long ago
        fresh.world = changed(first, 0, "action", "latents")
        np.testing.assert_array_equal(fresh.step(RIGHT), frame)
    fresh.world = changed(first, step.first, "action")
    assert np.abs(fresh.step(RIGHT) - frame).max() > 1e-5, "what was done is seen as long as it is remembered"


def test_a_step_is_a_canvas_without_what_is_not_there(fresh):
    """Against the sampler, on a canvas of just the frames that there are."""
    step, generator = fresh._step, fresh._generator
    noise = np.random.default_rng(5).normal(size=fresh.world.known.latents.shape).astype(np.float32)
    words, key = generator.tokens(["ab"]), jax.random.key(0)
    run = jax.jit(
        lambda canvas, noise: fill(step.network, generator.params, canvas, words, words, key, step.method, noise=noise)
    )
    play(fresh, [RIGHT, DOWN, RIGHT, RIGHT][: 4 if step.first else 1])
    known, at = fresh.world.known, int(fresh.world.known.at)
    old = step.first if at == step.places - 1 else 0
    there = slice(old, at + 1)
    level = np.zeros((1, at + 1 - old, 1, 1), np.float32)
    level[:, -1] = 1
    exact = Canvas(latents=known.latents[:, there], level=level, cond={"action": known.action[:, there]}, first=old)
    wide = step.canvas(known, known.action)
    assert not wide.there.all()
    np.testing.assert_allclose(run(wide, noise)[:, at], run(exact, noise[:, there])[:, -1], atol=1e-5)


def test_it_begins_with_what_is_given(generator, simulator):
    video, actions = frames(7), np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)
    seen = simulator.reset(start=video, actions=actions)
    np.testing.assert_array_equal(np.round((seen + 1) * 127.5), video)
    held = simulator.action_shape[0] * (simulator._step.context - 1) + 1
    np.testing.assert_allclose(
        latents(simulator, simulator.world)[None], generator.vae.encode(video[None, -held:]), atol=1e-5
    )
    at = int(simulator.world.known.at)
    np.testing.assert_array_equal(simulator.world.known.action[0, 1:at].reshape(-1, 2), actions[-held + 1 :])
    assert not simulator.world.known.action[0, 0].any()
    first = simulator.step(RIGHT)
    simulator.reset(start=video)
    assert np.abs(simulator.step(RIGHT) - first).max() > 1e-5, "what was done before counts"


@pytest.fixture(scope="module")
def causal():
    generator = tiny.generator(stride=1, window=5, actions=2, causal=True)
    dit = dataclasses.replace(generator.experiment.backbone, depth=2)  # one layer alone passes nothing on
    experiment = dataclasses.replace(generator.experiment, backbone=dit)
    params = generator.params | {"dit": tiny.random_params(experiment.network.init)["dit"]}
    return dataclasses.replace(generator, experiment=experiment, params=params)


def test_what_a_causal_model_keeps_gives_the_same_frames_until_some_is_forgotten(causal):
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(8, 2))
    played = []
    for keep in (False, True):
        options = {"guidance": 3.0, "negative": "c", "keep": keep}
        simulator = Simulator(causal, "ab", start=frames(2), actions=np.ones((2, 2)), seed=1, **options)
        assert simulator._context == 4
        played.append(np.stack([simulator.step(action) for action in actions]))
    canvas, kept = played
    np.testing.assert_allclose(kept[:3], canvas[:3], atol=1e-5)  # 2 frames and 2 more are known to the third
    assert np.abs(kept[3:] - canvas[3:]).max() > 1e-5, "what was forgotten is remembered by the others"
    actions[0] += 1
    simulator.reset()
    other = np.stack([simulator.step(action) for action in actions])
    assert np.abs(other - kept).reshape(8, -1).max(1).min() > 1e-6


def test_several_frames_beside_what_is_kept_are_those_of_the_canvas(causal):
    network, method, rng = causal.experiment.network, causal.method(steps=1), np.random.default_rng(0)
    words, key = causal.tokens(["ab"]), jax.random.key(0)
    latents, noise = rng.normal(size=(2, 1, 5, 4, 4, 4)).astype(np.float32)
    done = rng.normal(size=(1, 5, 2)).astype(np.float32)
    level = np.float32([0, 0, 0, 1, 1])[None, :, None, None]
    canvas = Canvas(latents=latents, level=level, cond={"action": done})
    whole = jax.jit(lambda: fill(network, causal.params, canvas, words, words, key, method, noise=noise))()
    go_on = Continuation(network=network, method=method, capacity=4)

    @jax.jit
    def kept():
        memory = go_on.empty(causal.params, words, words, (4, 4, 4))
        memory = go_on.remember(causal.params, memory, words, words, latents[:, :3], done[:, :3], key)
        return go_on.make(causal.params, memory, words, words, noise[:, 3:], done[:, 3:], key)

    np.testing.assert_allclose(kept(), whole[:, 3:], atol=1e-5)


def test_positions_that_are_counted_anew_keep_their_distances(causal):
    """Keys are what they would be had they been counted so from the beginning."""
    go_on = Continuation(network=causal.experiment.network, method=causal.method(), capacity=3, limit=7)
    dit, rng = causal.experiment.backbone, np.random.default_rng(0)
    raw = rng.normal(size=(2, 6, dit.heads, dit.head_dim)).astype(np.float32)
    place = np.stack([[2, 2, 3, 3, 4, 4], [0, 1] * 3, [3] * 6], axis=-1)[None]
    turned = lambda place: np.asarray(rotate(raw, *rotations(place, dit.head_dim)))  # noqa: E731
    for at, by in ((4, 0), (5, 2)):
        past = KVCache(
            keys=turned(place)[:, None], values=raw[:, None], time=place[..., 0], segment_ids=np.ones((1, 6), int)
        )
        memory = go_on._counted_anew(Memory(past=past, text=None, at=np.int32(at)))
        assert int(memory.at) == at - by
        np.testing.assert_allclose(memory.past.keys[:, 0], turned(place - [by, 0, 0]), atol=1e-5)
        np.testing.assert_array_equal(memory.past.time, place[..., 0] - by)


def test_only_what_no_later_frame_changes_is_kept(causal, generator):
    assert not keeps(generator.experiment.network, generator.method())
    network, method = causal.experiment.network, causal.method()
    assert keeps(network, method)
    assert not keeps(network, causal.method(context_guidance=2.0))
    assert not keeps(network, causal.method(known="noised"))
    placed = dataclasses.replace(network, backbone=dataclasses.replace(network.backbone, position="both"))
    assert not keeps(placed, method)
    with pytest.raises(ConfigError, match="keep=True: only of a causal model"):
        vdit.Simulator(generator, "a", keep=True)


def test_it_may_begin_by_itself_as_the_generator_would():
    generator = tiny.generator(stride=2, window=9, actions=2)
    simulator = Simulator(generator, "ab", seed=3, steps=1)
    np.testing.assert_allclose(
        simulator.frames, np.asarray(generator("ab", frames=1, seed=3, steps=1))[0], atol=1e-6
    )  # fmt: skip


def test_errors_name_value_rule_and_mend(generator, fresh):
    plain = tiny.generator(stride=1)
    with pytest.raises(ConfigError, match=r"not told what is done \(data.actions=0\)"):
        vdit.Simulator(plain, "a")
    for wrong, message in [
        ((1.0,), r"action of shape \(1,\): this model is told 2 numbers, give \[2\]"),
        (np.zeros((3, 2)), r"action of shape \(3, 2\)"),
        ((1.0, float("inf")), "give finite numbers"),
    ]:
        with pytest.raises(ShapeError, match=message):
            fresh.step(wrong)
    with pytest.raises(ShapeError, match=r"actions of shape \(2, 2\): start has 3 frames, give \[3 2\]"):
        fresh.reset(start=frames(3), actions=np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="give both"):
        fresh.reset(actions=np.zeros((1, 2)))
    with pytest.raises(ShapeError, match=r"context=40: .* in a window of"):
        vdit.Simulator(generator, "a", context=40)
    with pytest.raises(ShapeError, match="height=20 must be a multiple of 8"):
        vdit.Simulator(generator, "a", start=np.zeros((1, 20, 16, 3), np.uint8))
