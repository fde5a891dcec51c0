"""The contract of evaluators: what measures a model on held-out data while it trains.

Below training, so that an experiment can hold evaluators; those of vdit are in vdit.train.evaluate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from vdit.types import PyTree

if TYPE_CHECKING:
    from typing import Any as EvaluationRun  # vdit.train.evaluate.EvaluationRun

# Parameters -> name -> figure.
Measure = Callable[[PyTree], Mapping[str, float]]


class Evaluator(Protocol):
    """Measures a model on held-out data every so many steps. Implementations are registered frozen dataclasses.

    every: steps between two measurements. stage: whose training it measures, "vae" or "dit".
    """

    every: int
    stage: ClassVar[Literal["vae", "dit"]] = "dit"

    def prepare(self, run: EvaluationRun) -> Measure:
        """Called once, before the first step of the stage.

        Args:
            run: what is trained, and held-out data (vdit.train.evaluate.EvaluationRun). Ask it for data here, so that
                all measurements use the same.

        Returns:
            A function of the parameters (the averaged ones, where the run keeps an average) that gives figures by name.
            All hosts call it at the same steps.
        """
        ...
