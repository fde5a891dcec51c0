"""Which layout trains fastest among those that fit: the best candidates compiled, and ranked by what that tells."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

from vdit.dist.mesh import AXES, MeshConfig
from vdit.errors import ConfigError, VditError
from vdit.plan.candidates import Candidate, candidates
from vdit.plan.plan import ProgramPlan
from vdit.plan.run import plan
from vdit.plan.topology import Topology


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
    mine = mesh, experiment.dit.remat, experiment.dit_train.accumulation
    return next((one for one in known if (one.mesh, one.remat, one.accumulation) == mine), None)


def spread(ranked: list[Candidate], limit: int) -> list[Candidate]:
    """The first few, but no mesh more than twice as long as there are others: neighbours tell little anew."""
    chosen: list[Candidate] = []
    for most in (2, len(ranked)):
        for one in ranked:
            same = sum(other.mesh == one.mesh for other in chosen)
            if len(chosen) < limit and one not in chosen and same < most:
                chosen.append(one)
    return sorted(chosen, key=ranked.index)
