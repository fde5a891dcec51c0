"""Attention a chunk of queries and a chunk of keys at a time, in plain XLA: runs everywhere, exact everywhere.

Only q, k, v, the output and one number a query are saved; scores live for one pair of chunks (Rabe and Staats, 2021;
Dao et al. 2022). Pairs of chunks that share no clip are passed over, so that a packed row of many clips costs
little more than its clips.

On a CPU heads are taken one by one, so that the scores of a pair stay in the cache (2 to 4 times as fast as all heads
at once); elsewhere all heads of a row go together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vdit.dist.target import platform
from vdit.nn.attention.kernel import FLOOR, K_PADDING, MASKED, Q_PADDING, pad_tokens, safe_lse
from vdit.types import Array

Q_CHUNK = 512
K_CHUNK = 512


def forward(q: Array, k: Array, v: Array, q_clip: Array, k_clip: Array) -> tuple[Array, Array]:
    """Output, float32, and log-sum-exp: see vdit/nn/attention/kernel.py."""
    n = q.shape[2]
    queries = _cut(Q_CHUNK, Q_PADDING, q_clip, q)
    keys = _cut(K_CHUNK, K_PADDING, k_clip, k, v)
    out, lse = _each_head(_forward, queries, keys)
    return _join(out, n), _join(lse, n)


def backward(
    q: Array, k: Array, v: Array, q_clip: Array, k_clip: Array, lse: Array, delta: Array, do: Array
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v, float32: see vdit/nn/attention/kernel.py."""
    n, m = q.shape[2], k.shape[2]
    queries = _cut(Q_CHUNK, Q_PADDING, q_clip, q, safe_lse(lse), delta, do)
    keys = _cut(K_CHUNK, K_PADDING, k_clip, k, v)
    dq, dk, dv = _each_head(_backward, queries, keys)
    return _join(dq, n), _join(jnp.swapaxes(dk, -1, -2), m), _join(jnp.swapaxes(dv, -1, -2), m)


def _forward(queries: tuple[Array, ...], keys: tuple[Array, ...]) -> tuple[Array, Array]:
    """One head: clips [i c], q [i c d]; clips [j e], k, v [j e d] -> out [i c d], lse [i c]."""

    def of_queries(part):
        q_clip, q = part

        def add(carry, keys):
            k_clip, k, v = keys
            acc, top, total = carry
            scores = _scores(q, k, q_clip, k_clip)
            new = jnp.maximum(top, jnp.max(scores, -1, keepdims=True))
            e, shrink = jnp.exp(scores - new), jnp.exp(top - new)
            acc = acc * shrink + jnp.matmul(e.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return acc, new, total * shrink + jnp.sum(e, -1, keepdims=True)

        def step(carry, keys):
            return jax.lax.cond(_meet(q_clip, keys[0]), add, lambda carry, _: carry, carry, keys), None

        column = jnp.zeros((q.shape[0], 1), jnp.float32)
        start = jnp.zeros((q.shape[0], keys[2].shape[-1]), jnp.float32), column + FLOOR, column
        (acc, top, total), _ = jax.lax.scan(step, start, keys)
        some = total > 0
        total = jnp.where(some, total, 1.0)
        return acc / total, jnp.where(some, top + jnp.log(total), MASKED)[:, 0]

    return jax.lax.map(of_queries, queries)


def _backward(queries: tuple[Array, ...], keys: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """One head: as above, lse and delta [i c], do [i c d] -> dq [i c d], dk and dv transposed, [j d e].

    Transposed because a product that would transpose the scores takes 3 times as long on a CPU.
    """

    def of_keys(dq, part):
        k_clip, k, v = part

        def add(sums, queries):
            q_clip, q, lse, delta, do = queries
            p = jnp.exp(_scores(q, k, q_clip, k_clip) - lse[:, None])
            dv = jnp.einsum("cd,ce->de", do, p.astype(do.dtype), preferred_element_type=jnp.float32)
            dp = jnp.matmul(do, v.T, preferred_element_type=jnp.float32)
            ds = (p * (dp - delta[:, None]) * q.shape[-1] ** -0.5).astype(q.dtype)
            dk = jnp.einsum("cd,ce->de", q, ds, preferred_element_type=jnp.float32)
            dq = jnp.matmul(ds, k, preferred_element_type=jnp.float32)
            return (sums[0] + dk, sums[1] + dv), dq

        def step(sums, queries):
            skip = lambda sums, queries: (sums, jnp.zeros(queries[1].shape, jnp.float32))  # noqa: E731
            return jax.lax.cond(_meet(queries[0], k_clip), add, skip, sums, queries)

        zeros = jnp.zeros(k.T.shape, jnp.float32), jnp.zeros(v.T.shape, jnp.float32)
        sums, more = jax.lax.scan(step, zeros, queries)
        return dq + more, sums

    dq, (dk, dv) = jax.lax.scan(of_keys, jnp.zeros(queries[1].shape, jnp.float32), keys)
    return dq, dk, dv


def _scores(q: Array, k: Array, q_clip: Array, k_clip: Array) -> Array:
    scores = jnp.matmul(q * q.shape[-1] ** -0.5, k.T, preferred_element_type=jnp.float32)
    return jnp.where(q_clip[:, None] == k_clip, scores, MASKED)


def _meet(q_clip: Array, k_clip: Array) -> Array:
    """Whether the clips of two chunks can have one in common: whether their ranges overlap."""
    return (jnp.min(q_clip) <= jnp.max(k_clip)) & (jnp.min(k_clip) <= jnp.max(q_clip))


def _cut(chunk: int, padding: int, clip: Array, *arrays: Array) -> tuple[Array, ...]:
    """Tokens in chunks: clip `[b n]` -> `[b i c]`, arrays `[b h n ...]` -> `[b h i c ...]`."""
    parts = -(-clip.shape[1] // chunk)
    size = -(-clip.shape[1] // parts)  # chunks of about one size
    cut = lambda x, axis: x.reshape(*x.shape[:axis], parts, size, *x.shape[axis + 1 :])  # noqa: E731
    arrays = [cut(pad_tokens(x, size * parts, 2), 2) for x in arrays]
    return cut(pad_tokens(clip, size * parts, 1, padding), 1), *arrays


def _join(x: Array, n: int) -> Array:
    """`[b h i c ...] -> [b h n ...]`."""
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :n]


def _each_head(function, queries: tuple[Array, ...], keys: tuple[Array, ...]):
    def row(inputs):
        (q_clip, *queries), (k_clip, *keys) = inputs
        head = lambda x: function((q_clip, *x[0]), (k_clip, *x[1]))  # noqa: E731
        return each(head)((queries, keys))

    each = (lambda f: lambda x: jax.lax.map(f, x)) if platform() == "cpu" else jax.vmap
    return jax.lax.map(row, (queries, keys))
