"""The loss of the DiT on packed rows: draw levels, add noise, predict."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vdit.diffusion import add_noise, diffusion_loss, draw_levels, make_schedule
from vdit.text.encoder import drop_captions
from vdit.train.experiment import Experiment
from vdit.types import Array, PyTree, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """Loss function for vdit.train.step: (params, row, key, step) -> (loss, metrics).

    The mean is over useful tokens, so rows weigh by what they hold.
    """

    experiment: Experiment

    def __call__(self, params: PyTree, row: Row, key: Array, step: Array) -> tuple[Array, dict[str, Array]]:
        experiment = self.experiment
        schedule = make_schedule(experiment.diffusion)
        level_key, frame_key, choice_key, noise_key, drop_key = jax.random.split(key, 5)
        levels = draw_levels(level_key, row.slot_clip, experiment.diffusion)
        if experiment.per_frame_noise:
            free = draw_levels(frame_key, row.slot_clip, experiment.diffusion, per_frame=True)
            chosen = self._of_clip(choice_key, row, experiment.per_frame_noise)
            levels = jnp.where(jnp.take_along_axis(chosen, row.slot_clip, axis=1), free, levels)
        if experiment.text_dropout and experiment.dit.text != "none":
            drop = self._of_clip(drop_key, row, experiment.text_dropout)[:, 1:]
            text, text_clip = drop_captions(experiment.text, row.text, row.text_clip, row.text_position, drop)
            row = dataclasses.replace(row, text=text, text_clip=text_clip)
        if experiment.text_dropout and experiment.dit.classes:
            drop = self._of_clip(drop_key, row, experiment.text_dropout)[:, 1:]
            row = dataclasses.replace(row, label=jnp.where(drop, 0, row.label))

        level = jnp.take_along_axis(levels, row.slot, axis=1)
        noise = jax.random.normal(noise_key, row.values.shape, jnp.float32)
        noisy = dataclasses.replace(row, values=add_noise(schedule, row.values, noise, level))
        output = experiment.network.apply(params, noisy, schedule.time(levels))
        useful = (row.clip > 0).astype(jnp.float32)
        loss, metrics = diffusion_loss(
            experiment.diffusion, output, x0=row.values, noise=noise, level=level, weight=useful
        )
        tokens = jnp.sum(useful)
        return loss, metrics | {"weight": tokens, "tokens": tokens, "useful": jnp.mean(useful)}

    @staticmethod
    def _of_clip(key: Array, row: Row, share: float) -> Array:
        """A coin for each clip of each row: bool [b s+1]; entry 0, of padding, is False."""
        b, s = row.label.shape
        return jnp.pad(jax.random.bernoulli(key, share, (b, s)), ((0, 0), (1, 0)))
