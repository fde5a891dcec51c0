"""An evaluator: how strongly the model's predictions vary on held-out clips, as a share of what they should.

    vdit train --plugin my_evaluator.py experiment.py --cfg.evaluators=my_evaluator
"""

import dataclasses

import jax
import numpy as np

from vdit.experiment.evaluator import Evaluator
from vdit.experiment.objectives import corrupt, forward
from vdit.registry import register


@register("evaluator", "my_evaluator")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MyEvaluator(Evaluator):
    """every: steps. clips: held-out clips that are looked at. level: the noise level, from 0 to 1."""

    every: int = 500
    clips: int = 8
    level: float = 0.5

    def prepare(self, run):
        batches = run.rows(self.clips)  # once: every measurement sees the same clips and the same noise

        @jax.jit
        def predict(params, row):
            noisy = corrupt(jax.random.key(0), row, run.model, level=self.level)
            target = noisy.noise - noisy.clean  # of models that predict the velocity
            return forward(run.model, params, noisy), target, noisy.weight

        def measure(params):
            found = []
            for row in batches:
                prediction, target, weight = jax.device_get(predict(run.whole(params), row))
                found.append((prediction[weight > 0].std(), target[weight > 0].std()))
            said, wanted = np.mean(found, axis=0)
            return {"variation": said / wanted}

        return measure
