"""What every attention kernel gives, and the numbers that all of them share.

A kernel is a module with two functions, on arrays with heads first:

    forward(q, k, v, q_ids, k_ids, q_from=None) -> (out, lse)
    backward(q, k, v, q_ids, k_ids, lse, delta, do, q_from=None) -> (dq, dk, dv)

q, do: [b h n d]; k, v: [b h m d]; q_ids: int32 [b n]; k_ids: int32 [b m]; out: [b h n d], float32 or q's type;
lse: float32 [b h n], log of the sum of exp(score) over the keys of the query's clip (Dao et al. 2022);
delta: float32 [b h n], sum of out * do over d. Gradients come in the types of q, k and v, or in float32.

The backward needs no more than `lse` and `delta` of the whole row, so keys may lie anywhere: it is exact for
any part of them, and the parts' gradients add up. That is what ring attention stands on.

q_from: int32 [b n], or None. If given, query i attends to keys with q_from[i] <= k_ids <= q_ids[i]: block-causal
masks are expressed this way, by ids that increase with frame and clip (`numbered`). If None, query i attends to keys
with k_ids == q_ids[i].

A query whose clip has no key reads zeros and passes on no gradient: its `lse` is `MASKED`.
"""

from __future__ import annotations

import jax.numpy as jnp

from vdit.types import Array

MASKED = -1e30  # a score that is not to be read; finite, so that differences are no NaN
FLOOR = -1e20  # no true score lies below; exp(MASKED - FLOOR) is 0
TIMES = 1 << 16  # times of a clip are below
Q_PADDING, K_PADDING = -1, -2  # clips of tokens that a kernel adds: they meet neither each other nor any token


def numbered(segment_ids: Array, time: Array) -> Array:
    """One number for a clip and a time in it, 0 to TIMES - 1: int32; clips from 0 to 32767."""
    return (segment_ids.astype(jnp.int32) * TIMES + time.astype(jnp.int32)).astype(jnp.int32)


def reads(q_ids: Array, k_ids: Array, q_from: Array | None) -> Array:
    """Whether queries read keys: bool, of arrays that broadcast against each other."""
    return q_ids == k_ids if q_from is None else (q_from <= k_ids) & (k_ids <= q_ids)


def safe_lse(lse: Array) -> Array:
    """`lse` for the backward: 0 where a query has no key, so that exp(MASKED - lse) is 0 there too."""
    return jnp.where(lse < FLOOR, 0.0, lse)


def delta_of(out: Array, do: Array) -> Array:
    """Sum of out * do over a head's values: `[b h n d]` twice -> float32 `[b h n]`."""
    return jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), -1)


def merge(out: Array, lse: Array, more: Array, more_lse: Array) -> tuple[Array, Array]:
    """Attention to two sets of keys from attention to each: float32 `[b h n d]`, `[b h n]`, twice -> once."""
    both = jnp.logaddexp(lse, more_lse)
    out = out * jnp.exp(lse - both)[..., None] + more.astype(jnp.float32) * jnp.exp(more_lse - both)[..., None]
    return out, both


def pad_tokens(x: Array, multiple: int, axis: int, value: int = 0) -> Array:
    """`x` with `value` after its last token, up to a multiple of so many tokens on `axis`."""
    padding = -x.shape[axis] % multiple
    if not padding:
        return x
    return jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)], constant_values=value)
