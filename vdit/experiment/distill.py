"""Few-step models: consistency distillation of a trained one, with its guidance distilled in.

A frozen teacher takes one step along the probability-flow ODE, with classifier-free guidance, from a level t to the
next lower level s of a grid. The student's x0 estimate at t is trained to match its own
(stop-gradient) estimate at s:

    loss = d(f(x_t, t), stop_gradient(f(x_s, s))),        f(x, 0) = x

(Song et al. 2023, eq. 7). Guidance becomes part of the student, which then needs one call a step, not two (latent
consistency models; Luo et al. 2023). f is the estimate of the clean data that the network's prediction implies: for a
flow x - t v(x, t), which at level 0 is x whatever the network says. So the boundary holds by itself, without further
coefficients, and the student can begin as a copy of its teacher. Where the network predicts clean data, f is x at
level 0 instead of what it says: the levels are a grid's, and no other of them lies near.

Why so: it is one regression on packed rows, whatever clips and canvases they hold, and stays stable without care.
The target is the student itself, not an average of it, and d the pseudo-Huber distance sqrt(|a - b|^2 + c^2) - c, since
both do better (Song and Dhariwal 2024). Levels are drawn evenly over the grid, not as training of the teacher draws
them, as sampling begins at its noisiest level, which that hardly visits. Distribution matching (DMD2, Yin et al. 2024;
CausVid, Yin et al. 2025) is sharper at one step, but alternates with a third network that must keep up with the
student's samples, and needs a step of sampling for each of training.

Sampled by the "consistency" sampler without guidance.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from vdit.diffusion import DiffusionConfig, add_noise, make_schedule, to_clean_and_noise
from vdit.diffusion.guidance import mix
from vdit.diffusion.objectives import expand_like, weighted_mean
from vdit.diffusion.schedules import Schedule
from vdit.errors import ConfigError
from vdit.experiment.canvases import DrawnCanvas, draw_canvases
from vdit.experiment.objectives import DiffusionModel, LossFn, Objective, token_counts
from vdit.registry import register
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row

TEACHER = "teacher"  # its parameters' key beside the student's
Predict = Callable[[Array, Array], Array]


@register("objective", "consistency")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(Objective):
    """Consistency distillation of the model in `start_from`. Captions are never dropped.

    guidance: scale of the teacher's classifier-free guidance, which the student learns to give in one call.
    interval: (low, high) noise levels between which the teacher is guided.
    steps: of the grid that the teacher steps down.
    huber: c of the pseudo-Huber distance, in units of a latent value; large is the squared error.
    """

    teacher: ClassVar[bool] = True
    forward_passes: ClassVar[float] = 6.0  # the teacher is asked twice, the target once

    guidance: float = 4.0
    interval: tuple[float, float] = (0.0, 1.0)
    steps: int = 32
    huber: float = 0.03

    def __post_init__(self) -> None:
        low, high = self.interval
        for name, holds, rule in (
            ("guidance", self.guidance >= 0, "0 or more; 1 for none"),
            ("steps", self.steps >= 2, "2 or more"),
            ("huber", self.huber > 0, "above 0"),
            ("interval", 0 <= low <= high <= 1, "0 <= low <= high <= 1"),
        ):
            if not holds:
                raise ConfigError(f"objective.{name}={getattr(self, name)!r}: must be {rule}")

    def check(self, diffusion: DiffusionConfig) -> None:
        if diffusion.prediction == "noise" or diffusion.learn_variance:
            raise ConfigError(
                f"diffusion.prediction={diffusion.prediction!r}, learn_variance={diffusion.learn_variance}: objective "
                "'consistency' needs 'velocity', 'v' or 'sample', which tell the clean data at all levels, and no "
                "variance"
            )

    def make_loss(self, model: DiffusionModel) -> LossFn:
        """A loss whose parameters are the student's, and under TEACHER the teacher's.

        Known tokens stay as they are at every level, and have no part in the loss; frames with levels of their own each
        take a step of their own.
        """
        return functools.partial(_distillation_loss, self, model)


def _distillation_loss(
    config: ConsistencyDistillation, model: DiffusionModel, params: PyTree, row: Row, key: Array, step: Array
) -> tuple[Array, dict[str, Array]]:
    schedule = make_schedule(model.diffusion)
    canvas_key, noise_key = jax.random.split(key)
    drawn = draw_canvases(canvas_key, row, model.canvases, _evenly(model.diffusion))
    row, level, lower = drawn.row, *step_down(drawn, schedule, config.steps)
    noise = jax.random.normal(noise_key, row.values.shape, jnp.float32)
    student = _network(model, {name: tree for name, tree in params.items() if name != TEACHER}, row)
    square = consistency_gap(
        add_noise(schedule, row.values, noise, jnp.take_along_axis(level, row.frame_index, axis=1)),
        row.frame_index,
        level,
        lower,
        Networks(student=student, target=student, teacher=_guided(config, model, params[TEACHER], row)),
        schedule=schedule,
        prediction=model.diffusion.prediction,
    )
    useful = (row.segment_ids > 0).astype(jnp.float32)
    weight = useful * ~drawn.known
    loss = weighted_mean(pseudo_huber(square, config.huber), weight)
    return loss, token_counts(weight, useful) | {"mse": weighted_mean(square, weight)}


def _network(model: DiffusionModel, params: PyTree, row: Row) -> Predict:
    """What the network predicts for these rows."""
    network, schedule = model.network, make_schedule(model.diffusion)
    text = network.encode_text(params, row)

    def predict(x: Array, level: Array) -> Array:
        return network.apply(params, dataclasses.replace(row, values=x), schedule.time(level), text).prediction

    return predict


def _guided(config: ConsistencyDistillation, model: DiffusionModel, teacher: PyTree, row: Row) -> Predict:
    """What the teacher predicts, guided by text or class as the student is to be without."""
    positive = _network(model, teacher, row)
    if config.guidance == 1.0 or not any(condition.guided for condition in model.network.all_conditions):
        return positive
    every_clip = jnp.pad(jnp.ones((row.segment_ids.shape[0], row.max_clips), bool), ((0, 0), (1, 0)))
    negative, (low, high) = _network(model, teacher, model.network.drop(row, every_clip)), config.interval

    def predict(x: Array, level: Array) -> Array:
        inside = jnp.take_along_axis((level >= low) & (level <= high), row.frame_index, axis=1)
        scale = jnp.where(inside, config.guidance, 1.0)[..., None]
        return mix(positive(x, level), negative(x, level), scale)

    return predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """The three networks of consistency distillation, each (x [b n p], levels [b k]) -> prediction [b n p].

    student: is trained; the only one that gradients reach. target: gives the estimate at the lower level. teacher:
    takes the step between the levels.
    """

    student: Predict
    target: Predict
    teacher: Predict


def consistency_gap(
    x: Array, frame_index: Array, level: Array, lower: Array, networks: Networks, *, schedule: Schedule, prediction: str
) -> Array:
    """How far f(x_t, t) lies from f(x_s, s), squared.

    Args:
        x: float32 [b n p], noisy tokens.
        frame_index: int [b n], the frame of each token, whose level it has.
        level: float32 [b k], t of each frame.
        lower: float32 [b k], s of each frame. Frames with s = t do not move.
        networks: student, target and teacher.
        schedule: of the noise.
        prediction: "velocity", "v" or "sample", which tell the clean data at all levels.

    Returns:
        float32 [b n], a mean over each token's values.
    """
    of_tokens = lambda levels: jnp.take_along_axis(levels, frame_index, axis=1)  # noqa: E731

    def clean(predict: Predict, x: Array, levels: Array) -> tuple[Array, Array]:
        alpha, sigma = (expand_like(part(of_tokens(levels)), x) for part in (schedule.alpha, schedule.sigma))
        output = predict(x, levels)
        if prediction == "sample":
            output, sigma = jnp.where(sigma > 0, output, x), jnp.where(sigma > 0, sigma, 1.0)
        return to_clean_and_noise(prediction, output, x, alpha, sigma)

    moves = (of_tokens(level) != of_tokens(lower))[..., None]
    down = jnp.where(moves, add_noise(schedule, *clean(networks.teacher, x, level), of_tokens(lower)), x)
    wanted = jax.lax.stop_gradient(clean(networks.target, down, lower)[0])
    return jnp.mean(jnp.square(clean(networks.student, x, level)[0] - wanted), axis=-1)


def pseudo_huber(square: Array, c: float) -> Array:
    """sqrt(square + c^2) - c [...]: the distance where that is far above c, and square / 2c far below."""
    return jnp.sqrt(square + c**2) - c


def step_down(drawn: DrawnCanvas, schedule: Schedule, steps: int) -> tuple[Array, Array]:
    """(t, s), float32 [b k] each: the frames' levels moved up to a grid of `steps` steps, and the grid's next lower.

    The levels drawn are the grid's before the schedule's shift. Levels of what is known, and of unused frames, stay.
    """
    moves = (drawn.row.frame_segment_ids > 0) & ~drawn.known_frames
    index = jnp.clip(jnp.ceil(drawn.levels * steps), 1, steps)
    grid = lambda index: jnp.where(moves, schedule.shifted(index / steps), drawn.levels)  # noqa: E731
    return grid(index), grid(index - 1)


def _evenly(diffusion: DiffusionConfig) -> DiffusionConfig:
    """The same with levels that are drawn evenly, without a shift."""
    return dataclasses.replace(diffusion, timestep_sampling="uniform", shift=1.0)
