"""Training: draw noise levels, add noise, and weigh how far the network's output is from its target."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from vdit.diffusion.config import DiffusionConfig, Prediction
from vdit.diffusion.predictions import expand_like, from_clean_and_noise
from vdit.diffusion.schedules import Schedule, make_schedule
from vdit.diffusion.variance import bound_terms
from vdit.errors import ShapeError
from vdit.types import Array


def level_from_uniform(u: Array, config: DiffusionConfig) -> Array:
    """u [...] uniform in (0, 1) -> noise levels [...] distributed as the configuration says.

    The inverse of the distribution function, so that evenly spread u give evenly spread levels.
    """
    if config.timestep_sampling == "logit_normal":
        u = jax.nn.sigmoid(config.logit_mean + config.logit_std * ndtri(u))
    schedule = make_schedule(config)
    level = schedule.shifted(u)
    if schedule.discrete_steps is None:
        return level
    return jnp.clip(jnp.ceil(level * schedule.discrete_steps), 1, None) / schedule.discrete_steps


def draw_levels(key: Array, frame_segment_ids: Array, config: DiffusionConfig, *, per_frame: bool = False) -> Array:
    """frame_segment_ids int [b k] -> levels float32 [b k] for training.

    All slots of a clip share one level, clips are independent; with per_frame every slot has its own.
    Unused slots (clip 0) are at level 0. Level 0 of known frames is for the caller to set.
    """
    owner = jnp.arange(frame_segment_ids.shape[-1])[None] + 1 if per_frame else frame_segment_ids
    owner = jnp.broadcast_to(jnp.where(frame_segment_ids > 0, owner, 0), frame_segment_ids.shape)
    # Owners count from 1 and each has a slot, so one draw for each column is always enough.
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

    The offset goes round the circle, so each u alone is uniform whatever the order of the clips.
    """
    used = jax.nn.one_hot(owner, shape[1], dtype=jnp.int32).max(axis=1).at[:, 0].set(0)
    rank = jnp.cumsum(used.reshape(-1)).reshape(shape)
    return (jax.random.uniform(key) + rank / jnp.maximum(used.sum(), 1)) % 1.0


def add_noise(schedule: Schedule, x0: Array, noise: Array, level: Array) -> Array:
    """x0, noise [b ... p]; level [b ...] (any number of leading axes) -> x_t [b ... p]."""
    alpha, sigma = expand_like(schedule.alpha(level), x0), expand_like(schedule.sigma(level), x0)
    return alpha * x0 + sigma * noise


def target(schedule: Schedule, prediction: Prediction, x0: Array, noise: Array, level: Array) -> Array:
    """x0, noise [b ... p]; level [b ...] -> what the network should say [b ... p]."""
    alpha, sigma = expand_like(schedule.alpha(level), x0), expand_like(schedule.sigma(level), x0)
    return from_clean_and_noise(prediction, x0, noise, alpha, sigma)


def weighted_mean(values: Array, weight: Array) -> Array:
    """values, weight [b n] -> their weighted mean []; 0 where nothing has weight."""
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
    """The training loss, in float32, as a weighted mean over tokens.

    output: [b n p], or [b n 2p] = (prediction, variance) with learn_variance. x0, noise: [b n p].
    level: [b n], each token's noise level. weight: [b n], 0 on padding and on known tokens.
    Returns (loss [], metrics {"mse": [], "bound": [] where the variance is learned}).
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
    mse = weighted_mean(jnp.mean((mean_part - wanted) ** 2, axis=-1), weight)
    if not config.learn_variance:
        return mse, {"mse": mse}
    terms = bound_terms(schedule, config.prediction, output, x0=x0, noise=noise, level=level)
    bound = weighted_mean(terms, weight)
    # The bound is a sum over all steps; a thousandth of it leaves the mean to the squared error.
    loss = mse + bound * config.steps / 1000.0
    return loss, {"mse": mse, "bound": bound}
