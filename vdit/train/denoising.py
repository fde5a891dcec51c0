"""The loss of the DiT on packed rows: draw canvases, add noise, predict."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vdit.diffusion import add_noise, diffusion_loss, make_schedule
from vdit.experiment.canvases import draw_canvases
from vdit.experiment.experiment import Experiment
from vdit.models.text.encoder import drop_captions
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """Loss function for vdit.train.step: (params, row, key, step) -> (loss, metrics).

    The mean is over the tokens that are neither padding nor known, so rows weigh by what there is to learn.
    """

    experiment: Experiment

    def __call__(self, params: PyTree, row: Row, key: Array, step: Array) -> tuple[Array, dict[str, Array]]:
        experiment = self.experiment
        schedule = make_schedule(experiment.diffusion)
        canvas_key, noise_key, drop_key = jax.random.split(key, 3)
        drawn = draw_canvases(canvas_key, row, experiment.canvases, experiment.diffusion)
        row, levels = drawn.row, drawn.levels
        if experiment.text_dropout and experiment.dit.text != "none":
            drop = self._of_clip(drop_key, row, experiment.text_dropout)[:, 1:]
            text, text_segment_ids = drop_captions(
                experiment.text, row.text, row.text_segment_ids, row.text_position, drop
            )
            row = dataclasses.replace(row, text=text, text_segment_ids=text_segment_ids)
        if experiment.text_dropout and experiment.dit.classes:
            drop = self._of_clip(drop_key, row, experiment.text_dropout)[:, 1:]
            row = dataclasses.replace(row, label=jnp.where(drop, 0, row.label))

        level = jnp.take_along_axis(levels, row.frame_index, axis=1)
        noise = jax.random.normal(noise_key, row.values.shape, jnp.float32)
        noisy = dataclasses.replace(row, values=add_noise(schedule, row.values, noise, level))
        output = experiment.network.apply(params, noisy, schedule.time(levels))
        useful = (row.segment_ids > 0).astype(jnp.float32)
        weight = useful * ~drawn.known
        loss, metrics = diffusion_loss(
            experiment.diffusion, output, x0=row.values, noise=noise, level=level, weight=weight
        )
        return loss, metrics | {"weight": jnp.sum(weight), "tokens": jnp.sum(useful), "useful": jnp.mean(useful)}

    @staticmethod
    def _of_clip(key: Array, row: Row, share: float) -> Array:
        """A coin for each clip of each row: bool [b s+1]; entry 0, of padding, is False."""
        b, s = row.label.shape
        return jnp.pad(jax.random.bernoulli(key, share, (b, s)), ((0, 0), (1, 0)))
