"""Which layout trains fastest among those that fit the memory: estimate all, compile the best, rank by the compiled.

The estimates only choose what is compiled, and in which order. Bytes of the state are exact (the table of shardings).
Activations are one residual stream a layer, and what the remat policy keeps beside it. Times are arithmetic plus the
bytes that FSDP gathers and that sequence and tensor parallelism exchange, each at the rate of one ring.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax

from vdit.dist.mesh import AXES, MeshConfig
from vdit.dist.rules import partition_spec
from vdit.errors import ConfigError, VditError
from vdit.plan.plan import ProgramPlan, plan
from vdit.plan.programs import train_flops, unboxed
from vdit.plan.topology import GIB, Topology
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
            backbone=experiment.backbone.with_remat(self.remat),
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
        if experiment.data.row_tokens % sequence or experiment.backbone.heads % tensor or data % topology.slices:
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
        num_shards = math.prod(sizes[axis] for entry in taken for axis in entry)
        return 4 * leaf.size // num_shards

    return copies * sum(jax.tree.leaves(jax.tree.map(on_one, shapes, names)))


def _estimate(experiment, topology, mesh: MeshConfig, remat: str, pieces: int, state: int, flops: float) -> Candidate:
    backbone, data, chip = experiment.backbone, experiment.data, topology.chip
    rows = experiment.dit_train.batch_size // (mesh.data * mesh.fsdp)  # on a device, in a step
    tokens = rows * data.row_tokens / mesh.sequence
    stream = tokens / pieces * backbone.width * 2
    activations = stream * (backbone.depth * _KEPT[remat] / mesh.tensor ** (remat in ("none", "dots")) + _WORKING)
    parameters = (16 if backbone.uses_text else 8) * backbone.width**2 * backbone.depth
    gathered = parameters / mesh.tensor * (1 - 1 / mesh.fsdp) * (3 * 2 + 4) * pieces
    gathered *= 2 if mesh.fsdp >= 64 else 1  # XLA then gathers by sums (tools/weak_scaling.py)
    summed = 8 * parameters / (mesh.fsdp * mesh.tensor) * (mesh.data > 1)
    exchanged = 10 * backbone.depth * tokens * backbone.width * 2 * (mesh.sequence > 1) / mesh.tensor
    reduced = 8 * backbone.depth * tokens * backbone.width * 2 * (mesh.tensor > 1)
    rate = 2 * chip.link / chip.cores
    seconds = flops * (3 + _AGAIN[remat]) / 3 / (topology.chips * chip.peak)
    seconds += (gathered + summed + exchanged * max(1, mesh.sequence / 16) + reduced) / rate
    needed, capacity = state + activations, chip.memory / chip.cores
    reason = None
    if needed > _LOOSE * capacity:
        reason = f"about {needed / GIB:.0f} GiB a device, state {state / GIB:.0f}: more than {capacity / GIB:.0f}"
    return Candidate(mesh=mesh, remat=remat, accumulation=pieces, seconds=seconds, bytes=needed, reason=reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate that was compiled. program: its training step; None where the compiler refused, with the reason."""

    candidate: Candidate
    program: ProgramPlan | None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        return self.program is not None and self.program.fits

    @property
    def seconds(self) -> float:
        """What trials are ranked by: nothing sent while anything is computed."""
        return self.program.seconds[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """trials: those that fit first, the fastest first. ruled_out: by estimate. left: not tried, for want of limit."""

    experiment: str
    topology: str
    trials: tuple[Trial, ...]
    ruled_out: tuple[Candidate, ...]
    left: tuple[Candidate, ...]

    @property
    def best(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.fits), None)


def search(
    experiment: Any,
    topology: Topology,
    *,
    limit: int = 12,
    jobs: int = 1,
    progress: Callable[[Trial | str], None] = lambda event: None,
) -> Search:
    """Compiles the training step in at most `limit` layouts, `jobs` at once, with the compiler's lesser effort.

    The first is the experiment's own, if its sizes fit the topology.

    progress: called with the name of each layout as it begins, and with its Trial when it is done.
    """
    if topology.chip is None:
        raise ConfigError(f"topology {topology.name}: a search ranks by time, and simulated devices have none")
    all_of_them = candidates(experiment, topology)
    own = _own(experiment, topology, all_of_them)
    hopeful = [one for one in all_of_them if one.reason is None and one != own]
    chosen = [one for one in (own,) if one] + spread(hopeful, limit - (own is not None))
    if not chosen:
        raise ConfigError(f"no layout of {experiment.name} on {topology.name} comes near to fitting: "
                          + (all_of_them[0].reason if all_of_them else
                             f"batch_size={experiment.dit_train.batch_size} and row_tokens do not divide"))  # fmt: skip

    def attempt(one: Candidate) -> Trial:
        progress(one.name)
        try:
            made = plan(one.of(experiment), topology, programs=("train",), effort="quick").programs[0]
            trial = Trial(candidate=one, program=made, reason=made.notes[0] if made.notes else None)
        except VditError as error:
            trial = Trial(candidate=one, program=None, reason=str(error))
        progress(trial)
        return trial

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        trials = list(pool.map(attempt, chosen))
    order = lambda trial: (not trial.fits, trial.seconds if trial.program and trial.program.times else 0)  # noqa: E731
    return Search(
        experiment=experiment.name,
        topology=topology.name,
        trials=tuple(sorted(trials, key=order)),
        ruled_out=tuple(one for one in all_of_them if one.reason is not None and one not in chosen),
        left=tuple(one for one in hopeful if one not in chosen),
    )


def _own(experiment: Any, topology: Topology, known: list[Candidate]) -> Candidate | None:
    """The candidate that is the experiment as it stands."""
    try:
        mesh = MeshConfig(**dict(zip(AXES, experiment.mesh.shape(topology.devices))))
    except ConfigError:
        return None
    mine = mesh, experiment.backbone.remat, experiment.dit_train.accumulation
    return next((one for one in known if (one.mesh, one.remat, one.accumulation) == mine), None)


def spread(ranked: list[Candidate], limit: int) -> list[Candidate]:
    """The first few, but no mesh more than twice as long as there are others: neighbours tell little more."""
    chosen: list[Candidate] = []
    for most in (2, len(ranked)):
        for one in ranked:
            same = sum(other.mesh == one.mesh for other in chosen)
            if len(chosen) < limit and one not in chosen and same < most:
                chosen.append(one)
    return sorted(chosen, key=ranked.index)
