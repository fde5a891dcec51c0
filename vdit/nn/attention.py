"""One attention function with clip ids; kernels behind it.

Tokens attend to tokens of the same clip only. Padding carries clip id 0 and attends to padding, so no
row of the softmax is ever empty as long as every query's clip has a key.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vdit.dist.target import platform
from vdit.errors import ShapeError
from vdit.types import Array

# Above this many scores a row (queries x keys) the chunked kernel is used, which never holds them all.
DENSE_SCORES = 4096 * 4096
CHUNK = 1024
# On one CPU: from this many scores a head, heads are taken one by one, and this many scores at a time, so that
# they stay in the cache.
LOOP_SCORES = 512 * 512
CACHED_SCORES = 4 * 1024 * 1024
_MASKED = -1e30  # finite: a fully masked row gives a uniform softmax rather than NaN


def attention(
    q: Array, k: Array, v: Array, q_clip: Array, k_clip: Array, *, implementation: str | None = None
) -> Array:
    """Scaled dot-product attention within clips.

    q: [b n h d]; k, v: [b m h d]; q_clip: int [b n]; k_clip: int [b m]. Returns [b n h d] in q's type.
    Scores and softmax are float32. implementation: "dense" keeps the score matrix for the backward,
    "chunked" recomputes it a chunk of queries at a time, "looped" does so for one head after the other (2 to 4
    times as fast on a CPU, where "dense" waits for memory); None picks by size and device.
    """
    if implementation is None:
        implementation = _pick(q.shape[1] * k.shape[1])
    kernels = {"dense": _dense, "chunked": _chunked, "looped": _looped}
    if implementation not in kernels:
        raise ShapeError(f"attention implementation {implementation!r} is unknown: use one of {sorted(kernels)}")
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # heads first is the faster layout on CPU
    out = kernels[implementation](q, k, v, q_clip, k_clip)
    return jnp.swapaxes(out, 1, 2)


def _pick(scores: int) -> str:
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.size == 1  # a loop over heads would gather what a mesh has shared out
    if alone and scores >= LOOP_SCORES and platform() == "cpu":
        return "looped"
    return "dense" if scores <= DENSE_SCORES else "chunked"


def _scores(q: Array, k: Array, q_clip: Array, k_clip: Array) -> Array:
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    same = q_clip[:, None, :, None] == k_clip[:, None, None, :]
    return jnp.where(same, scores, _MASKED)


@jax.custom_vjp
def _dense(q: Array, k: Array, v: Array, q_clip: Array, k_clip: Array) -> Array:
    return _dense_forward(q, k, v, q_clip, k_clip)[0]


def _dense_forward(q, k, v, q_clip, k_clip):
    p = jax.nn.softmax(_scores(q, k, q_clip, k_clip), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", p, v), (q, k, v, p)


def _dense_backward(saved, do):
    # Written out because the derivative JAX makes recomputes and transposes the probabilities.
    q, k, v, p = saved
    dv = jnp.einsum("bhnm,bhnd->bhmd", p, do)
    dp = jnp.einsum("bhnd,bhmd->bhnm", do, v, preferred_element_type=jnp.float32)
    p32 = p.astype(jnp.float32)
    ds = p32 * (dp - jnp.sum(p32 * dp, -1, keepdims=True)) * q.shape[-1] ** -0.5
    ds = ds.astype(q.dtype)
    dq = jnp.einsum("bhnm,bhmd->bhnd", ds, k)
    dk = jnp.einsum("bhnm,bhnd->bhmd", ds, q)
    return dq, dk, dv, None, None


_dense.defvjp(_dense_forward, _dense_backward)


def _chunked(q: Array, k: Array, v: Array, q_clip: Array, k_clip: Array) -> Array:
    n = q.shape[2]
    chunk = min(CHUNK, n)
    padding = -n % chunk
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0)))
    q_clip = jnp.pad(q_clip, ((0, 0), (0, padding)))
    chunks = (n + padding) // chunk
    q = jnp.moveaxis(q.reshape(*q.shape[:2], chunks, chunk, q.shape[-1]), 2, 0)
    q_clip = jnp.moveaxis(q_clip.reshape(q_clip.shape[0], chunks, chunk), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(inputs: tuple[Array, Array]) -> Array:
        q, q_clip = inputs
        p = jax.nn.softmax(_scores(q, k, q_clip, k_clip), axis=-1).astype(v.dtype)
        return jnp.einsum("bhnm,bhmd->bhnd", p, v)

    out = jnp.moveaxis(jax.lax.map(one, (q, q_clip)), 0, 2)
    return out.reshape(*out.shape[:2], n + padding, out.shape[-1])[:, :, :n]


@jax.custom_vjp
def _looped(q: Array, k: Array, v: Array, q_clip: Array, k_clip: Array) -> Array:
    return _looped_forward(q, k, v, q_clip, k_clip)[0]


def _looped_forward(q, k, v, q_clip, k_clip):
    def head(inputs):
        queries, k, v, k_clip = inputs

        def part(queries):
            q, q_clip = queries
            e, top = _exponentials(q, k, q_clip, k_clip)
            total = jnp.sum(e, -1, keepdims=True)
            # Divided after the product: there are fewer values than scores.
            return (jnp.matmul(e.astype(v.dtype), v, preferred_element_type=jnp.float32) / total, top, total)

        return jax.lax.map(part, queries)

    queries, unfold = _by_head(q, k, q_clip)
    out, top, total = jax.lax.map(head, (queries, *(_merge(x) for x in (k, v)), _each_head(k_clip, q.shape[1])))
    out = unfold(out).astype(q.dtype)
    return out, (q, k, v, q_clip, k_clip, out, top, total)


def _looped_backward(saved, do):
    q, k, v, q_clip, k_clip, out, top, total = saved

    def head(inputs):
        queries, k, v, k_clip = inputs

        def part(sums, queries):
            q, q_clip, do, delta, top, total = queries
            e, _ = _exponentials(q, k, q_clip, k_clip, top)
            do = do / total
            # Both sums stay transposed, [d m]: a product that would transpose the scores takes 3 times as long.
            dv = jnp.einsum("cd,cm->dm", do, e.astype(do.dtype), preferred_element_type=jnp.float32)
            ds = e * (jnp.matmul(do, v.T, preferred_element_type=jnp.float32) - delta / total) * q.shape[-1] ** -0.5
            ds = ds.astype(q.dtype)
            dk = jnp.einsum("cd,cm->dm", q, ds, preferred_element_type=jnp.float32)
            return (sums[0] + dk, sums[1] + dv), jnp.matmul(ds, k)

        zeros = jnp.zeros(k.T.shape, jnp.float32), jnp.zeros(v.T.shape, jnp.float32)
        (dk, dv), dq = jax.lax.scan(part, zeros, queries)
        return dq, dk.astype(k.dtype), dv.astype(v.dtype)

    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), -1, keepdims=True)
    queries, unfold = _by_head(q, k, q_clip, do, delta)
    keys = (_merge(k), _merge(v), _each_head(k_clip, q.shape[1]))
    dq, dk, dv = jax.lax.map(head, ((*queries, top, total), *keys))
    dk, dv = jnp.swapaxes(dk, 1, 2), jnp.swapaxes(dv, 1, 2)
    return unfold(dq), dk.reshape(k.shape), dv.reshape(v.shape), None, None


_looped.defvjp(_looped_forward, _looped_backward)


def _exponentials(q: Array, k: Array, q_clip: Array, k_clip: Array, top: Array | None = None) -> tuple[Array, Array]:
    """exp(score - top) of one head `[c m]`, float32, and `top` `[c 1]`, the largest score unless it is given."""
    scores = jnp.matmul(q * q.shape[-1] ** -0.5, k.T, preferred_element_type=jnp.float32)
    scores = jnp.where(q_clip[:, None] == k_clip, scores, _MASKED)
    top = jnp.max(scores, -1, keepdims=True) if top is None else top
    return jnp.exp(scores - top), top


def _by_head(q: Array, k: Array, q_clip: Array, *more: Array):
    """Queries `[b h n d]` and what goes with them as `[b*h parts c d]`, and the way back.

    A part has as many queries as keep its scores in the cache.
    """
    b, heads, n, _ = q.shape
    c = min(n, max(CACHED_SCORES // k.shape[2], 32))
    parts = -(-n // c)

    def fold(x):
        x = jnp.pad(x, ((0, 0), (0, parts * c - n), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(b * heads, parts, c, *x.shape[2:])

    def unfold(x):
        return x.reshape(b, heads, parts * c, -1)[:, :, :n]

    first = fold(_merge(q)), fold(_each_head(q_clip, heads))
    return (*first, *(fold(_merge(x)) for x in more)), unfold


def _merge(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _each_head(clip: Array, heads: int) -> Array:
    return jnp.repeat(clip, heads, axis=0)
