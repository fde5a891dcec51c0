"""Learned variance (Improved DDPM, DiT): the network interpolates between the two extreme variances.

Only the discrete process has it. Tables are float64 numpy at the process's own levels, gathered by index,
because a posterior variance recomputed from float32 levels loses half its digits.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from vdit.diffusion.config import Prediction
from vdit.diffusion.predictions import expand_like, to_clean_and_noise
from vdit.diffusion.schedules import DDPM
from vdit.types import Array

BIN = 2.0 / 255.0  # the grain at which data are told apart in the last step's likelihood


@functools.lru_cache(maxsize=16)
def posterior_tables(schedule: DDPM) -> dict[str, np.ndarray]:
    """Of q(x_{i-1} | x_i, x_0) at times i = 0..steps-1, float64 [steps] each.

    from_x0, from_x: the mean's coefficients. log_small: log of its variance, the smallest sensible one
    (time 0's is 0, so time 1's stands in). log_large: log(beta), the largest sensible one.
    """
    table = schedule.table()
    before, after = table[:-1], table[1:]
    beta = -np.expm1(after - before)
    noise_before, noise_after = -np.expm1(before), -np.expm1(after)
    variance = beta * noise_before / noise_after
    variance[0] = variance[1]
    return {
        "from_x0": np.exp(0.5 * before) * beta / noise_after,
        "from_x": np.exp(0.5 * (after - before)) * noise_before / noise_after,
        "log_small": np.log(variance),
        "log_large": np.log(beta),
    }


def interpolate_log_variance(raw: Array, log_small: Array, log_large: Array) -> Array:
    """raw [...], the network's say, -1 for the small variance and 1 for the large -> log variance [...]."""
    share = (raw + 1.0) / 2.0
    return share * log_large + (1.0 - share) * log_small


def gaussian_kl(mean_a: Array, log_var_a: Array, mean_b: Array, log_var_b: Array) -> Array:
    """KL(a || b) in nats of diagonal Gaussians, elementwise [...]."""
    gap = (mean_a - mean_b) ** 2 * jnp.exp(-log_var_b)
    return 0.5 * (log_var_b - log_var_a - 1.0 + jnp.exp(log_var_a - log_var_b) + gap)


def binned_log_likelihood(x: Array, mean: Array, log_variance: Array) -> Array:
    """log of the Gaussian's mass in the bin of width BIN around x, elementwise [...].

    No bin is open at the ends, because latents, unlike pixels, have no bounds.
    """
    inverse_std = jnp.exp(-0.5 * log_variance)
    # Both ends on the lower tail: there a difference of small numbers keeps its digits.
    centre = -jnp.abs(x - mean)
    mass = norm.cdf((centre + BIN / 2) * inverse_std) - norm.cdf((centre - BIN / 2) * inverse_std)
    return jnp.log(jnp.maximum(mass, 1e-12))


def bound_terms(
    schedule: DDPM, prediction: Prediction, output: Array, *, x0: Array, noise: Array, level: Array
) -> Array:
    """One step's term of the variational bound, in bits an element: float32 [b n].

    output: [b n 2p] = (prediction, variance). x0, noise: [b n p]. level: [b n], among the process's own.
    Only the variance learns from it: gradients do not reach the prediction.
    """
    values, raw = jnp.split(output.astype(jnp.float32), 2, axis=-1)
    index = jnp.clip(jnp.round(level * schedule.steps).astype(jnp.int32) - 1, 0, schedule.steps - 1)
    tables = posterior_tables(schedule)
    at = {name: expand_like(jnp.asarray(table, x0.dtype)[index], x0) for name, table in tables.items()}
    alpha, sigma = expand_like(schedule.alpha(level), x0), expand_like(schedule.sigma(level), x0)
    x = alpha * x0 + sigma * noise
    guess, _ = to_clean_and_noise(prediction, jax.lax.stop_gradient(values), x, alpha, sigma)
    true_mean = at["from_x0"] * x0 + at["from_x"] * x
    model_mean = at["from_x0"] * guess + at["from_x"] * x
    log_variance = interpolate_log_variance(raw, at["log_small"], at["log_large"])
    kl = gaussian_kl(true_mean, at["log_small"], model_mean, log_variance)
    last = -binned_log_likelihood(x0, model_mean, log_variance)
    terms = jnp.where(expand_like(index, x0) == 0, last, kl)
    return jnp.mean(terms, axis=-1) / np.log(2.0)
