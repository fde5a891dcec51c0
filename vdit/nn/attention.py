"""One attention function with clip ids; kernels behind it.

Tokens attend to tokens of the same clip only. Padding carries clip id 0 and attends to padding, so no
row of the softmax is ever empty as long as every query's clip has a key.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vdit.errors import ShapeError
from vdit.types import Array

# Above this many scores a row (queries x keys) the chunked kernel is used, which never holds them all.
DENSE_SCORES = 4096 * 4096
CHUNK = 1024
_MASKED = -1e30  # finite: a fully masked row gives a uniform softmax rather than NaN


def attention(
    q: Array, k: Array, v: Array, q_clip: Array, k_clip: Array, *, implementation: str | None = None
) -> Array:
    """Scaled dot-product attention within clips.

    q: [b n h d]; k, v: [b m h d]; q_clip: int [b n]; k_clip: int [b m]. Returns [b n h d] in q's type.
    Scores and softmax are float32. implementation: "dense" keeps the score matrix for the backward,
    "chunked" recomputes it a chunk of queries at a time; None picks by size.
    """
    if implementation is None:
        implementation = "dense" if q.shape[1] * k.shape[1] <= DENSE_SCORES else "chunked"
    kernels = {"dense": _dense, "chunked": _chunked}
    if implementation not in kernels:
        raise ShapeError(f"attention implementation {implementation!r} is unknown: use one of {sorted(kernels)}")
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # heads first is the faster layout on CPU
    out = kernels[implementation](q, k, v, q_clip, k_clip)
    return jnp.swapaxes(out, 1, 2)


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
