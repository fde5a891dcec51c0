"""What every attention kernel computes, which one is chosen, and the numbers that all of them share.

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

`choose_kernel` goes by the platform that the program is compiled for, and by the number of scores:

| target | few scores a head | otherwise |
| --- | --- | --- |
| CPU | dense | chunked, one head after the other |
| TPU | dense | splash (Pallas), blocks without a common clip left out |
| GPU | dense | triton (Pallas), the same; chunked where a head is too wide for it |

All of them know times as well: splash by putting keys in order first (vdit/nn/attention/splash.py).

cuDNN is never picked: it knows no clip ids, and would silently read across the clips of a packed row.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import jax.numpy as jnp

from vdit.errors import ShapeError
from vdit.types import Array

MASKED = -1e30  # a score that is not to be read; finite, so that differences are no NaN
FLOOR = -1e20  # no true score lies below; exp(MASKED - FLOOR) is 0
TIMES = 1 << 16  # times of a clip are below
Q_PADDING, K_PADDING = -1, -2  # clips of tokens that a kernel adds: they meet neither each other nor any token
KERNELS = ("dense", "chunked", "splash", "triton")
WIDEST_TRITON_HEAD = 128
# From this many scores a head on: on a CPU they leave the cache, elsewhere they are worth a kernel of their own.
MANY_SCORES = 512 * 512


def choose_kernel(implementation: str | None, platform: str, n: int, m: int, head_dim: int) -> str:
    """The name of the kernel that computes attention on one device.

    Args:
        implementation: the kernel that the caller asks for, one of KERNELS; None chooses.
        platform: "cpu", "gpu" or "tpu", what the program is compiled for.
        n: queries on the device.
        m: keys on the device.
        head_dim: values of one head.

    Returns:
        A name of KERNELS, for `load_kernel`.

    Raises:
        ShapeError: `implementation` is not a name of KERNELS.
    """
    if implementation is not None:
        if implementation not in KERNELS:
            raise ShapeError(f"attention implementation {implementation!r} is unknown: use one of {sorted(KERNELS)}")
        return implementation
    if n * m < MANY_SCORES:
        return "dense"
    if platform == "gpu" and head_dim > WIDEST_TRITON_HEAD:
        return "chunked"
    return {"tpu": "splash", "gpu": "triton"}.get(platform, "chunked")


def load_kernel(name: str) -> ModuleType:
    """The module of a kernel. It is imported at its first use, because Pallas takes a quarter of a second."""
    return importlib.import_module(f"vdit.nn.attention.{name}")


def numbered(segment_ids: Array, time: Array) -> Array:
    """One number for a clip and a time in it. Numbers grow with the clip, and inside a clip with the time.

    Args:
        segment_ids: int of any shape, 0 to 32767.
        time: int of the same shape, 0 to TIMES - 1.

    Returns:
        int32 of that shape.
    """
    return (segment_ids.astype(jnp.int32) * TIMES + time.astype(jnp.int32)).astype(jnp.int32)


def reads(q_ids: Array, k_ids: Array, q_from: Array | None) -> Array:
    """Whether queries attend to keys.

    Args:
        q_ids: int, the number of each query.
        k_ids: int, the number of each key; broadcasts against `q_ids`.
        q_from: int like `q_ids`, the lowest number that a query attends to; None: equal numbers only.

    Returns:
        bool of the common shape.
    """
    return q_ids == k_ids if q_from is None else (q_from <= k_ids) & (k_ids <= q_ids)


def safe_lse(lse: Array) -> Array:
    """`lse` for the backward: 0 where a query has no key, so that exp(MASKED - lse) is 0 there too."""
    return jnp.where(lse < FLOOR, 0.0, lse)


def delta_of(out: Array, do: Array) -> Array:
    """Sum of out * do over a head's values: `[b h n d]` twice -> float32 `[b h n]`."""
    return jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), -1)


def merge(out: Array, lse: Array, more: Array, more_lse: Array) -> tuple[Array, Array]:
    """Attention to two sets of keys, from attention to each set.

    Args:
        out: float32 [b h n d], the output over the first set.
        lse: float32 [b h n], its log-sum-exp.
        more: [b h n d], the output over the second set.
        more_lse: float32 [b h n], its log-sum-exp.

    Returns:
        (out, lse) over both sets, float32.
    """
    both = jnp.logaddexp(lse, more_lse)
    out = out * jnp.exp(lse - both)[..., None] + more.astype(jnp.float32) * jnp.exp(more_lse - both)[..., None]
    return out, both


def pad_tokens(x: Array, multiple: int, axis: int, value: int = 0) -> Array:
    """Pads an axis up to a multiple.

    Args:
        x: any array.
        multiple: the axis gets the next multiple of it.
        axis: the axis of the tokens.
        value: what the new tokens are filled with.

    Returns:
        `x` with padding after its last token; `x` itself where nothing is missing.
    """
    padding = -x.shape[axis] % multiple
    if not padding:
        return x
    return jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)], constant_values=value)
