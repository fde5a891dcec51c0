"""Few-step models: consistency distillation of a trained one, with its guidance distilled in.

A frozen teacher takes one step along the probability-flow ODE, with classifier-free guidance, from a level t to the
next lower level s of an even grid. The student learns that its word on the clean data at t is its own word at s:

    loss = d(f(x_t, t), stop_gradient(f(x_s, s))),        f(x, 0) = x

(Song et al. 2023, eq. 7). Guidance becomes part of the student, which then needs one call a step, not two (latent
consistency models; Luo et al. 2023). The target is the student itself, not an average of it, and d is the
pseudo-Huber distance sqrt(|a - b|^2 + c^2) - c (Song and Dhariwal 2024, who show that both do better). f is the
estimate of the clean data that the network's prediction implies; at level 0 that is x whatever the network says, so
the boundary holds by itself, and the student can begin as a copy of its teacher. Distribution matching (Yin et al.
2024) is made for single steps, and needs a third network that follows the student's samples.

Sampled by the "consistency" sampler without guidance.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vdit.diffusion import add_noise, make_schedule, to_clean_and_noise
from vdit.diffusion.objectives import weighted_mean
from vdit.diffusion.predictions import expand_like
from vdit.tasks.network import Network
from vdit.text.encoder import drop_captions
from vdit.train.canvases import DrawnCanvas, draw_canvases
from vdit.train.config import DistillConfig
from vdit.train.experiment import Experiment
from vdit.types import Array, PyTree, Row

TEACHER = "teacher"  # its parameters' key beside the student's


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillLoss:
    """Loss function for vdit.train.step: (params, row, key, step) -> (loss, metrics).

    params: the student's, and under TEACHER the teacher's. Known tokens (vdit.train.canvases) stay as they are at every
    level, and have no part in the loss; frames with levels of their own each take a step of their own.
    """

    experiment: Experiment

    def __call__(self, params: PyTree, row: Row, key: Array, step: Array) -> tuple[Array, dict[str, Array]]:
        experiment, config = self.experiment, self.experiment.distill
        schedule, network = make_schedule(experiment.diffusion), experiment.network
        canvas_key, noise_key = jax.random.split(key)
        drawn = draw_canvases(canvas_key, row, experiment.canvases, experiment.diffusion)
        row, level, lower = drawn.row, *_step_down(drawn, config)
        of_tokens = lambda levels: jnp.take_along_axis(levels, row.slot, axis=1)  # noqa: E731
        noise = jax.random.normal(noise_key, row.values.shape, jnp.float32)
        x = add_noise(schedule, row.values, noise, of_tokens(level))

        prediction = experiment.diffusion.prediction
        clean = lambda output, x, level: to_clean_and_noise(  # noqa: E731
            prediction,
            output[..., : x.shape[-1]],
            x,
            expand_like(schedule.alpha(of_tokens(level)), x),
            expand_like(schedule.sigma(of_tokens(level)), x),
        )
        guided = self._guided(network, params[TEACHER], dataclasses.replace(row, values=x), level)
        x0, its_noise = clean(guided, x, level)
        down = add_noise(schedule, x0, its_noise, of_tokens(lower))
        stays = (of_tokens(level) == of_tokens(lower))[..., None]
        down = jax.lax.stop_gradient(jnp.where(stays, x, down))
        ask = lambda params, x, level: network.apply(  # noqa: E731
            params, dataclasses.replace(row, values=x), schedule.time(level)
        )
        student = {name: value for name, value in params.items() if name != TEACHER}
        target, _ = clean(ask(jax.lax.stop_gradient(student), down, lower), down, lower)
        target = jax.lax.stop_gradient(jnp.where((of_tokens(lower) == 0)[..., None], down, target))
        guess, _ = clean(ask(student, x, level), x, level)

        useful = (row.clip > 0).astype(jnp.float32)
        weight = useful * ~drawn.known
        square = jnp.mean(jnp.square(guess - target), axis=-1)
        loss = weighted_mean(jnp.sqrt(square + config.huber**2) - config.huber, weight)
        metrics = {"weight": jnp.sum(weight), "tokens": jnp.sum(useful), "useful": jnp.mean(useful)}
        return loss, metrics | {"mse": weighted_mean(square, weight)}

    def _guided(self, network: Network, teacher: PyTree, row: Row, level: Array) -> Array:
        """The teacher's prediction for noisy rows at slot levels [b k], guided by text or class: [b n p]."""
        experiment, config = self.experiment, self.experiment.distill
        time = make_schedule(experiment.diffusion).time(level)
        wanted = network.apply(teacher, row, time)
        if config.guidance == 1.0 or not (network.uses_text or experiment.dit.classes):
            return wanted
        everything = jnp.ones(row.label.shape, bool)
        if network.uses_text:
            text, text_clip = drop_captions(
                experiment.text, row.text, row.text_clip, row.text_position, everything
            )
            row = dataclasses.replace(row, text=text, text_clip=text_clip)
        without = network.apply(teacher, dataclasses.replace(row, label=jnp.zeros_like(row.label)), time)
        low, high = config.interval
        inside = jnp.take_along_axis((level >= low) & (level <= high), row.slot, axis=1)[..., None]
        return wanted + jnp.where(inside, config.guidance - 1.0, 0.0) * (wanted - without)


def _step_down(drawn: DrawnCanvas, config: DistillConfig) -> tuple[Array, Array]:
    """The levels of slots [b k] moved up to the grid's, and the grid's next lower; those of what is known stay."""
    steps = jnp.clip(jnp.ceil(drawn.levels * config.steps), 1, config.steps)
    used = (drawn.row.slot_clip > 0) & ~drawn.fixed
    level = jnp.where(used, steps / config.steps, drawn.levels)
    return level, jnp.where(used, (steps - 1) / config.steps, drawn.levels)
