"""What a transformer keeps from call to call: keys and values of finished frames, and what its blocks added.

A causal transformer's later frames read the keys and values of finished frames (KVCache), which need not be computed
again. Between sampling steps, what blocks add to the tokens changes slowly, so that it can be used again (Residuals):
the first block always runs. How much it adds is compared with what it added in the call before (relative L1), and the
changes are summed up; while the sum is below a limit, the other blocks do not run, and what they added when they last
did is added again. The sum is TeaCache's (Liu et al. 2024), the first block as the sign that of the first-block cache
(ParaAttention, 2024). The result is not that of all blocks: the limit bounds the sign, not the error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdit.dist.rules import constrain, num_shards
from vdit.reprs import short_repr
from vdit.types import Array

ACTIVATION = ("batch", "tokens", "embed")
KEYS = ("batch", "tokens", "heads", None)
STACKED = ("layers", *KEYS)
MARKS = ("batch", "tokens")


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Tokens whose frames are finished, as the tokens of later frames read them.

    keys, values: [L b m heads head_dim], of each layer, in the model's type; keys are normed and rotated already.
    time: int32 [b m], the frame of a token, as Row.position counts. segment_ids: int32 [b m]; 0 marks padding.
    """

    keys: Array
    values: Array
    time: Array
    segment_ids: Array

    def append(self, more: KVCache) -> KVCache:
        """This and later tokens of the same rows: [L b m ...], [L b n ...] -> [L b m+n ...], in any order."""
        return KVCache(
            keys=concat_tokens(self.keys, more.keys, STACKED),
            values=concat_tokens(self.values, more.values, STACKED),
            time=concat_tokens(self.time, more.time, MARKS),
            segment_ids=concat_tokens(self.segment_ids, more.segment_ids, MARKS),
        )


class AttentionIds(NamedTuple):
    """Who reads whom in self-attention: segment ids and times of queries and keys, int [b n] and [b m].

    time, k_time: None where tokens read later frames too.
    """

    segment_ids: Array
    k_segment_ids: Array
    time: Array | None = None
    k_time: Array | None = None


def attention_ids(segment_ids: Array, time: Array | None, cache: KVCache | None) -> AttentionIds:
    """Each token attends within its segment; with times, only to frames at or before its own, cached ones too."""
    if cache is None:
        return AttentionIds(segment_ids, segment_ids, time, time)
    all_ids = concat_tokens(cache.segment_ids, segment_ids, MARKS)
    return AttentionIds(segment_ids, all_ids, time, concat_tokens(cache.time, time, MARKS))


def concat_tokens(x: Array, more: Array, names: tuple[str | None, ...]) -> Array:
    """Tokens of both in one array, along the axis that is named so.

    Attention depends on segment ids and times, not on order. So each device may concatenate its local shards without
    communication.
    """
    axis, shares = names.index("tokens"), num_shards("tokens")
    x, more = constrain(x, names), constrain(more, names)
    if shares == 1 or x.shape[axis] % shares or more.shape[axis] % shares:
        return jnp.concatenate([x, more], axis)
    cut = lambda y: y.reshape(*y.shape[:axis], shares, -1, *y.shape[axis + 1 :])  # noqa: E731
    both = jnp.concatenate([cut(x), cut(more)], axis + 1)
    return constrain(both.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :]), names)


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Residuals:
    """What is kept from call to call, in the model's type.

    first: [b n d], what the first block added in the last call. rest: [b n d], what the others added when they last
    ran. change: float32 [], how much `first` changed since they did; infinite where they never did.
    """

    first: Array
    rest: Array
    change: Array

    @classmethod
    def empty(cls, rows: int, tokens: int, width: int, dtype: str) -> Residuals:
        """Before the first call."""
        zeros = constrain(jnp.zeros((rows, tokens, width), dtype), ACTIVATION)
        return cls(first=zeros, rest=zeros, change=jnp.float32(jnp.inf))


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCall:
    """When one call's blocks run. residuals: of the call before. limit: float32 [], the least change at which all run.

    weight: [b n], how much tokens count in the change.
    """

    residuals: Residuals
    limit: Array
    weight: Array


def run_blocks(
    run: Callable[[Array | int, Array], Array], depth: int, x: Array, call: BlockCall, *, scan: bool
) -> tuple[Array, Residuals]:
    """All blocks, or the first one and what is kept of the others: x [b n d] -> [b n d], and what is kept then.

    run(i, x): block i of `depth`. scan: i is traced, so that the others are compiled once.
    """
    kept = call.residuals
    y = run(0, x)
    first = constrain(y - x, ACTIVATION)
    change = kept.change + _relative_change(first, kept.first, call.weight)

    def all_run() -> tuple[Array, Array, Array]:
        others = range(1, depth)
        z = jax.lax.fori_loop(1, depth, run, y) if scan else functools.reduce(lambda z, i: run(i, z), others, y)
        return z, constrain(z - y, ACTIVATION), jnp.zeros_like(change)

    x, rest, change = jax.lax.cond(change < call.limit, lambda: (y + kept.rest, kept.rest, change), all_run)
    return constrain(x, ACTIVATION), Residuals(first=first, rest=rest, change=change)


def _relative_change(new: Array, old: Array, weight: Array) -> Array:
    """Sum of |new - old| over that of |old|, of the tokens that count: float32 []."""
    size = lambda x: jnp.sum(weight[..., None] * jnp.abs(x.astype(jnp.float32)))  # noqa: E731
    return size(new.astype(jnp.float32) - old.astype(jnp.float32)) / jnp.maximum(size(old), 1e-30)
