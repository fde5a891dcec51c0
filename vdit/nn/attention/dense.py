"""Attention with all scores at once: the fastest for short rows, and the plain statement of what the others compute."""

from __future__ import annotations

import jax.numpy as jnp

from vdit.nn.attention.kernel import FLOOR, MASKED, reads, safe_lse
from vdit.types import Array


def forward(
    q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, q_from: Array | None = None
) -> tuple[Array, Array]:
    """Output and log-sum-exp: see vdit/nn/attention/kernel.py."""
    scores = _scores(q, k, q_ids, k_ids, q_from)
    top = jnp.maximum(jnp.max(scores, -1, keepdims=True), FLOOR)
    e = jnp.exp(scores - top)
    total = jnp.sum(e, -1, keepdims=True)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    # Divided after the product: there are fewer values than scores.
    out = jnp.einsum("bhnm,bhmd->bhnd", e.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return out, jnp.where(some, top + jnp.log(total), MASKED)[..., 0]


def backward(
    q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, lse: Array, delta: Array, do: Array,
    q_from: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Gradients of q, k and v: see vdit/nn/attention/kernel.py."""
    p = jnp.exp(_scores(q, k, q_ids, k_ids, q_from) - safe_lse(lse)[..., None])
    dv = jnp.einsum("bhnm,bhnd->bhmd", p.astype(do.dtype), do)
    dp = jnp.einsum("bhnd,bhmd->bhnm", do, v, preferred_element_type=jnp.float32)
    ds = (p * (dp - delta[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", ds, k), jnp.einsum("bhnm,bhnd->bhmd", ds, q), dv


def _scores(q: Array, k: Array, q_ids: Array, k_ids: Array, q_from: Array | None) -> Array:
    scores = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if q_from is not None:
        q_from = q_from[:, None, :, None]
    return jnp.where(reads(q_ids[:, None, :, None], k_ids[:, None, None, :], q_from), scores, MASKED)
