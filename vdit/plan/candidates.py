"""Layouts of a training run that are worth compiling: meshes, remat and accumulation, by what a pencil tells.

The estimates only choose what is compiled, and in which order. Bytes of the state are exact (the table of shardings);
activations are one residual stream a layer, and what the remat policy keeps beside it; times are arithmetic plus the
bytes that FSDP gathers and sequence and tensor parallel exchange, each at one ring's rate.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax

from vdit.dist.mesh import AXES, MeshConfig
from vdit.dist.rules import partition_spec
from vdit.plan.chips import GIB
from vdit.plan.programs import train_flops, unboxed
from vdit.plan.topology import Topology
from vdit.train.state import logical_axes

REMAT = ("none", "dots", "attention", "full")
PIECES = (1, 2, 4, 8, 16)
# Residual streams [n d] of 2 bytes a layer that the backward finds, and how much of a forward pass it does again.
_KEPT = {"none": 60, "dots": 30, "attention": 2, "full": 1}
_WORKING = 120  # such streams at work in a block's backward: what the shipped pods need when compiled
_AGAIN = {"none": 0.0, "dots": 0.2, "attention": 0.6, "full": 1.0}
_LOOSE = 1.3  # how far an estimate of memory must be above the chip's to rule a layout out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout. seconds, bytes: the estimates. reason: why it is not worth compiling, or None."""

    mesh: MeshConfig
    remat: str
    accumulation: int
    seconds: float
    bytes: float
    reason: str | None = None

    @property
    def name(self) -> str:
        """fsdp=8 sequence=4, attention, 2 pieces."""
        sizes = " ".join(f"{axis}={getattr(self.mesh, axis)}" for axis in AXES if getattr(self.mesh, axis) > 1)
        pieces = "" if self.accumulation == 1 else f", {self.accumulation} pieces"
        return f"{sizes or 'one device'}, remat {self.remat}{pieces}"

    def of(self, experiment: Any) -> Any:
        """The experiment in this layout."""
        return dataclasses.replace(
            experiment,
            mesh=self.mesh,
            dit=dataclasses.replace(experiment.dit, remat=self.remat),
            dit_train=dataclasses.replace(experiment.dit_train, accumulation=self.accumulation),
        )


def candidates(experiment: Any, topology: Topology) -> list[Candidate]:
    """All layouts of the experiment's batch on the topology, the most promising first, then those ruled out."""
    boxed = jax.eval_shape(experiment.network.init, jax.random.key(0))
    shapes, names = unboxed(boxed), logical_axes(boxed)
    flops = train_flops(experiment)
    batch = experiment.dit_train.batch_size
    found = []
    for sizes in meshes(topology.devices):
        data, fsdp, sequence, tensor = sizes
        if experiment.data.row_tokens % sequence or experiment.dit.heads % tensor or data % topology.slices:
            continue
        state = _state_bytes(experiment, shapes, names, dict(zip(AXES, sizes)))
        for remat, pieces in itertools.product(REMAT, PIECES):
            if batch % (pieces * data * fsdp) == 0:
                found.append(_estimate(experiment, topology, MeshConfig(**dict(zip(AXES, sizes))), remat, pieces,
                                       state, flops))  # fmt: skip
    return sorted(found, key=lambda one: (one.reason is not None, one.seconds))


def meshes(devices: int) -> list[tuple[int, int, int, int]]:
    """All sizes of the four axes that multiply to `devices`."""
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    return [
        (devices // (fsdp * sequence * tensor), fsdp, sequence, tensor)
        for fsdp, sequence, tensor in itertools.product(divisors, repeat=3)
        if devices % (fsdp * sequence * tensor) == 0
    ]


def _state_bytes(experiment: Any, shapes: Any, names: Any, sizes: dict[str, int]) -> int:
    """Parameters, two moments and the average, float32, on one device."""
    copies = 3 + (experiment.dit_train.ema_decay is not None)

    def on_one(leaf, axes):
        spec, _ = partition_spec(axes or (None,) * leaf.ndim, leaf.shape, sizes)
        taken = [entry if isinstance(entry, tuple) else (entry,) for entry in spec if entry]
        ways = math.prod(sizes[axis] for entry in taken for axis in entry)
        return 4 * leaf.size // ways

    return copies * sum(jax.tree.leaves(jax.tree.map(on_one, shapes, names)))


def _estimate(experiment, topology, mesh: MeshConfig, remat: str, pieces: int, state: int, flops: float) -> Candidate:
    dit, data, chip = experiment.dit, experiment.data, topology.chip
    rows = experiment.dit_train.batch_size // (mesh.data * mesh.fsdp)  # on a device, in a step
    tokens = rows * data.row_tokens / mesh.sequence
    stream = tokens / pieces * dit.width * 2
    activations = stream * (dit.depth * _KEPT[remat] / mesh.tensor ** (remat in ("none", "dots")) + _WORKING)
    parameters = (8 if dit.text == "none" else 16) * dit.width**2 * dit.depth
    gathered = parameters / mesh.tensor * (1 - 1 / mesh.fsdp) * (3 * 2 + 4) * pieces
    gathered *= 2 if mesh.fsdp >= 64 else 1  # XLA then gathers by sums (tools/weak_scaling.py)
    summed = 8 * parameters / (mesh.fsdp * mesh.tensor) * (mesh.data > 1)
    exchanged = 10 * dit.depth * tokens * dit.width * 2 * (mesh.sequence > 1) / mesh.tensor
    reduced = 8 * dit.depth * tokens * dit.width * 2 * (mesh.tensor > 1)
    rate = 2 * chip.link / chip.cores
    seconds = flops * (3 + _AGAIN[remat]) / 3 / (topology.chips * chip.peak)
    seconds += (gathered + summed + exchanged * max(1, mesh.sequence / 16) + reduced) / rate
    needed, capacity = state + activations, chip.memory / chip.cores
    reason = None
    if needed > _LOOSE * capacity:
        reason = f"about {needed / GIB:.0f} GiB a device, state {state / GIB:.0f}: more than {capacity / GIB:.0f}"
    return Candidate(mesh=mesh, remat=remat, accumulation=pieces, seconds=seconds, bytes=needed, reason=reason)
