"""Blocks passed over between sampling steps: none at threshold 0, more and with more error above, never at the ends."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sampling.test_generate import NETWORK, SHAPE, method, prompts
from vdit import samplers
from vdit.diffusion import Guidance
from vdit.errors import ConfigError
from vdit.models.cache import BlockCall, Residuals, run_blocks
from vdit.models.dit import DiT
from vdit.models.network import LOW
from vdit.samplers import StatefulDenoiser
from vdit.samplers.grid import Grid
from vdit.sampling.canvas import Canvas, blank, canvas_tokens, dense_rows
from vdit.sampling.config import BlockCache, remembering
from vdit.sampling.denoise import denoise

DEEP = dataclasses.replace(NETWORK, backbone=dataclasses.replace(NETWORK.backbone, depth=3))


@dataclasses.dataclass(frozen=True)
class Watched:
    """A sampler that notes the change after each call: 0 where all blocks ran."""

    inner: samplers.Sampler
    changes: list

    def sample(self, denoise, x, **options):
        def ask(*inputs):
            output, memory = denoise.ask(*inputs)
            jax.debug.callback(lambda change: self.changes.append(float(change)), memory[0].change, ordered=True)
            return output, memory

        return self.inner.sample(StatefulDenoiser(ask=ask, memory=denoise.memory), x, **options)


@pytest.fixture(scope="module")
def params():
    """Of a network that is smooth in the noise level, as trained ones are: much smaller changes than values."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(DEEP.init, jax.random.key(0)))
    draw = lambda x: np.float32(rng.normal(size=x.shape) * (0.1 if x.ndim < 2 else 0.8 / np.sqrt(x.shape[-2])))  # noqa: E731
    params = jax.tree.map(draw, shapes)
    params["dit"]["time_in"]["kernel"] *= 0.05
    return params


def program(how, network=DEEP):
    """A compiled function of (params, canvas); whatever watches has heard of all calls when it is done."""
    compiled = jax.jit(lambda *inputs: denoise(network, *inputs, how))

    def run(params, canvas):
        out = np.asarray(compiled(params, canvas, prompts(3), prompts(1), jax.random.key(0)))
        jax.effects_barrier()
        return out

    return run


def run(params, how, network=DEEP):
    return program(how, network)(params, blank(1, SHAPE))


def test_threshold_0_gives_the_same_bits(params):
    plain = method(grid=Grid(steps=8))
    np.testing.assert_array_equal(
        run(params, dataclasses.replace(plain, reuse=BlockCache(threshold=0.0))), run(params, plain)
    )


def test_unrolled_layers_pass_over_as_scanned_ones(params):
    """The DiT alone, with parameters stacked and not: all blocks run, and then the first one."""
    cfg = DEEP.backbone
    dit = params["dit"]
    flat = {name: tree for name, tree in dit.items() if name != "blocks"}
    flat |= {f"block_{i}": jax.tree.map(lambda y: y[i], dit["blocks"]) for i in range(cfg.depth)}  # noqa: B023
    row = dense_rows(canvas_tokens(blank(1, SHAPE), cfg.patch), prompts(3))
    values = jax.random.normal(jax.random.key(0), row.values.shape)
    text = jax.random.normal(jax.random.key(1), (*row.text.shape, DEEP.text.width))
    weight, time = jnp.ones(row.segment_ids.shape), jnp.full(row.frame_segment_ids.shape, 500.0)
    found = []
    for params, config in ((dit, cfg), (flat, dataclasses.replace(cfg, scan=False))):

        @jax.jit
        def call(params, values, kept, limit, config=config):
            reuse = BlockCall(residuals=kept, limit=limit, weight=weight)
            here = dataclasses.replace(row, values=values)
            out = DiT(config).apply({"params": params}, here, time, text, block_cache=reuse)
            return out.prediction, out.residuals

        out, kept = call(params, values, cfg.empty_residuals(*row.segment_ids.shape), jnp.float32(0.1))
        assert kept.change == 0
        again, kept = call(params, 1.01 * values, kept, jnp.float32(0.1))
        assert 0 < kept.change < 0.1
        found.append((out, again))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), *found)


def test_error_and_blocks_passed_over_grow_with_the_threshold(params):
    how = method(grid=Grid(steps=16))
    want = run(params, how)
    errors, counts = [], []
    for threshold in (0.03, 0.08, 1e9):
        changes = []
        watched = dataclasses.replace(how, sampler=Watched(how.sampler, changes), reuse=BlockCache(threshold=threshold))
        errors.append(np.abs(run(params, watched) - want).mean() / np.abs(want).mean())
        counts.append(changes.count(0.0))
        assert len(changes) == 16
        assert changes[0] == changes[-1] == 0
    assert 16 > counts[0] > counts[1] > counts[2] == 2
    assert 0 < errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.02


def test_every_call_of_a_sampler_of_two_a_step_may_run_blocks(params):
    changes = []
    how = method(sampler=Watched(samplers.make("heun"), changes), grid=Grid(steps=6), guidance=Guidance())
    run(params, dataclasses.replace(how, reuse=BlockCache(threshold=1e9, first=2, last=3)))
    assert [change == 0 for change in changes] == [True] * 2 + [False] * 6 + [True] * 3


def test_what_is_known_stays_and_does_not_count(params):
    """Known tokens change little: were they to count, of nine frames of which eight are known much would be missed."""
    latents = 10 * np.random.default_rng(0).normal(size=(1, 9, *SHAPE[1:])).astype(np.float32)
    how = method(sampler=Watched(samplers.make("euler"), []), grid=Grid(steps=4), reuse=BlockCache(threshold=1e9))
    found, sample = [], program(how)
    for known in (0, 8):
        how.sampler.changes.clear()
        level = np.where(np.arange(9) < known, 0, 1).astype(np.float32).reshape(1, 9, 1, 1)
        out = sample(params, Canvas(latents=jnp.asarray(latents), level=jnp.asarray(level)))
        np.testing.assert_array_equal(out[:, :known], latents[:, :known])
        found.append(max(how.sampler.changes))
    assert 0.5 < found[1] / found[0] < 2


def test_two_transformers_keep_their_residuals_apart(params):
    """The first call of the second one runs all of its blocks."""
    how = method(sampler=Watched(samplers.make("euler"), []), grid=Grid(steps=8), reuse=BlockCache(threshold=1e9))
    both = params | {LOW: jax.tree.map(lambda x: 0.5 * x, params["dit"])}
    run(both, how, dataclasses.replace(DEEP, boundary=500.0))
    # Levels 1, 0.875 ... 0.5, and then those below.
    assert [i for i, change in enumerate(how.sampler.changes) if change == 0] == [0, 5, 7]


def toy(x, reuse, scan, ran=None):
    """Blocks of which block i adds (i + 1) x, the first one x; what runs is noted."""

    def block(i, x):
        if ran is not None:
            jax.debug.callback(lambda i: ran.append(int(i)), i, ordered=True)
        return x + (i + 1) * x

    return run_blocks(block, 4, x, reuse, scan=scan)


@pytest.mark.parametrize("scan", [True, False])
def test_what_is_passed_over_is_not_computed(scan):
    x, ran = jnp.ones((1, 3, 2)), []
    kept = Residuals(first=0 * x, rest=0 * x, change=jnp.float32(np.inf))
    weight = jnp.ones((1, 3))
    call = jax.jit(lambda x, kept, limit: toy(x, BlockCall(residuals=kept, limit=limit, weight=weight), scan, ran))
    y, kept = call(x, kept, 0.3)
    jax.effects_barrier()
    np.testing.assert_array_equal(y, 2 * 3 * 4 * 5 * x)
    assert ran == [0, 1, 2, 3]
    assert kept.change == 0
    y, kept = call(1.2 * x, kept, 0.3)
    jax.effects_barrier()
    assert ran[4:] == [0]
    np.testing.assert_allclose(y, 2 * 1.2 * x + (120 - 2) * x, rtol=1e-6)  # the first block's own, and what was kept
    np.testing.assert_allclose(kept.change, 0.2, rtol=1e-5)
    y, kept = call(1.0 * x, kept, 0.3)  # the way back adds to the change
    jax.effects_barrier()
    assert ran[5:] == [0, 1, 2, 3]
    assert kept.change == 0


def test_tokens_of_weight_0_have_no_part_in_the_change():
    x = jnp.ones((1, 3, 2))
    kept = Residuals(first=x, rest=x, change=jnp.float32(0))
    moved = x.at[:, 2].set(5.0)
    change_of = jax.jit(
        lambda x, weight: toy(x, BlockCall(residuals=kept, limit=jnp.float32(100), weight=weight), scan=False)[1].change
    )
    for weight, change in (((1.0, 1.0, 0.0), 0.0), ((0.0, 0.0, 1.0), 4.0), ((1.0, 1.0, 1.0), 4 / 3)):
        np.testing.assert_allclose(change_of(moved, jnp.asarray([weight])), change, rtol=1e-6)


def test_another_transformer_begins_anew():
    """What the other one added is told to be infinitely far away."""
    told = []

    def ask(x, t, call):
        told.append((float(call.residuals.change), float(call.limit)))
        return x, dataclasses.replace(call.residuals, change=jnp.float32(0.01))

    other = lambda *inputs: ask(*inputs)  # noqa: E731
    kept = Residuals(first=jnp.ones(1), rest=jnp.ones(1), change=jnp.float32(np.inf))
    with jax.disable_jit():
        denoise = remembering(
            BlockCache(threshold=0.1), ask, other, lambda t: jnp.asarray(t >= 0.5), kept=kept, weight=jnp.ones(1)
        )
        memory = denoise.memory
        for i, t in enumerate((1.0, 0.75, 0.25, 0.0)):
            _, memory = denoise.ask(jnp.ones(1), t, memory, jnp.int32(i), jnp.int32(3 - i))
    np.testing.assert_allclose(told, [(np.inf, 0), (0.01, 0.1), (np.inf, 0.1), (0.01, 0)], rtol=1e-6)


def test_what_reuse_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"threshold=-0.1"):
        BlockCache(threshold=-0.1)
    with pytest.raises(ConfigError, match=r"last=0"):
        BlockCache(threshold=0.1, last=0)
