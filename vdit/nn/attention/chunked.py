"""Attention a chunk of queries and a chunk of keys at a time, in plain XLA: runs everywhere, exact everywhere.

Only q, k, v, the output and one number a query are saved; scores live for one pair of chunks (Rabe and Staats, 2021;
Dao et al. 2022). Pairs of chunks of which no query reads a key are passed over, so that a packed row of many clips
costs little more than its clips, and frames that read no later ones little more than half.

On a CPU heads are taken one by one, so that the scores of a pair stay in the cache (2 to 4 times as fast as all heads
at once); elsewhere all heads of a row go together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vdit.dist.mesh import platform
from vdit.nn.attention.kernel import FLOOR, K_PADDING, MASKED, Q_PADDING, pad_tokens, reads, safe_lse
from vdit.types import Array, PyTree

Q_CHUNK = 512
K_CHUNK = 512


def forward(
    q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, q_from: Array | None = None
) -> tuple[Array, Array]:
    """Output, float32, and log-sum-exp: see vdit/nn/attention/kernel.py."""
    n = q.shape[2]
    queries = _cut(Q_CHUNK, Q_PADDING, (q_ids, q_from), q)
    keys = _cut(K_CHUNK, K_PADDING, k_ids, k, v)
    out, lse = _each_head(_forward, queries, keys)
    return _join(out, n), _join(lse, n)


def backward(
    q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, lse: Array, delta: Array, do: Array,
    q_from: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Gradients of q, k and v, float32: see vdit/nn/attention/kernel.py."""
    n, m = q.shape[2], k.shape[2]
    queries = _cut(Q_CHUNK, Q_PADDING, (q_ids, q_from), q, safe_lse(lse), delta, do)
    keys = _cut(K_CHUNK, K_PADDING, k_ids, k, v)
    dq, dk, dv = _each_head(_backward, queries, keys)
    return _join(dq, n), _join(jnp.swapaxes(dk, -1, -2), m), _join(jnp.swapaxes(dv, -1, -2), m)


def _forward(queries: tuple[PyTree, ...], keys: tuple[Array, ...]) -> tuple[Array, Array]:
    """One head: (q_ids, q_from) [i c], q [i c d]; clips [j e], k, v [j e d] -> out [i c d], lse [i c]."""

    def of_queries(part):
        clips, q = part

        def add(carry, keys):
            k_ids, k, v = keys
            acc, top, total = carry
            scores = _scores(q, k, clips, k_ids)
            new = jnp.maximum(top, jnp.max(scores, -1, keepdims=True))
            e, shrink = jnp.exp(scores - new), jnp.exp(top - new)
            acc = acc * shrink + jnp.matmul(e.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return acc, new, total * shrink + jnp.sum(e, -1, keepdims=True)

        def step(carry, keys):
            return jax.lax.cond(_meet(clips, keys[0]), add, lambda carry, _: carry, carry, keys), None

        column = jnp.zeros((q.shape[0], 1), jnp.float32)
        start = jnp.zeros((q.shape[0], keys[2].shape[-1]), jnp.float32), column + FLOOR, column
        (acc, top, total), _ = jax.lax.scan(step, start, keys)
        some = total > 0
        total = jnp.where(some, total, 1.0)
        return acc / total, jnp.where(some, top + jnp.log(total), MASKED)[:, 0]

    return jax.lax.map(of_queries, queries)


def _backward(queries: tuple[PyTree, ...], keys: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """One head: as above, lse and delta [i c], do [i c d] -> dq [i c d], dk and dv transposed, [j d e].

    Transposed because a product that would transpose the scores takes 3 times as long on a CPU.
    """

    def of_keys(dq, part):
        k_ids, k, v = part

        def add(sums, queries):
            clips, q, lse, delta, do = queries
            p = jnp.exp(_scores(q, k, clips, k_ids) - lse[:, None])
            dv = jnp.einsum("cd,ce->de", do, p.astype(do.dtype), preferred_element_type=jnp.float32)
            dp = jnp.matmul(do, v.T, preferred_element_type=jnp.float32)
            ds = (p * (dp - delta[:, None]) * q.shape[-1] ** -0.5).astype(q.dtype)
            dk = jnp.einsum("cd,ce->de", q, ds, preferred_element_type=jnp.float32)
            dq = jnp.matmul(ds, k, preferred_element_type=jnp.float32)
            return (sums[0] + dk, sums[1] + dv), dq

        def step(sums, queries):
            skip = lambda sums, queries: (sums, jnp.zeros(queries[1].shape, jnp.float32))  # noqa: E731
            return jax.lax.cond(_meet(queries[0], k_ids), add, skip, sums, queries)

        zeros = jnp.zeros(k.T.shape, jnp.float32), jnp.zeros(v.T.shape, jnp.float32)
        sums, more = jax.lax.scan(step, zeros, queries)
        return dq + more, sums

    dq, (dk, dv) = jax.lax.scan(of_keys, jnp.zeros(queries[1].shape, jnp.float32), keys)
    return dq, dk, dv


def _scores(q: Array, k: Array, clips: tuple[Array, Array | None], k_ids: Array) -> Array:
    q_ids, q_from = (None if x is None else x[:, None] for x in clips)
    scores = jnp.matmul(q * q.shape[-1] ** -0.5, k.T, preferred_element_type=jnp.float32)
    return jnp.where(reads(q_ids, k_ids, q_from), scores, MASKED)


def _meet(clips: tuple[Array, Array | None], k_ids: Array) -> Array:
    """Whether a query of one chunk can read a key of another: whether the ranges of what they say overlap."""
    q_ids, q_from = clips
    q_from = q_ids if q_from is None else q_from
    return (jnp.min(q_from) <= jnp.max(k_ids)) & (jnp.min(k_ids) <= jnp.max(q_ids))


def _cut(chunk: int, padding: int, ids: PyTree, *arrays: Array) -> tuple[PyTree, ...]:
    """Tokens in chunks: clips `[b n]` -> `[b i c]`, arrays `[b h n ...]` -> `[b h i c ...]`."""
    tokens = arrays[0].shape[2]
    parts = -(-tokens // chunk)
    size = -(-tokens // parts)  # chunks of about one size
    cut = lambda x, axis: x.reshape(*x.shape[:axis], parts, size, *x.shape[axis + 1 :])  # noqa: E731
    arrays = [cut(pad_tokens(x, size * parts, 2), 2) for x in arrays]
    return jax.tree.map(lambda x: cut(pad_tokens(x, size * parts, 1, padding), 1), ids), *arrays


def _join(x: Array, n: int) -> Array:
    """`[b h i c ...] -> [b h n ...]`."""
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :n]


def _each_head(function, queries: tuple[PyTree, ...], keys: tuple[Array, ...]):
    def row(inputs):
        (q_ids, *queries), (k_ids, *keys) = inputs
        head = lambda x: function((q_ids, *x[0]), (k_ids, *x[1]))  # noqa: E731
        return each(head)((queries, keys))

    each = (lambda f: lambda x: jax.lax.map(f, x)) if platform() == "cpu" else jax.vmap
    return jax.lax.map(row, (queries, keys))
