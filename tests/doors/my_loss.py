"""The denoising loss with a further term: the estimated clean latents shall have the features of the true ones.

    vdit train --plugin my_loss.py experiment.py --cfg.objective=my_loss --cfg.objective.weight=0.1
"""

import dataclasses

import jax
import jax.numpy as jnp

from vdit.diffusion import make_schedule, to_clean_and_noise
from vdit.diffusion.objectives import weighted_mean
from vdit.experiment.objectives import Objective, corrupt, denoising_loss, forward
from vdit.registry import register


@register("objective", "my_loss")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MyLoss(Objective):
    """weight: of the term. features: how many there are: of a fixed random projection, in the place of your network."""

    weight: float = 0.1
    features: int = 64

    def make_loss(self, model):
        schedule = make_schedule(model.diffusion)

        def features(tokens):
            projection = jax.random.normal(jax.random.key(0), (tokens.shape[-1], self.features))
            return jnp.tanh(tokens @ projection / tokens.shape[-1] ** 0.5)

        def loss(params, row, key, step):
            noisy = corrupt(key, row, model)
            output = forward(model, params, noisy)
            value, metrics = denoising_loss(model, output, noisy)

            alpha, sigma = (f(noisy.level)[..., None] for f in (schedule.alpha, schedule.sigma))
            clean, _ = to_clean_and_noise(
                model.diffusion.prediction, output, noisy.row.values, alpha, sigma
            )
            gap = jnp.mean(jnp.square(features(clean) - features(noisy.clean)), axis=-1)
            term = weighted_mean(gap, noisy.weight)
            return value + self.weight * term, metrics | {"feature_gap": term}

        return loss
