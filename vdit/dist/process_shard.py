"""Which rows of a batch each host reads.

The batch is split over the mesh's batch axes into groups of devices. Hosts whose devices hold the same groups (two
hosts that share the tokens of a row, for instance) read the same rows; others read different ones. What each reads
is fixed by a HostShare, so that a global batch is the same batch whatever the number of hosts: share `index` of
`count` gives rows [index * B / count, (index + 1) * B / count) of it.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
from jax.sharding import Mesh

from vdit.dist.rules import RULES
from vdit.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class HostShare:
    """One share of `count` equal shares of every batch.

    blocks: the batch groups of the mesh that this host's devices hold, of count * len(blocks) in all; None: the
    index-th block. A TPU's mesh follows the wires, so a host's blocks need not be neighbours in the global array
    (a 2x2 host of a 4x4 slice holds groups 0, 1, 4, 5): its rows go to its own blocks all the same, and the global
    array is then a permutation of the batch in the order of the data.
    """

    index: int = 0
    count: int = 1
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"share {self.index} of {self.count}: the index must be 0 to {self.count - 1}")

    def rows(self, size: int) -> tuple[int, int]:
        """[first, last): the rows that the share gives of a batch of `size` rows, in the order of the data."""
        if size % self.count:
            raise ConfigError(f"a batch of {size} rows cannot be shared by {self.count} groups of hosts: "
                              f"make it a multiple of {self.count}")
        each = size // self.count
        return self.index * each, (self.index + 1) * each

    def local(self, rows: slice, size: int) -> slice:
        """Where rows of a global array [size ...], as one device asks for them, lie in this host's [size / count ...].

        rows: within the blocks of this host, as `jax.make_array_from_callback` asks.
        """
        first, last, _ = rows.indices(size)
        blocks = self.blocks or (self.index,)
        own = size // (self.count * len(blocks))
        at = {block: place for place, block in enumerate(blocks)}
        places = [at.get(block) for block in range(first // own, -(-last // own))]
        if None in places or any(b - a != 1 for a, b in itertools.pairwise(places)):
            raise ConfigError(f"rows {first} to {last} of {size} are not those of share {self.index} of {self.count} "
                              f"(blocks {blocks} of {own} rows): split the batch over {RULES['batch']}")
        start = places[0] * own + first % own
        return slice(start, start + last - first)


def host_share(mesh: Mesh, process: int | None = None) -> HostShare:
    """The share of one host (this one if `process` is None) of batches over `mesh`.

    mesh: its devices need only a `process_index`, so that a topology's mesh will do. Refused are meshes where hosts
    hold batch groups in part the same, or in different numbers: no equal shares exist then.
    """
    process = jax.process_index() if process is None else process
    order = [mesh.axis_names.index(axis) for axis in RULES["batch"] if axis in mesh.axis_names]
    grid = np.moveaxis(mesh.devices, order, range(len(order)))
    groups = grid.reshape(int(np.prod(grid.shape[: len(order)])), -1)
    held: dict[int, set[int]] = {}
    for group, devices in enumerate(groups):
        for device in devices:
            held.setdefault(device.process_index, set()).add(group)
    if process not in held:
        raise ConfigError(f"host {process} holds no device of the mesh {dict(mesh.shape)}: give the mesh all devices")
    blocks = sorted({tuple(sorted(groups)) for groups in held.values()})
    if sum(map(len, blocks)) != len(groups) or len({len(block) for block in blocks}) > 1:
        raise ConfigError(f"mesh {dict(mesh.shape)}: its hosts hold the batch groups {_shown(blocks)}; each group must "
                          "be held by the same hosts as its neighbours on them: choose data * fsdp so that hosts hold "
                          "whole groups, or groups whole hosts")
    own = tuple(sorted(held[process]))
    return HostShare(blocks.index(own), len(blocks), own)


def _shown(blocks: list[tuple[int, ...]]) -> str:
    """The first two that differ in length or share a group only in part."""
    for a in blocks:
        for b in blocks:
            if a != b and (len(a) != len(b) or set(a) & set(b)):
                return f"{list(a)} and {list(b)}"
    return str([list(block) for block in blocks])
