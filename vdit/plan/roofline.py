"""How long a program takes at the least: arithmetic, HBM, and the network, each at the chip's published rate.

Two times are reported. "overlapped" is the largest of the three: all of it at once, which nothing reaches. "serial" is
the larger of arithmetic and HBM, plus all of the network: nothing is sent while anything is computed. A good program
lies between them.

The network, with a payload of B bytes a device (vdit.dist.collectives) along mesh axes that lie along dimensions of the
torus (Austin et al., 2025, "How to Scale Your Model", part 3):
    all-gather, reduce-scatter, all-reduce: bytes sent / (link x ways), ways being 2 for each dimension that is a ring
        and 1 for each that is a line.
    all-to-all: what crosses the middle of a dimension of d chips, B d / (4 link ways), of its slowest dimension.
    collective-permute: one link, as each device sends to a neighbour; both directions of a ring where XLA has made it
        out of a matrix product (it sends halves both ways).
Axes are served one after the other. The two devices of a TPU7x share its links, and reach each other at six times a
link's rate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from vdit.dist.collectives import Collective
from vdit.plan.topology import Topology

BETWEEN_CORES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
    """What lies between the devices along some mesh axes.

    rings, lines: sizes of the torus's dimensions that they run along, closed or not. slices: how many they cross.
    """

    rings: tuple[int, ...] = ()
    lines: tuple[int, ...] = ()
    slices: int = 1


def path(topology: Topology, mesh: Mesh, axes: tuple[str, ...]) -> Path:
    """The dimensions of the torus along which the devices of a group differ."""
    index = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    devices = mesh.devices[index].reshape(-1)
    coordinates = np.asarray([device.coords for device in devices])
    rings, lines = [], []
    for dimension, whole in enumerate(topology.shape):
        size = len(set(coordinates[:, dimension].tolist())) if dimension < coordinates.shape[1] else 1
        if size > 1:
            closed = size == whole and size % topology.chip.closes == 0
            (rings if closed else lines).append(size)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    return Path(rings=tuple(rings), lines=tuple(lines), slices=slices)


def network_seconds(topology: Topology, found: Path, one: Collective) -> float:
    """The time of one kind of collective over one set of mesh axes, by the module's rules."""
    chip = topology.chip
    link = chip.link / chip.cores
    if found.slices > 1:
        # Each chip hands on what its slice has summed or lacks: the other slices' share goes over the data center's
        # network, the rest within the slice at a rate that does not limit.
        return one.bytes / (chip.dcn / chip.cores)
    if not found.rings and not found.lines:
        return one.bytes / (BETWEEN_CORES * chip.link)
    ways = 2 * len(found.rings) + len(found.lines)
    if one.kind == "all-to-all":
        cuts = [size / 2 for size in found.rings] + list(found.lines)
        return one.payload * max(cuts) / (4 * link)
    if one.kind == "collective-permute":
        both = 2 if found.rings and "dot_general" in one.where else 1
        return one.bytes / (both * link)
    return one.bytes / (ways * link)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Collectives of one kind over one set of mesh axes: bytes that a device sends, how often, and how long."""

    kind: str
    axes: tuple[str, ...]
    bytes: float
    count: int
    seconds: float | None


def traffic(topology: Topology, mesh: Mesh, collectives: Iterable[Collective]) -> tuple[Traffic, ...]:
    """One line for each kind and set of axes, the longest first. No seconds for simulated devices."""
    sums: dict[tuple, list] = {}
    paths: dict[tuple, Path] = {}
    for one in collectives:
        line = sums.setdefault((one.kind, one.axes), [0.0, 0, 0.0])
        line[0] += one.bytes
        line[1] += one.count
        if topology.chip is not None:
            if one.axes not in paths:
                paths[one.axes] = path(topology, mesh, one.axes)
            line[2] += network_seconds(topology, paths[one.axes], one)
    lines = [
        Traffic(kind=kind, axes=axes, bytes=sent, count=count, seconds=took if topology.chip else None)
        for (kind, axes), (sent, count, took) in sums.items()
    ]
    return tuple(sorted(lines, key=lambda line: (-(line.seconds or 0), -line.bytes)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one run of a program on one device."""

    arithmetic: float
    hbm: float
    network: float

    @property
    def overlapped(self) -> float:
        return max(self.arithmetic, self.hbm, self.network)

    @property
    def serial(self) -> float:
        return max(self.arithmetic, self.hbm) + self.network

    @property
    def bound(self) -> str:
        """Which of the three is the longest."""
        return max(("arithmetic", "hbm", "network"), key=lambda name: getattr(self, name))


def times(topology: Topology, *, flops: float, hbm: float, lines: Iterable[Traffic]) -> Times:
    """flops: of all devices, evenly shared. hbm: bytes of one device. lines: its network."""
    chip = topology.chip
    return Times(
        arithmetic=flops / topology.chips / chip.peak,
        hbm=hbm / (chip.bandwidth / chip.cores),
        network=math.fsum(line.seconds for line in lines),
    )
