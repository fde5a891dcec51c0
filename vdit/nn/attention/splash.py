"""Attention on a TPU: JAX's splash kernel (Pallas), with clips as its segments.

Blocks whose clips do not meet are neither fetched nor computed: the kernel is handed a table of the blocks to visit,
made from the clip ids on the device, so that a packed row costs about what its clips cost.

Where queries do not read later frames, keys are first put in the order of their clips and times: what a query reads
then lies side by side in its clip, up to a last key, which the kernel's mask function compares with. That costs a sort
of m numbers a row and one pass over the keys and values, little beside attention; later blocks are passed over.

The backward of one part of the keys, given the whole row's log-sum-exp, has no public name in JAX: the two functions
used here have the same signature in 0.10 and 0.11.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from vdit.dist.mesh import platform
from vdit.nn.attention.kernel import FLOOR, K_PADDING, MASKED, Q_PADDING, TIMES, pad_tokens, safe_lse
from vdit.types import Array

LANES = 128
# Largest blocks; a block is the largest multiple of LANES that divides the padded row.
Q_BLOCK, K_BLOCK, K_COMPUTE = 1024, 2048, 512
Q_BLOCK_BACKWARD, K_BLOCK_BACKWARD = 1024, 1024
# The table of blocks lies in the scalar memory of a core; a longer row visits all blocks.
TABLE_ENTRIES = 64 * 1024


def forward(
    q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, q_from: Array | None = None
) -> tuple[Array, Array]:
    """Output, in q's type, and log-sum-exp: see vdit/nn/attention/kernel.py."""
    n, d = q.shape[2:]
    if q_from is not None:
        k, v, k_ids, _ = _in_order(k, v, k_ids)
    rows = _padded(q, k, v, _marks(q_ids, k_ids, q_from))
    blocks = splash.BlockSizes(
        block_q=_block(rows[0].shape[2], Q_BLOCK),
        block_kv=(block := _block(rows[1].shape[2], K_BLOCK)),
        block_kv_compute=_block(block, K_COMPUTE),
    )

    def row(inputs):
        q, k, v, marks = inputs
        table = _blocks_to_visit(marks, blocks.block_q, blocks.block_kv, next_query=False)
        kernel = splash.SplashAttentionKernel(
            table, None, None, block_sizes=blocks, is_mqa=False, save_residuals=True, mask_value=MASKED,
            attn_logits_soft_cap=None, residual_checkpoint_name=None, mask_function=marks.function,
            interpret=platform() != "tpu",
        )  # fmt: skip
        out, (lse,) = kernel(q, k, v, marks.segments)
        return out, lse

    out, lse = jax.lax.map(row, rows)
    empty = lse < FLOOR  # the kernel gives such queries the mean of some values
    out = jnp.where(empty[..., None], 0, out)
    return out[:, :, :n, :d], jnp.where(empty, MASKED, lse)[:, :, :n]


def backward(
    q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, lse: Array, delta: Array, do: Array,
    q_from: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Gradients of q, k and v, in their types: see vdit/nn/attention/kernel.py."""
    (n, d), m = q.shape[2:], k.shape[2]
    if q_from is not None:
        k, v, k_ids, place = _in_order(k, v, k_ids)
    rows = _padded(q, k, v, _marks(q_ids, k_ids, q_from))
    lse, delta, do = (pad_tokens(x, _multiple(n), 2) for x in (safe_lse(lse), delta, do.astype(q.dtype)))
    q_block = _block(rows[0].shape[2], Q_BLOCK_BACKWARD)
    k_block = _block(rows[1].shape[2], K_BLOCK_BACKWARD)
    same = {
        "bq": q_block, "bkv": k_block, "is_mqa": False, "mask_value": MASKED, "attn_logits_soft_cap": None,
        "q_layout": splash.QKVLayout.HEAD_DIM_MINOR, "k_layout": splash.QKVLayout.HEAD_DIM_MINOR,
        "v_layout": splash.QKVLayout.HEAD_DIM_MINOR, "mask_function": rows[3].function,
        "interpret": platform() != "tpu",
    }  # fmt: skip

    def row(inputs):
        q, k, v, marks, lse, delta, do = inputs
        table = functools.partial(_blocks_to_visit, marks, q_block, k_block)
        arrays = q, k, v, marks.segments, None, lse, do, delta
        _, dk, dv = splash._splash_attention_bwd_dkv(
            *arrays, mask_info=table(next_query=True), bkv_compute=_block(k_block, K_COMPUTE),
            use_fused_bwd_kernel=False, **same,
        )  # fmt: skip
        return splash._splash_attention_bwd_dq(*arrays, mask_info=table(next_query=False), **same), dk, dv

    dq, dk, dv = jax.lax.map(row, (*rows, lse, delta, do))
    dq, dk, dv = dq[:, :, :n] * d**-0.5, dk[:, :, :m], dv[:, :, :m]
    if q_from is not None:
        dk, dv = (jnp.take_along_axis(x, place[:, None, :, None], 2) for x in (dk, dv))
    return dq, dk, dv


class _Marks(NamedTuple):
    """Who reads whom: tokens of one segment, up to the key numbered `last` where it is given, int32 [b n]."""

    segments: splash.SegmentIds
    last: Array | None = None

    @property
    def function(self):
        return None if self.last is None else _not_after


def _not_after(last: Array, key: Array) -> Array:
    return key <= last


def _marks(q_ids: Array, k_ids: Array, q_from: Array | None) -> _Marks:
    """Of whole rows; with `q_from`, of keys in order."""
    if q_from is None:
        return _Marks(splash.SegmentIds(q_ids, k_ids))
    last = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(k_ids, q_ids).astype(jnp.int32) - 1
    return _Marks(splash.SegmentIds(q_ids // TIMES, k_ids // TIMES), last)


def _in_order(k: Array, v: Array, k_ids: Array) -> tuple[Array, Array, Array, Array]:
    """Keys, values and their clips in the order of clips and times, and where each key went, int [b m]."""
    order = jnp.argsort(k_ids, axis=1)
    k, v = (jnp.take_along_axis(x, order[:, None, :, None], 2) for x in (k, v))
    return k, v, jnp.take_along_axis(k_ids, order, 1), jnp.argsort(order, axis=1)


def _padded(q: Array, k: Array, v: Array, marks: _Marks) -> tuple[Array, Array, Array, _Marks]:
    q = (q * q.shape[-1] ** -0.5).astype(q.dtype)  # the kernel does not scale
    n, m = _multiple(q.shape[2]), _multiple(k.shape[2])
    q, k, v = pad_tokens(q, n, 2), pad_tokens(k, m, 2), pad_tokens(v, m, 2)
    (q_ids, k_ids), last = marks
    segments = splash.SegmentIds(pad_tokens(q_ids, n, 1, Q_PADDING), pad_tokens(k_ids, m, 1, K_PADDING))
    return q, k, v, _Marks(segments, None if last is None else pad_tokens(last, n, 1, -1))


def _multiple(n: int) -> int:
    """What n tokens are padded to a multiple of: much, for large blocks, but an eighth of them at most."""
    return max(size for size in (LANES, 2 * LANES, 4 * LANES, 8 * LANES) if size in (LANES, min(size, n // 8)))


def _block(n: int, most: int) -> int:
    """The largest multiple of LANES that divides n, at most `most`."""
    return max(size for size in range(LANES, most + 1, LANES) if n % size == 0)


def _blocks_to_visit(marks: _Marks, q_block: int, k_block: int, *, next_query: bool):
    """splash's table of blocks [1 queries keys]: whether to visit each, and which block to hold meanwhile.

    Clips meet where the ranges of their ids do, and the first key is not after the last to be read. In the place of a
    block that is passed over stands the one visited before it along the kernel's inner loop (over queries if
    `next_query`, else over keys), so that nothing is fetched.
    """
    ranges = lambda ids, block: (f(ids.reshape(-1, block), 1) for f in (jnp.min, jnp.max))  # noqa: E731
    (q_ids, k_ids), last = marks
    (q_low, q_high), (k_low, k_high) = ranges(q_ids, q_block), ranges(k_ids, k_block)
    if q_low.size * k_low.size > TABLE_ENTRIES:
        return mask_info.MaskInfo(None, None, None, None, last)
    visit = (q_low[:, None] <= k_high) & (k_low <= q_high[:, None])
    if last is not None:
        visit &= k_block * jnp.arange(k_low.size) <= jnp.max(last.reshape(-1, q_block), 1)[:, None]
    axis = 0 if next_query else 1
    index = jax.lax.broadcasted_iota(jnp.int32, visit.shape, axis)
    held = jax.lax.cummax(jnp.where(visit, index, 0), axis).astype(jnp.int16)
    return mask_info.MaskInfo(held[None], None, visit[None].astype(jnp.int8), None, last)
