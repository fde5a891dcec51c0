"""Training objectives: what a network predicts, how noise levels are drawn, and the loss.

A network predicts one of four things:

    noise      the noise of x_t
    sample     the clean data x_0
    velocity   noise - x_0, the slope of a straight path
    v          alpha * noise - sigma * x_0 (Salimans and Ho, 2022)

All four hold the same information, given x_t = alpha * x_0 + sigma * noise, under any schedule. They differ in where
they divide by a small number ("noise" by alpha, "sample" by sigma), and in how a loss weighs noise levels.

A network may also predict a variance (Nichol and Dhariwal, 2021; DiT): a mix of the two extreme variances of a step.
Only the discrete process has that. Its tables are float64 numpy at the process's own levels, and are read by index:
a posterior variance computed from float32 levels loses half its digits.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

from vdit.diffusion.config import DiffusionConfig, Prediction
from vdit.diffusion.schedules import DDPM, Schedule, make_schedule
from vdit.errors import ConfigError, ShapeError
from vdit.types import Array

LEAST_SIGMA = 0.05  # what an error of clean data is divided by at least, to be one of velocity (JiT)
BIN = 2.0 / 255.0  # width of the bins in the likelihood of the last step


def from_clean_and_noise(prediction: Prediction, x0: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    """What a network of this kind should predict.

    Args:
        prediction: what the network predicts (see the module's table).
        x0, noise: clean data and noise [...].
        alpha, sigma: shares of data and noise in x_t, of shapes that broadcast against x0.

    Returns:
        The target [...].
    """
    if prediction == "noise":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "velocity":
        return noise - x0
    if prediction == "v":
        return alpha * noise - sigma * x0
    raise _unknown(prediction)


def to_clean_and_noise(
    prediction: Prediction, output: Array, x: Array, alpha: Array, sigma: Array
) -> tuple[Array, Array]:
    """The clean data and the noise that a network's output implies: the inverse of `from_clean_and_noise`.

    Args:
        prediction: what the network predicts.
        output: its output [...].
        x: its input x_t [...].
        alpha, sigma: shares of data and noise in x_t, of shapes that broadcast against x.

    Returns:
        (x0 [...], noise [...]).
    """
    if prediction == "noise":
        return (x - sigma * output) / alpha, output
    if prediction == "sample":
        return output, (x - alpha * output) / sigma
    if prediction == "velocity":
        total = alpha + sigma
        return (x - sigma * output) / total, (x + alpha * output) / total
    if prediction == "v":
        power = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / power, (sigma * x + alpha * output) / power
    raise _unknown(prediction)


def expand_like(level: Array, x: Array) -> Array:
    """level [b ...] with trailing axes of size 1, so that it broadcasts against x [b ... p]."""
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim))


def _unknown(prediction: str) -> ConfigError:
    return ConfigError(f"prediction is {prediction!r}: use noise, sample, velocity or v")


def level_from_uniform(u: Array, config: DiffusionConfig) -> Array:
    """Noise levels for uniform random numbers, distributed as the config says.

    This is the inverse of the distribution function, so evenly spread u give evenly spread levels.

    Args:
        u: float [...] in (0, 1).
        config: its timestep_sampling, logit_mean, logit_std and shift are used.

    Returns:
        Levels [...] in (0, 1].
    """
    if config.timestep_sampling == "logit_normal":
        u = jax.nn.sigmoid(config.logit_mean + config.logit_std * ndtri(u))
    schedule = make_schedule(config)
    level = schedule.shifted(u)
    if schedule.discrete_steps is None:
        return level
    return jnp.clip(jnp.ceil(level * schedule.discrete_steps), 1, None) / schedule.discrete_steps


def draw_levels(key: Array, frame_segment_ids: Array, config: DiffusionConfig, *, per_frame: bool = False) -> Array:
    """Random noise levels for the frames of packed rows.

    All frames of a clip share one level, and clips are independent. The caller sets the level of known frames to 0.

    Args:
        key: a random key.
        frame_segment_ids: int [b k], the clip that each frame belongs to, from 1. 0 marks an unused entry.
        config: how levels are distributed.
        per_frame: draw a level for each frame, in place of one for each clip.

    Returns:
        float32 [b k], 0 in unused entries.
    """
    owner = jnp.arange(frame_segment_ids.shape[-1])[None] + 1 if per_frame else frame_segment_ids
    owner = jnp.broadcast_to(jnp.where(frame_segment_ids > 0, owner, 0), frame_segment_ids.shape)
    # Owners count from 1 and each has a frame, so one draw for each column is always enough.
    shape = (frame_segment_ids.shape[0], frame_segment_ids.shape[1] + 1)
    if config.stratified:
        u = _spread(key, owner, shape)
    else:
        u = jax.random.uniform(key, shape)
    u = jnp.clip(u, 1e-6, 1.0 - 1e-6)
    levels = jnp.take_along_axis(level_from_uniform(u, config), owner, axis=1)
    return jnp.where(frame_segment_ids > 0, levels, 0.0).astype(jnp.float32)


def _spread(key: Array, owner: Array, shape: tuple[int, int]) -> Array:
    """owner int [b k], shape [b k+1] -> u [b k+1]: a random offset, then even steps from owner to owner.

    The offset wraps around at 1, so each u alone is uniform whatever the order of the clips.
    """
    used = jax.nn.one_hot(owner, shape[1], dtype=jnp.int32).max(axis=1).at[:, 0].set(0)
    rank = jnp.cumsum(used.reshape(-1)).reshape(shape)
    return (jax.random.uniform(key) + rank / jnp.maximum(used.sum(), 1)) % 1.0


def add_noise(schedule: Schedule, x0: Array, noise: Array, level: Array) -> Array:
    """x_t of clean data.

    Args:
        schedule: gives the shares of data and noise.
        x0, noise: [b ... p].
        level: noise levels in [0, 1], [b ...] with any number of the leading axes of x0.

    Returns:
        x_t [b ... p].
    """
    alpha, sigma = expand_like(schedule.alpha(level), x0), expand_like(schedule.sigma(level), x0)
    return alpha * x0 + sigma * noise


def target(schedule: Schedule, prediction: Prediction, x0: Array, noise: Array, level: Array) -> Array:
    """What the network should predict.

    Args:
        schedule: gives alpha and sigma.
        prediction: "noise", "data", "v" or "velocity".
        x0: clean data [b ... p].
        noise: of the same shape.
        level: noise levels [b ...].

    Returns:
        The target [b ... p].
    """
    alpha, sigma = expand_like(schedule.alpha(level), x0), expand_like(schedule.sigma(level), x0)
    return from_clean_and_noise(prediction, x0, noise, alpha, sigma)


def weighted_mean(values: Array, weight: Array) -> Array:
    """The weighted mean [] of values [b n] with weights [b n]; 0 where nothing has weight."""
    weight = weight.astype(jnp.float32)
    # Where and not a product alone: a value without weight may be inf or nan, and must not count.
    total = jnp.sum(jnp.where(weight > 0, values.astype(jnp.float32) * weight, 0.0))
    return total / jnp.maximum(jnp.sum(weight), 1e-8)


def diffusion_loss(
    config: DiffusionConfig,
    output: Array,
    *,
    x0: Array,
    noise: Array,
    level: Array,
    weight: Array,
) -> tuple[Array, dict[str, Array]]:
    """The training loss: a weighted mean over tokens, in float32.

        loss, metrics = diffusion_loss(config, output, x0=x0, noise=noise, level=level, weight=weight)

    Args:
        config: prediction, schedule and whether the variance is learned.
        output: the network's output [b n p], or (prediction, variance) [b n 2p] with learn_variance.
        x0, noise: clean data and noise [b n p].
        level: noise level of each token [b n].
        weight: of each token [b n]. 0 on padding and on known tokens.

    Returns:
        (loss [], {"mse": [], and "bound": [] where the variance is learned}).

    Raises:
        ShapeError: the output has another shape.
    """
    width = x0.shape[-1] * (2 if config.learn_variance else 1)
    if output.shape != (*x0.shape[:-1], width):
        raise ShapeError(
            f"the network's output is {output.shape}: {(*x0.shape[:-1], width)} is needed for x0 {x0.shape} "
            f"with learn_variance={config.learn_variance}"
        )
    schedule = make_schedule(config)
    output, x0, noise = (v.astype(jnp.float32) for v in (output, x0, noise))
    mean_part = output[..., : x0.shape[-1]]
    wanted = target(schedule, config.prediction, x0, noise, level)
    error = mean_part - wanted
    if config.loss_space == "velocity" and config.prediction == "sample":
        # x_t is given: velocity = (x_t - x_0) / sigma.
        error = error / jnp.maximum(expand_like(schedule.sigma(level), error), LEAST_SIGMA)
    mse = weighted_mean(jnp.mean(error**2, axis=-1), weight)
    if not config.learn_variance:
        return mse, {"mse": mse}
    terms = bound_terms(schedule, config.prediction, output, x0=x0, noise=noise, level=level)
    bound = weighted_mean(terms, weight)
    # The bound is a sum over all steps; a thousandth of it leaves the mean to the squared error.
    loss = mse + bound * config.steps / 1000.0
    return loss, {"mse": mse, "bound": bound}


@functools.lru_cache(maxsize=16)
def posterior_tables(schedule: DDPM) -> dict[str, np.ndarray]:
    """Tables of q(x_{i-1} | x_i, x_0) at times i = 0..steps-1 (Ho et al., 2020), float64 [steps] each.

    Returns:
        from_x0, from_x: coefficients of the mean.
        log_small: log of the posterior variance, the smallest sensible one. The variance at time 0 is 0, so the one of
            time 1 takes its place.
        log_large: log(beta), the largest sensible variance.
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
    """Log variance [...] for the network's raw output [...]: -1 is the small variance, 1 the large one."""
    fraction = (raw + 1.0) / 2.0
    return fraction * log_large + (1.0 - fraction) * log_small


def gaussian_kl(mean_a: Array, log_var_a: Array, mean_b: Array, log_var_b: Array) -> Array:
    """KL(a || b) of diagonal Gaussians in nats, elementwise [...]."""
    gap = (mean_a - mean_b) ** 2 * jnp.exp(-log_var_b)
    return 0.5 * (log_var_b - log_var_a - 1.0 + jnp.exp(log_var_a - log_var_b) + gap)


def binned_log_likelihood(x: Array, mean: Array, log_variance: Array) -> Array:
    """Log of the Gaussian's mass in the bin of width BIN around x, elementwise [...].

    No bin is open at its end, because latents, unlike pixels, have no bounds.
    """
    inverse_std = jnp.exp(-0.5 * log_variance)
    # Both ends on the lower tail: there a difference of small numbers keeps its digits.
    centre = -jnp.abs(x - mean)
    mass = norm.cdf((centre + BIN / 2) * inverse_std) - norm.cdf((centre - BIN / 2) * inverse_std)
    return jnp.log(jnp.maximum(mass, 1e-12))


def bound_terms(
    schedule: DDPM, prediction: Prediction, output: Array, *, x0: Array, noise: Array, level: Array
) -> Array:
    """One step's term of the variational bound (Nichol and Dhariwal, 2021).

    Only the variance learns from it: gradients do not reach the prediction.

    Args:
        output: (prediction, variance) [b n 2p].
        x0, noise: [b n p].
        level: [b n], levels of the process itself.

    Returns:
        float32 [b n], in bits per element.
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
