"""The attention function: which kernel, on which devices, and the derivative."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vdit.errors import ShapeError
from vdit.nn.attention import chunked, dense
from vdit.nn.attention.kernel import delta_of
from vdit.types import Array

KERNELS = {"dense": dense, "chunked": chunked}
SHORT = 512 * 512


def attention(
    q: Array, k: Array, v: Array, q_clip: Array, k_clip: Array, *, axes=("tokens", "tokens"),
    implementation: str | None = None, sequence_parallel: str = "auto",
) -> Array:
    if implementation is None:
        implementation = "dense" if q.shape[1] * k.shape[1] < SHORT else "chunked"
    if implementation not in KERNELS:
        raise ShapeError(f"attention implementation {implementation!r} is unknown: use one of {sorted(KERNELS)}")
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # heads first is the faster layout on CPU
    return jnp.swapaxes(_attend(implementation, q, k, v, q_clip, k_clip), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(kernel, q, k, v, q_clip, k_clip):
    return _fwd(kernel, q, k, v, q_clip, k_clip)[0]


def _fwd(kernel, q, k, v, q_clip, k_clip):
    out, lse = KERNELS[kernel].forward(q, k, v, q_clip, k_clip)
    out = out.astype(q.dtype)
    return out, (q, k, v, q_clip, k_clip, out, lse)


def _bwd(kernel, saved, do):
    q, k, v, q_clip, k_clip, out, lse = saved
    grads = KERNELS[kernel].backward(q, k, v, q_clip, k_clip, lse, delta_of(out, do), do)
    return *(g.astype(x.dtype) for g, x in zip(grads, (q, k, v))), None, None


_attend.defvjp(_fwd, _bwd)
