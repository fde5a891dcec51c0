"""Attention within clips: every kernel gives the plain softmax's values and gradients, and reads no other clip."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.errors import ShapeError
from vdit.nn.attention import SAVED, attention, chunked, splash
from vdit.nn.attention.kernel import KERNELS, choose_kernel, load_kernel, merge

N, M = 200, 150


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of queries and of keys, with clips that end inside of them and at their borders."""
    monkeypatch.setattr(chunked, "Q_CHUNK", 64)
    monkeypatch.setattr(chunked, "K_CHUNK", 64)
    for name in ("Q_BLOCK", "K_BLOCK", "K_COMPUTE", "Q_BLOCK_BACKWARD", "K_BLOCK_BACKWARD"):
        monkeypatch.setattr(splash, name, splash.LANES)


def inputs(order="packed", dtype=np.float32):
    """Row 0: three clips, padding, and a clip 9 without keys. Row 1: one clip ends where blocks of 64 and 128 do."""
    rng = np.random.default_rng(0)
    q, k, v, w = (rng.normal(size=(2, s, 2, 8)).astype(dtype) for s in (N, M, M, N))
    q_ids = np.array([[1] * 50 + [2] * 70 + [3] * 40 + [9] * 20 + [0] * 20, [1] * 128 + [2] * 52 + [0] * 20])
    k_ids = np.array([[1] * 64 + [2] * 40 + [3] * 30 + [0] * 16, [1] * 128 + [2] * 12 + [0] * 10])
    if order == "mixed":
        q_ids, k_ids = rng.permuted(q_ids, axis=1), rng.permuted(k_ids, axis=1)
    return q, k, v, q_ids.astype(np.int32), k_ids.astype(np.int32), w


def plain(q, k, v, q_ids, k_ids):
    same = (q_ids[:, :, None] == k_ids[:, None])[:, None]
    scores = jnp.where(same, jnp.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1]), -jnp.inf)
    weights = jnp.where(same.any(-1, keepdims=True), jax.nn.softmax(jnp.where(same, scores, -1e9), -1), 0)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def value_and_gradients(function, q, k, v, q_ids, k_ids, weight):
    """The output, and gradients of its weighted sum."""
    out, back = jax.vjp(lambda q, k, v: function(q, k, v, q_ids, k_ids), q, k, v)
    return out, *back(weight.astype(out.dtype))


@functools.cache
def run(kernel):
    """Compiled once for all tests of a kernel."""
    function = lambda *x: attention(*x, implementation=kernel)  # noqa: E731
    return jax.jit(lambda *x: value_and_gradients(function, *x))


@pytest.mark.parametrize("order", ["packed", "mixed"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_plain_softmax(kernel, order):
    given = inputs(order)
    for got, want in zip(run(kernel)(*given), value_and_gradients(plain, *given)):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_clip_never_reads_another(kernel):
    """Gradients of one clip's output are exactly 0 for the keys and values of all others, at every block's border."""
    q, k, v, q_ids, k_ids, weight = inputs()
    gradients = run(kernel)
    for clip in (0, 1, 2, 3, 9):
        mine = (q_ids == clip)[..., None, None]
        _, dq, dk, dv = gradients(q, k, v, q_ids, k_ids, np.where(mine, weight, 0))
        for gradient, own in ((dq, q_ids == clip), (dk, k_ids == clip), (dv, k_ids == clip)):
            assert not np.any(np.asarray(gradient)[~own])
        if clip != 9:
            assert np.any(dk)
            assert np.any(dv)


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_clips_do_not_change_a_bit(kernel):
    q, k, v, q_ids, k_ids, weight = inputs()
    other = (k_ids != 2)[..., None, None]
    first, second = (run(kernel)(q, x, y, q_ids, k_ids, weight)[0] for x, y in ((k, v), (k - other, v * 10**other)))
    own = q_ids == 2
    np.testing.assert_array_equal(np.asarray(first)[own], np.asarray(second)[own])
    assert np.any(np.asarray(first)[~own] != np.asarray(second)[~own])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_query_without_keys_reads_zeros(kernel):
    out, dq, *_ = run(kernel)(*inputs())
    assert not np.any(np.asarray(out)[0, 160:180])
    assert not np.any(np.asarray(dq)[0, 160:180])


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_is_float32_rounded(kernel):
    given = inputs()
    half = [jnp.asarray(x, jnp.bfloat16) if x.dtype == np.float32 else x for x in given]
    for got, want in zip(run(kernel)(*half), run("dense")(*given)):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.04, rtol=0.04)


@pytest.mark.parametrize("kernel", KERNELS)
def test_parts_of_the_keys_add_up(kernel):
    """What a ring does: attention to each half of the keys, merged, and each half's gradients."""
    q, k, v, q_ids, k_ids, weight = inputs()
    q, k, v, weight = (np.swapaxes(x, 1, 2) for x in (q, k, v, weight))
    forward, backward = jax.jit(load_kernel(kernel).forward), jax.jit(load_kernel(kernel).backward)
    parts = [(k[:, :, s], v[:, :, s], q_ids, k_ids[:, s]) for s in (slice(75), slice(75, None))]
    out, lse = merge(*forward(q, *parts[0]), *forward(q, *parts[1]))
    want, want_lse = load_kernel("dense").forward(q, k, v, q_ids, k_ids)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(lse, want_lse, atol=1e-5)

    delta = jnp.sum(want * weight, -1)
    first, second = (backward(q, *part, want_lse, delta, weight) for part in parts)
    dq, dk, dv = load_kernel("dense").backward(q, k, v, q_ids, k_ids, want_lse, delta, weight)
    np.testing.assert_allclose(first[0] + second[0], dq, atol=1e-5)
    for i, whole in ((1, dk), (2, dv)):
        np.testing.assert_allclose(np.concatenate([first[i], second[i]], 2), whole, atol=1e-5)


def test_long_rows_take_memory_as_their_tokens_do():
    def temporaries(n):
        tokens, clips = jax.ShapeDtypeStruct((1, n, 2, 8), jnp.float32), jax.ShapeDtypeStruct((1, n), jnp.int32)
        both = jax.jit(lambda *x: value_and_gradients(attention, *x))
        return both.lower(*[tokens] * 3, clips, clips, tokens).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(4096), temporaries(16384)
    assert long < 4.5 * short
    assert long < 16384 * 16384 / 8  # a byte for each score would be 16 times as much


def test_what_remat_may_save_keeps_the_kernel_from_running_again():
    def kernels(**remat):
        """How many exponentials of scores a gradient computes: one in the forward, one in the backward."""
        tokens, clip = jnp.ones((1, 16, 2, 8)), jnp.ones((1, 16), jnp.int32)
        function = lambda x: attention(jnp.tanh(x), x, x, clip, clip)  # noqa: E731
        function = jax.checkpoint(function, **remat) if remat else function
        compiled = jax.jit(jax.grad(lambda x: jnp.sum(function(x) ** 2))).lower(tokens).compile()
        return compiled.as_text().count(" exponential(")

    assert kernels() == 2
    assert kernels(policy=None) == 3
    assert kernels(policy=jax.checkpoint_policies.save_only_these_names(SAVED)) == 2


@pytest.mark.parametrize(
    ("platform", "size", "kernel"),
    [
        ("cpu", 256, "dense"), ("tpu", 256, "dense"), ("gpu", 256, "dense"),
        ("cpu", 4096, "chunked"), ("tpu", 4096, "splash"), ("gpu", 4096, "triton"), ("other", 4096, "chunked"),
    ],
)  # fmt: skip
def test_the_kernel_follows_the_target(platform, size, kernel):
    assert choose_kernel(None, platform, size, size, 64) == kernel
    assert choose_kernel("dense", platform, size, size, 64) == "dense"


def test_what_does_not_fit_is_an_error():
    q, k, v, q_ids, k_ids, _ = inputs()
    with pytest.raises(ShapeError, match="'flash' is unknown"):
        attention(q, k, v, q_ids, k_ids, implementation="flash")
    with pytest.raises(ShapeError, match=r"k_ids \(2, 200\) does not go with"):
        attention(q, k, v, q_ids, q_ids)
