"""The best step of a run by one figure: kept beside the newest ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from vdit.checkpoint.agree import on_first
from vdit.checkpoint.checksums import is_finalized
from vdit.checkpoint.files import Warn, steps_in
from vdit.checkpoint.saver import Checkpointer
from vdit.errors import CheckpointError, reason
from vdit.paths import MIB, AnyPath, read_json, write_atomic

BEST = "best.json"  # beside the steps: {"metric": name, "values": {step: value}, "best": step}


class BestStep:
    """Protects the best of the saved steps from being deleted (`Checkpointer.protected`).

    The values of steps that are on disk are kept in best.json. A run that is killed while its best step is being saved
    goes on with the one that was best before.

    Args:
        checkpointer: of the run.
        metric: the figure.
        lowest: whether the lowest value is the best, else the highest.
        warn: takes a line when best.json cannot be written; the run goes on.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str, *, lowest: bool = True, warn: Warn):
        self._checkpointer, self._metric, self._lowest, self._warn = checkpointer, metric, lowest, warn
        self._file = checkpointer.directory / BEST
        self._told = False
        values = on_first(lambda: _read(self._file, metric))
        self._values = {int(step): value for step, value in values.items()}
        self._protect()

    def take(self, step: int, figures: Mapping[str, float]) -> bool:
        """Takes what was measured after `step` steps; returns whether that is the best so far, to be saved now.

        Raises:
            CheckpointError: the metric is not among the figures.
        """
        if self._metric not in figures:
            known = ", ".join(figures) or "none"
            raise CheckpointError(f"best_metric={self._metric!r}: is not measured; name one of: {known}")
        value = float(figures[self._metric])
        if not math.isfinite(value):
            return False
        on_disk = on_first(self._saved)
        self._values = {s: v for s, v in self._values.items() if s in on_disk or s in self._checkpointer.protected}
        self._values[step] = value
        best = self._protect()
        on_first(lambda: self._write(best))
        return best == step

    def _saved(self) -> list[int]:
        folder = self._checkpointer.directory
        return [step for step in steps_in(folder) if is_finalized(folder / str(step))]

    def _protect(self) -> int | None:
        """The best step, which is protected from here on."""
        order = min if self._lowest else max
        best = order(self._values, key=lambda step: (self._values[step], step if self._lowest else -step), default=None)
        self._checkpointer.protected = frozenset(() if best is None else (best,))
        return best

    def _write(self, best: int | None) -> None:
        text = json.dumps({"metric": self._metric, "values": self._values, "best": best}, indent=1)
        try:
            write_atomic(self._file, text + "\n")
        except OSError as error:
            if not self._told:
                self._told = True
                self._warn(f"{self._file}: not written: {reason(error)}; training goes on")


def best_step(directory: AnyPath) -> int | None:
    """The best step that is still on disk, by the metric that its run was told; None if none was measured."""
    if not (directory / BEST).exists():
        return None
    step = read_json(directory / BEST, limit=MIB, error=CheckpointError).get("best")
    return step if isinstance(step, int) and is_finalized(directory / str(step)) else None


def _read(file: AnyPath, metric: str) -> dict[str, float]:
    """step -> value of complete steps, in the words of JSON; nothing if the file is of another metric."""
    if not file.exists():
        return {}
    found = read_json(file, limit=MIB, error=CheckpointError, fix="remove it")
    if not isinstance(found, dict) or found.get("metric") != metric or not isinstance(found.get("values"), dict):
        return {}
    return {
        step: float(value)
        for step, value in found["values"].items()
        if step.isdecimal() and isinstance(value, int | float) and is_finalized(file.parent / step)
    }
