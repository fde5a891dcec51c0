"""What training minimises: objectives, and the three functions that the diffusion losses are made of.

    corrupted = corrupt(key, row, model)                   # which tokens are known, noise levels, noise
    output = forward(model, params, corrupted)             # the network on the noisy row
    loss, metrics = denoising_loss(model, output, corrupted)

An objective is a registered frozen dataclass with `make_loss`. A loss with a further term calls the three and adds to
the third; nothing of them needs to be copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from vdit.diffusion import DiffusionConfig, add_noise, diffusion_loss, make_schedule
from vdit.experiment.canvases import CanvasConfig, draw_canvases
from vdit.models.backbone import Output
from vdit.models.network import Network
from vdit.registry import register
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row


class LossFn(Protocol):
    """A loss that one backward pass minimises."""

    def __call__(
        self, params: PyTree, batch: PyTree, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, Array]]:
        """The loss of one batch.

        Args:
            params: what is differentiated: a nested dict of arrays.
            batch: what the data iterator gives; a `Row` for diffusion transformers.
            key: a random key of this step.
            step: int32 [], optimizer steps done.

        Returns:
            (loss float32 [], metrics: name -> scalar). `metrics["weight"]` is what the loss is a mean over (the number
            of useful tokens, for instance): the pieces of an accumulated batch count by it, and alike where it is
            absent. `metrics["tokens"]`, where given, is what speed counts.
        """


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionModel:
    """What a diffusion objective is made for; `Experiment.model` gives it.

    network: encoders and backbone on packed rows.
    diffusion: schedule, prediction, and how noise levels are sampled.
    canvases: which tokens of a clip are known in a training step.
    text_dropout: probability that a clip loses its caption or class, for classifier-free guidance.
    condition_dropout: whether other conditions are dropped, each by its own dropout.
    """

    network: Network
    diffusion: DiffusionConfig = DiffusionConfig()
    canvases: CanvasConfig = CanvasConfig()
    text_dropout: float = 0.0
    condition_dropout: bool = True


class Objective(Protocol):
    """What the transformer's training minimises. Implementations are registered frozen dataclasses.

    Subclass it to inherit the defaults below.
    """

    teacher: ClassVar[bool] = False  # the loss also gets the frozen starting model's parameters, under TEACHER
    forward_passes: ClassVar[float] = 3.0  # cost of a step in forward passes of the network; a gradient costs two

    def check(self, diffusion: DiffusionConfig) -> None:
        """Raises ConfigError if this objective cannot train a model of this diffusion."""

    def compose_text(self, captions: Sequence[str]) -> str | None:
        """The text that a clip is trained with, made of its captions; None picks one of them (data.DataConfig)."""
        return None

    def make_loss(self, model: DiffusionModel) -> LossFn:
        """The loss for one model. Its batches are packed rows (vdit.types.Row)."""
        ...


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrupted:
    """A row as the network is given it in training, and what it was made of.

    row: noisy; its conditions may have been dropped. levels: float32 [b k], noise level of each frame of the row.
    clean, noise: float32 [b n p]. level: float32 [b n], noise level of each token.
    weight: float32 [b n], 1 for tokens with a part in the loss, 0 for padding and for known tokens.
    useful: float32 [b n], 1 for all tokens but padding.
    """

    row: Row
    levels: Array
    clean: Array
    noise: Array
    level: Array
    weight: Array
    useful: Array


def corrupt(key: Array, row: Row, model: DiffusionModel, *, level: Array | None = None) -> Corrupted:
    """Samples what is given of each clip, drops captions, and adds noise. Traceable.

    Args:
        key: a random key.
        row: packed rows of clean latents.
        model: what is trained.
        level: float32 [], one noise level for all tokens that are not given, instead of sampled ones.

    Returns:
        The noisy rows, and what they were made of.
    """
    canvas_key, noise_key, drop_key = jax.random.split(key, 3)
    sampled = draw_canvases(canvas_key, row, model.canvases, model.diffusion)
    row, levels = drop_conditions(drop_key, sampled.row, model), sampled.levels
    if level is not None:
        levels = jnp.where((row.frame_segment_ids > 0) & ~sampled.known_frames, level, levels)
    level = jnp.take_along_axis(levels, row.frame_index, axis=1)
    noise = jax.random.normal(noise_key, row.values.shape, jnp.float32)
    noisy = add_noise(make_schedule(model.diffusion), row.values, noise, level)
    useful = (row.segment_ids > 0).astype(jnp.float32)
    return Corrupted(
        row=dataclasses.replace(row, values=noisy),
        levels=levels,
        clean=row.values,
        noise=noise,
        level=level,
        weight=useful * ~sampled.known,
        useful=useful,
    )


def forward(
    model: DiffusionModel, params: PyTree, corrupted: Corrupted, *, return_hidden: bool = False
) -> Output:
    """What the network predicts for a corrupted row.

    Args:
        model: what is trained.
        params: of the network.
        corrupted: of `corrupt`.
        return_hidden: also return the tokens after each block, for terms on representations.

    Returns:
        The prediction, float32 [b n p] ([b n 2p] with a learned variance), and with `return_hidden` the hidden states
        [L b n d].
    """
    time = make_schedule(model.diffusion).time(corrupted.levels)
    return model.network.apply(params, corrupted.row, time, return_hidden=return_hidden)


def denoising_loss(model: DiffusionModel, output: Output, corrupted: Corrupted) -> tuple[Array, dict[str, Array]]:
    """The mean loss over tokens that are neither padding nor known, so rows weigh by what there is to learn.

    Args:
        model: what is trained.
        output: of `forward`.
        corrupted: of `corrupt`.

    Returns:
        (loss [], metrics): "mse", "weight" (tokens in the loss), "tokens" and "useful" (tokens that are no padding, and
        their fraction).
    """
    c = corrupted
    loss, metrics = diffusion_loss(
        model.diffusion, output.prediction, x0=c.clean, noise=c.noise, level=c.level, weight=c.weight
    )
    return loss, metrics | token_counts(c.weight, c.useful)


@register("objective", "denoising")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingLoss(Objective):
    """The usual one: predict what `diffusion.prediction` says, from noisy latents.

    Example:
        loss = DenoisingLoss().make_loss(experiment.model)
        value, metrics = loss(params, row, key, step)
    """

    def make_loss(self, model: DiffusionModel) -> LossFn:
        def loss(params: PyTree, row: Row, key: Array, step: Array) -> tuple[Array, dict[str, Array]]:
            corrupted = corrupt(key, row, model)
            return denoising_loss(model, forward(model, params, corrupted), corrupted)

        return loss


def drop_conditions(key: Array, row: Row, model: DiffusionModel) -> Row:
    """The row with the conditions of some clips dropped. Traceable.

    Text and class are dropped by `model.text_dropout`, every other condition by its own dropout. One number is sampled
    for each clip: conditions of the same dropout are dropped together, as the negative rows of guidance lack them all.
    """
    sample = jax.random.uniform(key, (row.segment_ids.shape[0], row.max_clips))
    for condition in model.network.all_conditions:
        dropout = model.text_dropout if condition.prompted else condition.dropout * model.condition_dropout
        if dropout:
            row = condition.drop(row, jnp.pad(sample < dropout, ((0, 0), (1, 0))))
    return row


def token_counts(weight: Array, useful: Array) -> dict[str, Array]:
    """The metrics "weight", "tokens" and "useful" of rows, from float32 [b n] weights."""
    return {"weight": jnp.sum(weight), "tokens": jnp.sum(useful), "useful": jnp.mean(useful)}
