"""Attention over rows whose tokens the devices of a mesh axis share, inside `shard_map`.

Two ways, and their product. Heads for tokens (Ulysses; Jacobs et al. 2023): an all-to-all gives each device all tokens
of some heads, another takes the result back; a device sends 4/s of a row's q. Ring (Liu et al. 2023): keys and values
go round, and each device merges what it reads from each part; a device sends about 2 of a row's q, while it computes.
With fewer heads than devices, groups of neighbours exchange heads, and the groups form rings.

In the ring's backward the queries go round, with what their gradient has collected: keys' gradients, float32 and
twice as many, stay where they are. Except for clip ids, nothing larger than a device's
part of the row is saved or gathered.
"""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType

import jax
import jax.numpy as jnp

from vdit.errors import ConfigError
from vdit.nn.attention.kernel import MASKED, merge
from vdit.types import Array

WAYS = ("auto", "ulysses", "ring")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How the devices of a mesh axis share the tokens of a row: `ring` groups of `group` neighbours.

    Neighbours exchange heads for tokens, groups pass their keys round.
    """

    axis: tuple[str, ...]
    ring: int
    group: int

    def groups(self) -> list[list[int]] | None:
        """Positions on the axis of the members of each group; None where all are of one."""
        if self.ring == 1:
            return None
        return [[g * self.group + i for i in range(self.group)] for g in range(self.ring)]

    def onward(self, tree):
        """Each array goes to the same member of the next group."""
        size = self.ring * self.group
        pairs = [(i, (i + self.group) % size) for i in range(size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), tree)

    def tokens_of_heads(self, x: Array) -> Array:
        """Some tokens of all heads -> more tokens of some heads: `[b h n ...] -> [b h/group n*group ...]`."""
        return self._exchange(x, 1, 2)

    def heads_of_tokens(self, x: Array) -> Array:
        """The way back."""
        return self._exchange(x, 2, 1)

    def _exchange(self, x: Array, give: int, take: int) -> Array:
        if self.group == 1:
            return x
        return jax.lax.all_to_all(x, self.axis, give, take, tiled=True, axis_index_groups=self.groups())

    def group_ids(self, ids: Array | None) -> Array | None:
        """Clip ids of the group's tokens: `[b n] -> [b n*group]`."""
        if self.group == 1 or ids is None:
            return ids
        return jax.lax.all_gather(ids, self.axis, axis=1, tiled=True, axis_index_groups=self.groups())


def make_split(way: str, axis: tuple[str, ...], size: int, heads: int) -> Split:
    """The Split of the devices that share the tokens of a row.

    Args:
        way: "ulysses" only exchanges heads, "ring" only passes keys on; "auto" exchanges as far as the heads suffice.
        axis: the mesh axes of the tokens.
        size: devices along these axes.
        heads: heads that each device holds.

    Returns:
        The groups that exchange heads and the ring of these groups.

    Raises:
        ConfigError: `way` is unknown, or "ulysses" does not divide the heads.
    """
    if way not in WAYS:
        raise ConfigError(f"sequence_parallel={way!r} is unknown: use one of {list(WAYS)}")
    group = 1 if way == "ring" else math.gcd(heads, size)
    if way == "ulysses" and group != size:
        raise ConfigError(
            f"sequence_parallel='ulysses' shares {heads} heads out over {size} devices: make the heads of a device"
            " a multiple of mesh.sequence, or use 'auto' or 'ring'"
        )
    return Split(axis=axis, ring=size // group, group=group)


def forward(
    kernel: ModuleType, split: Split, q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array,
    q_from: Array | None,
) -> tuple[Array, tuple[Array | None, ...]]:  # fmt: skip
    """Attention of a device's own queries to the keys of all devices of the axis.

    Args:
        kernel: module of the attention kernel (vdit/nn/attention/kernel.py).
        split: the devices.
        q: [b h n d], this device's queries.
        k: [b h n d], this device's keys.
        v: [b h n d], this device's values.
        q_ids: int32 [b n].
        k_ids: int32 [b n].
        q_from: int32 [b n], or None.

    Returns:
        (output [b h n d] in the dtype of q, what `backward` needs).
    """
    q, k, v = (split.tokens_of_heads(x) for x in (q, k, v))
    q_ids, k_ids, q_from = (split.group_ids(ids) for ids in (q_ids, k_ids, q_from))
    out, lse = _ring_forward(kernel, split, q, k, v, q_ids, k_ids, q_from)
    return split.heads_of_tokens(out.astype(q.dtype)), (q, k, v, q_ids, k_ids, q_from, lse)


def backward(
    kernel: ModuleType, split: Split, saved: tuple[Array | None, ...], delta: Array, do: Array
) -> tuple[Array, Array, Array]:
    """Gradients of this device's q, k and v.

    Args:
        kernel: as in `forward`.
        split: as in `forward`.
        saved: the second result of `forward`.
        delta: float32 [b h n], see `delta_of`.
        do: [b h n d], gradient of the output.

    Returns:
        (dq, dk, dv), each [b h n d] in the dtype of its input.
    """
    q, k, v, q_ids, k_ids, q_from, lse = saved
    delta, do = split.tokens_of_heads(delta), split.tokens_of_heads(do)
    grads = _ring_backward(kernel, split, (q, q_ids, q_from, lse, delta, do), (k, v, k_ids))
    return tuple(split.heads_of_tokens(g.astype(x.dtype)) for g, x in zip(grads, (q, k, v)))


def _ring_forward(kernel, split, q, k, v, q_ids, k_ids, q_from) -> tuple[Array, Array]:
    if split.ring == 1:
        return kernel.forward(q, k, v, q_ids, k_ids, q_from)

    def step(carry, _):
        keys, out, lse = carry
        k, v, k_ids = keys
        coming = split.onward(keys)  # asked for first: it travels while this part is computed
        more = kernel.forward(q, k, v, q_ids, k_ids, q_from)
        return (coming, *merge(out, lse, *more)), None

    start = (k, v, k_ids), jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED)
    ((k, v, k_ids), out, lse), _ = jax.lax.scan(step, start, length=split.ring - 1)
    return merge(out, lse, *kernel.forward(q, k, v, q_ids, k_ids, q_from))


def _ring_backward(kernel, split, queries, keys) -> list[Array]:
    k, v, k_ids = keys

    def part(queries):
        q, q_ids, q_from, lse, delta, do = queries
        grads = kernel.backward(q, k, v, q_ids, k_ids, lse, delta, do, q_from)
        return [g.astype(jnp.float32) for g in grads]

    if split.ring == 1:
        return part(queries)

    def step(carry, _):
        queries, dq, dk, dv = carry
        coming, dq = split.onward((queries, dq))
        more = part(queries)
        return (coming, dq + more[0], dk + more[1], dv + more[2]), None

    start = split.onward(queries), *part(queries)
    (queries, dq, dk, dv), _ = jax.lax.scan(step, start, length=split.ring - 2)
    dq = split.onward(dq)
    more = part(queries)
    return [split.onward(dq + more[0]), dk + more[1], dv + more[2]]
