"""What a causal transformer keeps of finished frames: keys and values, so that later frames need no more of them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdit.dist.rules import constrain, num_shards
from vdit.reprs import short_repr
from vdit.types import Array

KEYS = ("batch", "tokens", "heads", None)
STACKED = ("layers", *KEYS)
MARKS = ("batch", "tokens")


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Tokens whose frames are finished, as the tokens of later frames read them.

    keys, values: [L b m heads head_dim], of each layer, in the model's type; keys are normed and rotated already.
    time: int32 [b m], the frame of a token, as Row.position counts. clip: int32 [b m]; 0 marks padding.
    """

    keys: Array
    values: Array
    time: Array
    segment_ids: Array

    def then(self, more: KVCache) -> KVCache:
        """This and later tokens of the same rows: [L b m ...], [L b n ...] -> [L b m+n ...], in any order."""
        return KVCache(
            keys=beside(self.keys, more.keys, STACKED),
            values=beside(self.values, more.values, STACKED),
            time=beside(self.time, more.time, MARKS),
            segment_ids=beside(self.segment_ids, more.segment_ids, MARKS),
        )


class Reading(NamedTuple):
    """Who reads whom in self-attention: clips of queries and keys, int [b n] and [b m]; times of both, or None."""

    segment_ids: Array
    k_segment_ids: Array
    time: Array | None = None
    k_time: Array | None = None


def reading(segment_ids: Array, time: Array | None, past: KVCache | None) -> Reading:
    """Tokens read their clip; with times, what is not later of it, and of the past."""
    if past is None:
        return Reading(segment_ids, segment_ids, time, time)
    return Reading(segment_ids, beside(past.segment_ids, segment_ids, MARKS), time, beside(past.time, time, MARKS))


def beside(x: Array, more: Array, names: tuple[str | None, ...]) -> Array:
    """Tokens of both in one array, along the axis that is named so.

    Which token is which is told by marks that lie alike, so their order is free: where devices share tokens out, each
    puts its own side by side, and nothing is sent.
    """
    axis, shares = names.index("tokens"), num_shards("tokens")
    x, more = constrain(x, names), constrain(more, names)
    if shares == 1 or x.shape[axis] % shares or more.shape[axis] % shares:
        return jnp.concatenate([x, more], axis)
    cut = lambda y: y.reshape(*y.shape[:axis], shares, -1, *y.shape[axis + 1 :])  # noqa: E731
    both = jnp.concatenate([cut(x), cut(more)], axis + 1)
    return constrain(both.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :]), names)
