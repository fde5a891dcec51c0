"""Attention on a GPU: a Pallas kernel for Triton that knows clips (after Dao, 2023).

Every block of queries visits the blocks of keys from the first to the last that can hold one that it reads, so that a
packed row costs about what its clips cost, and frames that read no later ones about half. Written here because JAX's
own (jax.experimental.pallas.ops.gpu.attention) has one list of segments for queries and keys, visits all blocks, and
has no backward for a part of the keys.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from vdit.dist.mesh import platform
from vdit.nn.attention.kernel import FLOOR, K_PADDING, MASKED, Q_PADDING, pad_tokens, reads, safe_lse
from vdit.types import Array

# Blocks of 16-bit types; float32 takes half, so that they fit the shared memory. Heads wider than WIDEST_TRITON_HEAD
# (`choose_kernel`) do not fit at all.
Q_BLOCK, K_BLOCK = 128, 64
LOG2E = math.log2(math.e)  # a GPU has exp2, and makes exp of it


def forward(
    q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, q_from: Array | None = None
) -> tuple[Array, Array]:
    """Output, in q's type, and log-sum-exp: see vdit/nn/attention/kernel.py."""
    n, d = q.shape[2:]
    blocks, (q, k, v, q_bounds, k_ids) = _padded(q, k, v, q_ids, k_ids, q_from)
    visits = _blocks_to_visit(q_bounds, (k_ids,), *blocks)
    query, keys = _block_of(q.shape, blocks[0]), _all_of(k.shape)
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, block=blocks[1], scale=d**-0.5 * LOG2E),
        grid=(q.shape[2] // blocks[0], *q.shape[:2]),
        in_specs=[*_scalars(2), query.values, keys.values, keys.values, (query.ids,) * len(q_bounds), keys.ids],
        out_specs=[query.values, query.number],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)],
        **_options("attention_forward"),
    )(*visits, q, k, v, q_bounds, k_ids)
    return out[:, :, :n, :d], lse[:, :, :n]


def backward(
    q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, lse: Array, delta: Array, do: Array,
    q_from: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Gradients of q, k and v, in their types: see vdit/nn/attention/kernel.py."""
    (n, d), m = q.shape[2:], k.shape[2]
    blocks, (q, k, v, q_bounds, k_ids) = _padded(q, k, v, q_ids, k_ids, q_from, backward=True)
    do = _pad_head(pad_tokens(do.astype(q.dtype), blocks[0], 2))
    lse, delta = (pad_tokens(x, blocks[0], 2) for x in (safe_lse(lse) * LOG2E, delta))
    arrays = q, k, v, q_bounds, k_ids, lse, delta, do

    def call(kernel, name, visits, query, keys, out, like):
        return pl.pallas_call(
            functools.partial(kernel, scale=d**-0.5 * LOG2E),
            grid=(visits[0].shape[1], *q.shape[:2]),
            in_specs=[
                *_scalars(2), query.values, keys.values, keys.values, (query.ids,) * len(q_bounds), keys.ids,
                query.number, query.number, query.values,
            ],
            out_specs=[out.values] * len(like),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
            **_options(name),
        )(*visits, *arrays)  # fmt: skip

    part, whole = _block_of(q.shape, blocks[0]), _all_of(k.shape)
    dq_kernel = functools.partial(_dq_kernel, block=blocks[1])
    visits = _blocks_to_visit(q_bounds, (k_ids,), *blocks)
    (dq,) = call(dq_kernel, "attention_dq", visits, part, whole, part, [q])
    part, whole = _block_of(k.shape, blocks[1]), _all_of(q.shape)
    dkv_kernel = functools.partial(_dkv_kernel, block=blocks[0])
    visits = _blocks_to_visit((k_ids,), q_bounds, *reversed(blocks))
    dk, dv = call(dkv_kernel, "attention_dkv", visits, whole, part, part, [k, v])
    return dq[:, :, :n, :d], dk[:, :, :m, :d], dv[:, :, :m, :d]


def _forward_kernel(first, end, q, k, v, q_bounds, k_ids, out, lse, *, block: int, scale: float):
    queries, clips = q[...], [x[...] for x in q_bounds]

    def step(i, carry):
        acc, top, total = carry
        here = pl.ds(i * block, block)
        scores = _scores(queries, k[here, :], clips, k_ids[here], scale)
        new = jnp.maximum(top, jnp.max(scores, 1))
        e, shrink = jnp.exp2(scores - new[:, None]), jnp.exp2(top - new)
        acc = acc * shrink[:, None] + _product(e.astype(v.dtype), v[here, :])
        return acc, new, total * shrink + jnp.sum(e, 1)

    rows = queries.shape[:1]
    start = jnp.zeros(queries.shape, jnp.float32), jnp.full(rows, FLOOR), jnp.zeros(rows, jnp.float32)
    acc, top, total = jax.lax.fori_loop(first[...], end[...], step, start)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    out[...] = (acc / total[:, None]).astype(out.dtype)
    lse[...] = jnp.where(some, (top + jnp.log2(total)) / LOG2E, MASKED)


def _dq_kernel(first, end, q, k, v, q_bounds, k_ids, lse, delta, do, dq, *, block: int, scale: float):
    queries, sums, deltas, dos = (x[...] for x in (q, lse, delta, do))
    clips = [x[...] for x in q_bounds]

    def step(i, acc):
        here = pl.ds(i * block, block)
        keys = k[here, :]
        p = jnp.exp2(_scores(queries, keys, clips, k_ids[here], scale) - sums[:, None])
        ds = p * (_product(dos, v[here, :].T) - deltas[:, None])
        return acc + _product(ds.astype(keys.dtype), keys)

    acc = jax.lax.fori_loop(first[...], end[...], step, jnp.zeros(queries.shape, jnp.float32))
    dq[...] = (acc * (scale / LOG2E)).astype(dq.dtype)


def _dkv_kernel(first, end, q, k, v, q_bounds, k_ids, lse, delta, do, dk, dv, *, block: int, scale: float):
    keys, values, clips = k[...], v[...], k_ids[...]

    def step(i, carry):
        dk, dv = carry
        here = pl.ds(i * block, block)
        queries, dos = q[here, :], do[here, :]
        scores = _scores(queries, keys, [x[here] for x in q_bounds], clips, scale)
        p = jnp.exp2(scores - lse[here][:, None])
        ds = p * (_product(dos, values.T) - delta[here][:, None])
        return dk + _product(ds.astype(queries.dtype).T, queries), dv + _product(p.astype(dos.dtype).T, dos)

    zeros = jnp.zeros(keys.shape, jnp.float32)
    acc_k, acc_v = jax.lax.fori_loop(first[...], end[...], step, (zeros, zeros))
    dk[...] = (acc_k * (scale / LOG2E)).astype(dk.dtype)
    dv[...] = acc_v.astype(dv.dtype)


def _scores(q, k, q_bounds, k_ids, scale):
    q_ids, q_from = (*(x[:, None] for x in q_bounds), None)[:2]
    return jnp.where(reads(q_ids, k_ids[None, :], q_from), _product(q, k.T) * scale, MASKED)


def _product(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


class _Tokens(NamedTuple):
    """Where a program of the grid (block, row, head) finds its values [b h n d], numbers [b h n] and clips [b n]."""

    values: pl.BlockSpec
    number: pl.BlockSpec
    ids: pl.BlockSpec


def _block_of(shape: tuple[int, ...], size: int) -> _Tokens:
    """One block of tokens: that of the program's number."""
    return _tokens(size, shape[3], lambda i: i)


def _all_of(shape: tuple[int, ...]) -> _Tokens:
    """All tokens of the row, of which the program reads the blocks it wants."""
    return _tokens(shape[2], shape[3], lambda i: 0)


def _tokens(size: int, d: int, at) -> _Tokens:
    return _Tokens(
        pl.BlockSpec((None, None, size, d), lambda i, b, h: (b, h, at(i), 0)),
        pl.BlockSpec((None, None, size), lambda i, b, h: (b, h, at(i))),
        pl.BlockSpec((None, size), lambda i, b, h: (b, at(i))),
    )


def _scalars(count: int) -> list[pl.BlockSpec]:
    return [pl.BlockSpec((None, None), lambda i, b, h: (b, i))] * count


def _options(name: str) -> dict[str, object]:
    return {
        "name": name,
        "compiler_params": plgpu.CompilerParams(num_warps=4, num_stages=2),
        "interpret": platform() != "gpu",
    }


def _padded(q, k, v, q_ids, k_ids, q_from, backward: bool = False):
    """Block sizes, and arrays with tokens and heads that they divide; (q_ids, q_from), or (q_ids,), as one."""
    halves = int(q.dtype.itemsize > 2) + int(backward)
    q_block, k_block = Q_BLOCK >> halves, K_BLOCK >> int(q.dtype.itemsize > 2)
    q = _pad_head(pad_tokens(q, q_block, 2))
    k, v = (_pad_head(pad_tokens(x, k_block, 2)) for x in (k, v))
    q_bounds = tuple(pad_tokens(x, q_block, 1, Q_PADDING) for x in (q_ids, q_from) if x is not None)
    return (q_block, k_block), (q, k, v, q_bounds, pad_tokens(k_ids, k_block, 1, K_PADDING))


def _pad_head(x: Array) -> Array:
    """Triton's blocks have sizes that are powers of two."""
    return pad_tokens(x, max(16, pl.next_power_of_2(x.shape[3])), 3)


def _blocks_to_visit(
    clips: tuple[Array, ...], others: tuple[Array, ...], block: int, other_block: int
) -> tuple[Array, Array]:
    """The first block of `others` of which a block of `clips` can read or be read, and the end: int32 [b blocks].

    clips, others: the clips of keys, or the last and first that queries read.
    """
    low, high = (f(x.reshape(x.shape[0], -1, 1, block), -1) for f, x in ((jnp.min, clips[-1]), (jnp.max, clips[0])))
    least, most = (
        f(x.reshape(x.shape[0], 1, -1, other_block), -1) for f, x in ((jnp.min, others[-1]), (jnp.max, others[0]))
    )
    meet = (low <= most) & (least <= high)
    index = jnp.arange(meet.shape[2], dtype=jnp.int32)
    first = jnp.min(jnp.where(meet, index, meet.shape[2]), 2)
    end = jnp.max(jnp.where(meet, index + 1, 0), 2)
    return first, end
