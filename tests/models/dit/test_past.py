"""Causal transformers: no frame reads a later one, and what was kept of finished frames stands for them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.dit.inputs import as_row, model_of, predict
from tests.models.dit.test_model import CLIPS, TEXTS, make_row
from vdit.errors import ConfigError
from vdit.models.dit.config import DiTConfig

OURS = DiTConfig(in_channels=3, width=24, depth=2, heads=2, position="both", action_width=2, causal=True)
CONFIGS = {
    "scanned": OURS,
    "unrolled": dataclasses.replace(OURS, scan=False),
    "wan": DiTConfig(in_channels=3, width=24, depth=2, heads=2, qk_norm="full", text_pool=False, causal=True),
}


def packed(config, seed=0):
    """Two rows of three clips each, in another order, with padding."""
    rng = np.random.default_rng(seed)
    rows = [make_row(rng, CLIPS[::step], TEXTS[::step], padding=3) for step in (1, -1)]
    row = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    if config.action_width:
        row["action"] = rng.normal(size=(*row["time"].shape, config.action_width)).astype(np.float32)
    return row


def part(row, wanted):
    """Some tokens of each row, equally many; slots stay numbered as they are."""
    tokens = {name: row[name] for name in ("values", "position", "segment_ids", "frame_index")}
    count = wanted[0].sum()
    cut = {name: x[wanted].reshape(x.shape[0], count, *x.shape[2:]) for name, x in tokens.items()}
    return row | cut


def make(config, row):
    """A model, and parameters of order one."""
    model, rng = model_of(config), np.random.default_rng(1)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *as_row(row))))
    draw = lambda x: np.float32(rng.normal(size=x.shape) * (0.3 if x.ndim < 2 else 1.5 / np.sqrt(x.shape[-2])))  # noqa: E731
    return model, jax.tree.map(draw, shapes)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    row = packed(CONFIGS[request.param])
    model, params = make(CONFIGS[request.param], row)

    @jax.jit
    def run(row, cache):
        out = model.apply(params, *as_row(row), cache=cache, return_cache=True)
        return out.prediction, out.cache

    return run, row


def finished(row, until):
    """The row with all frames before `until` finished, at level 0; and which tokens those are."""
    done = row["position"][..., 0] < until
    slots = np.unique(np.stack([np.nonzero(done)[0], row["frame_index"][done]]), axis=1)
    row = row | {"time": row["time"].copy()}
    row["time"][tuple(slots)] = 0
    return row, done


def test_two_calls_are_one(case):
    """Finished frames first, and the others with what was kept of them: as all at once, whoever shares the row."""
    run, row = case
    row, done = finished(row, 1)
    whole, _ = run(row, None)
    first, past = run(part(row, done), None)
    rest, _ = run(part(row, ~done), past)
    np.testing.assert_allclose(first, part(row | {"values": np.asarray(whole)}, done)["values"], atol=1e-5)
    np.testing.assert_allclose(rest, part(row | {"values": np.asarray(whole)}, ~done)["values"], atol=1e-5)
    alone, _ = run(part(row, ~done), None)
    assert np.abs(alone - rest).max() > 1e-2


def test_past_grows_frame_by_frame(case):
    run, row = case
    row, _ = finished(row, 2)
    time = row["position"][..., 0]
    whole, _ = run(row, None)
    _, past = run(part(row, time == 0), None)
    _, more = run(part(row, time == 1), past)
    last, _ = run(part(row, time == 2), past.append(more))
    np.testing.assert_allclose(last, part(row | {"values": np.asarray(whole)}, time == 2)["values"], atol=1e-5)


def test_later_frames_change_nothing_of_finished_ones(case):
    """Not a bit of their keys, values and outputs, whatever the later ones are, and what is done in them."""
    run, row = case
    row, done = finished(row, 1)
    other = row | {"values": np.where(done[..., None], row["values"], -3 * row["values"])}
    other["time"] = np.where(row["time"] == 0, 0, 1000 - row["time"])
    if "action" in row:
        other["action"] = np.where(row["time"][..., None] == 0, row["action"], -row["action"])
    (a, kept_a), (b, kept_b) = run(row, None), run(other, None)
    np.testing.assert_array_equal(np.asarray(a)[done], np.asarray(b)[done])
    assert np.abs(np.asarray(a)[~done] - np.asarray(b)[~done]).max() > 1e-2
    for x, y in ((kept_a.keys, kept_b.keys), (kept_a.values, kept_b.values)):
        np.testing.assert_array_equal(np.asarray(x)[:, done], np.asarray(y)[:, done])
        assert np.any(np.asarray(x)[1:, ~done] != np.asarray(y)[1:, ~done])
    _, alone = run(part(row, done), None)
    keys = np.asarray(kept_a.keys)[:, done].reshape(alone.keys.shape)
    np.testing.assert_allclose(alone.keys, keys, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_causality_by_gradients(causal):
    """The output of a frame has gradients of exactly 0 for what later frames are; without `causal` it has others."""
    config = dataclasses.replace(OURS, causal=causal)
    row = packed(config)
    model, params = make(config, row)
    frame = row["position"][..., 0]
    mine = (frame == 1) & (row["segment_ids"] > 0)

    def total(values, action):
        out = predict(model, params, row | {"values": values, "action": action})
        return jnp.sum(jnp.where(mine[..., None], out, 0) ** 2)

    values, action = jax.jit(jax.grad(total, (0, 1)))(row["values"], row["action"])
    reach = [np.abs(values)[(frame == t) & (row["segment_ids"] > 0)].max() for t in (0, 1, 2)]
    assert min(reach[:2]) > 1e-4
    assert (reach[2] > 1e-4) != causal
    later = np.unique(np.stack([np.nonzero(frame == 2)[0], row["frame_index"][frame == 2]]), axis=1)
    assert np.any(action[tuple(later)]) != causal


def test_a_past_needs_a_causal_model():
    config = dataclasses.replace(OURS, causal=False)
    row = packed(config)
    with pytest.raises(ConfigError, match=r"set backbone.causal=True"):
        jax.eval_shape(lambda: model_of(config).init(jax.random.key(0), *as_row(row), return_cache=True))


def test_half_of_a_clip_is_counted_and_all_of_a_past():
    """Keys read by the frames of a clip: of 4 frames of 10 tokens, 10, 20, 30 and 40."""
    both = dataclasses.replace(OURS, causal=False)
    assert OURS.flops(40, 40, frame_tokens=10) == both.flops(40, (10 + 20 + 30 + 40) / 4)
    # Frame by frame, with a past, it is the same.
    steps = sum(OURS.flops(10, 10, frame_tokens=10, past_tokens=10 * i) for i in range(4))
    assert steps == OURS.flops(40, 40, frame_tokens=10)
