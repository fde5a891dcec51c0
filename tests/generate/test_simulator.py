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
from vdit.generate.simulator import Simulator
from vdit.models.cache import KVCache
from vdit.nn.embedding import rotate, rotations
from vdit.sampling.canvas import Canvas
from vdit.sampling.denoise import denoise
from vdit.sampling.kv import KVContinuation, KVMemory, can_keep_kv

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


def latents(world):
    """Those that are known: [t h w c]."""
    return np.asarray((world.canvas if world.memory is None else world.memory).latents[0])


def actions_of(world):
    """What was done in them: [t a]."""
    return np.asarray(world.canvas.cond["action"][0] if world.memory is None else world.memory.cond["action"][0])


def changed(world, place):
    """The world with other actions at a place."""
    action = world.memory.cond["action"].copy()
    action[:, place] += 5
    return dataclasses.replace(world, memory=dataclasses.replace(world.memory, cond={"action": action}))


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
    np.testing.assert_array_equal(actions_of(world)[-1], each.reshape(-1))
    if step > 1:
        fresh.reset()
        assert np.abs(fresh.step(each[::-1]) - ahead).max() > 1e-5


@pytest.mark.parametrize("simulator", [1, 2], ids=["each frame alone", "stride 2"], indirect=True)
def test_the_newest_is_known_and_the_oldest_forgotten(fresh):
    engine = fresh._engine
    window, width = engine.window, engine.model.network.backbone.action_width
    seen, done = [latents(fresh.world)[0]], [np.zeros(width)]
    for k in range(9):
        fresh.step((k, -k))
        held = latents(fresh.world)
        seen.append(held[-1])
        done.append(np.tile((k, -k), fresh._grouping.step))
        assert len(held) == min(k + 2, window.context)
        np.testing.assert_array_equal(held, np.stack(seen[-len(held) :]))
        np.testing.assert_array_equal(actions_of(fresh.world), np.stack(done[-len(held) :]))
    first = fresh.world
    frame = fresh.step(RIGHT)
    fresh.world = changed(first, 0)
    assert np.abs(fresh.step(RIGHT) - frame).max() > 1e-5, "what was done is seen as long as it is remembered"


def test_a_step_is_a_canvas_without_what_is_not_there(fresh):
    """Against the sampler, on a canvas of just the frames that there are."""
    engine, generator = fresh._engine, fresh._generator
    words, key = generator.tokens(["ab"]), jax.random.key(0)

    def run(canvas, noise):
        return jax.jit(
            lambda canvas, noise: denoise(
                engine.model.network, generator.params, canvas, words, words, key, engine.sampling, noise=noise
            )
        )(canvas, noise)

    play(fresh, [RIGHT])
    memory, new = fresh.world.memory, engine._fresh(fresh.world, 1, {"action": np.ones((1, 1, 4), np.float32)})[1]
    wide = engine.canvas(memory, new)
    there, count = memory.latents.shape[1], wide.latents.shape[1]
    assert there == 2
    assert count == engine.window.context + 1
    np.testing.assert_array_equal(wide.valid[0], np.arange(count) >= count - there - 1)
    noise = np.random.default_rng(5).normal(size=wide.latents.shape).astype(np.float32)
    level = np.float32([0, 0, 1])[None, :, None, None]
    action = np.concatenate([memory.cond["action"], np.ones((1, 1, 4), np.float32)], axis=1)
    latents_and_new = np.pad(memory.latents, ((0, 0), (0, 1), *[(0, 0)] * 3))
    exact = Canvas(latents=latents_and_new, level=level, cond={"action": action})
    np.testing.assert_allclose(run(wide, noise)[:, -1], run(exact, noise[:, -3:])[:, -1], atol=1e-5)
    full = play(fresh, [RIGHT, DOWN, RIGHT, RIGHT]) is not None and engine.canvas(fresh.world.memory, new)
    assert full.valid.all()
    assert full.start_position == engine.window.start == 1


def test_it_begins_with_what_is_given(generator, simulator):
    video, actions = frames(7), np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)
    seen = simulator.reset(start=video, actions=actions)
    np.testing.assert_array_equal(np.round((seen + 1) * 127.5), video)
    held = simulator.action_shape[0] * (simulator._engine.window.context - 1) + 1
    known = generator.vae.encode(video[None, -held:])
    np.testing.assert_allclose(latents(simulator.world)[None], known, atol=1e-5)
    done = actions_of(simulator.world)
    np.testing.assert_array_equal(done[1:].reshape(-1, 2), actions[-held + 1 :])
    assert not done[0].any()
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
        assert simulator._engine.window.context == 4
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
    whole = jax.jit(lambda: denoise(network, causal.params, canvas, words, words, key, method, noise=noise))()
    go_on = KVContinuation(network=network, method=method, capacity=4, cell=(4, 4, 4))

    @jax.jit
    def kept():
        memory = go_on.begin(causal.params, words, words, key, latents[:, :3], done[:, :3])
        return go_on.make(causal.params, memory, words, words, noise[:, 3:], done[:, 3:], key)

    np.testing.assert_allclose(kept(), whole[:, 3:], atol=1e-5)


def test_positions_that_are_counted_again_keep_their_distances(causal):
    """Keys are what they would be had they been counted so from the beginning."""
    go_on = KVContinuation(
        network=causal.experiment.network, method=causal.method(), capacity=3, limit=7, cell=(4, 4, 4)
    )
    dit, rng = causal.experiment.backbone, np.random.default_rng(0)
    raw = rng.normal(size=(2, 6, dit.heads, dit.head_dim)).astype(np.float32)
    place = np.stack([[2, 2, 3, 3, 4, 4], [0, 1] * 3, [3] * 6], axis=-1)[None]
    turned = lambda place: np.asarray(rotate(raw, *rotations(place, dit.head_dim)))  # noqa: E731
    for at, by in ((4, 0), (5, 2)):
        past = KVCache(
            keys=turned(place)[:, None], values=raw[:, None], time=place[..., 0], segment_ids=np.ones((1, 6), int)
        )
        memory = go_on._counted_again(KVMemory(past=past, text=None, at=np.int32(at)))
        assert int(memory.at) == at - by
        np.testing.assert_allclose(memory.past.keys[:, 0], turned(place - [by, 0, 0]), atol=1e-5)
        np.testing.assert_array_equal(memory.past.time, place[..., 0] - by)


def test_only_what_no_later_frame_changes_is_kept(causal, generator):
    assert not can_keep_kv(generator.experiment.network, generator.method())
    network, method = causal.experiment.network, causal.method()
    assert can_keep_kv(network, method)
    assert not can_keep_kv(network, causal.method(context_guidance=2.0))
    assert not can_keep_kv(network, causal.method(conditioning="replacement"))
    placed = dataclasses.replace(network, backbone=dataclasses.replace(network.backbone, position="both"))
    assert not can_keep_kv(placed, method)
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
