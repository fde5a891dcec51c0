"""Attention within clips: against a plain softmax, values and gradients, dense and chunked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.errors import ShapeError
from vdit.nn import attention as module
from vdit.nn.attention import attention


def inputs(n=37, m=23, h=2, d=8):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, s, h, d)).astype(np.float32) for s in (n, m, m))
    q_clip = np.sort(rng.integers(0, 3, (2, n)))
    k_clip = np.sort(rng.integers(0, 3, (2, m)))
    return q, k, v, q_clip, k_clip


def plain(q, k, v, q_clip, k_clip):
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where((q_clip[:, :, None] == k_clip[:, None])[:, None], scores, -jnp.inf)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, -1), v)


@pytest.mark.parametrize("kernel", ["dense", "chunked", "looped"])
def test_equals_plain_softmax(kernel, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)  # 37 queries: two whole chunks and a part
    monkeypatch.setattr(module, "CACHED_SCORES", 32 * 23)
    q, k, v, q_clip, k_clip = inputs()
    weight = np.random.default_rng(1).normal(size=q.shape)

    def run(f, *args):
        return jax.value_and_grad(lambda *x: jnp.sum(f(*x) * weight), argnums=(0, 1, 2))(*args)

    want = run(lambda q, k, v: plain(q, k, v, q_clip, k_clip), q, k, v)
    got = run(lambda q, k, v: attention(q, k, v, q_clip, k_clip, implementation=kernel), q, k, v)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("kernel", ["dense", "chunked", "looped"])
def test_a_query_without_keys_is_finite(kernel):
    q, k, v, q_clip, k_clip = inputs()
    out = attention(q, k, v, np.full_like(q_clip, 9), k_clip, implementation=kernel)
    assert np.all(np.isfinite(out))


def test_chunked_holds_no_full_score_matrix():
    n = 8 * module.CHUNK
    shapes = [jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32)] * 3 + [jax.ShapeDtypeStruct((1, n), jnp.int32)] * 2
    grad = jax.grad(lambda q, k, v, a, b: jnp.sum(attention(q, k, v, a, b)), argnums=(0, 1, 2))
    memory = jax.jit(grad).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * n * 4 / 2


def test_unknown_kernel_is_an_error():
    q, k, v, q_clip, k_clip = inputs()
    with pytest.raises(ShapeError, match="'flash' is unknown"):
        attention(q, k, v, q_clip, k_clip, implementation="flash")
