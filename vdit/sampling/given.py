"""What a user gives of a video, in pixels, and the task that makes the rest: every task but text to video."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.models.vae import split
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.statistics import normalise
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, blank
from vdit.sampling.sample import TextToVideo
from vdit.types import Array, PyTree


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """video: float32 [b s h w 3] in [-1, 1], the first s frames of the video to be made; s is 1 + a multiple of the
        VAE's stride in time. Nothing is given of later frames. What is not given holds something near: the nearest
        frame that is, or colours from around, since the VAE mixes a little of it into its neighbours.
    level: float32 [b s h w], or [b s 1 1] where whole frames are alike: 0 given, 1 to be made, between: to begin from
        (vdit.sampling.canvas.Canvas).
    action: float32 [b k a], what is done in each frame of tokens (vdit.data.actions.group_actions); None without.
    pixels: float32 [b side side 3], the first frame as the image encoder takes it; None for models without.
    """

    video: Array
    level: Array
    action: Array | None = None
    pixels: Array | None = None

    @property
    def known(self) -> np.ndarray:
        """The pixels that are given: bool [b s h w]."""
        return np.broadcast_to(np.asarray(self.level) == 0, np.shape(self.video)[:4])


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class FromVideo(TextToVideo):
    """From prompts and what is given to videos; called with given=Given(...).

    Models with condition channels (Wan 2.1 and 2.2 A14B image-to-video) see whole given frames, with grey for the
    others, as latents beside the noisy ones, with a mask; others get them as known latents.
    """

    def canvas(self, params: PyTree, vae_params: PyTree, statistics: PyTree, batch: int, given: Given) -> Canvas:
        """The canvas on which that is known which can be: latents all of whose pixels are given."""
        if given.video.shape[1] > self.frames or given.video.shape[2:4] != self.size:
            raise ShapeError(
                f"given frames of shape {given.video.shape} do not fit a video of {self.frames} frames of {self.size}: "
                "give as many or fewer, of that size"
            )
        canvas = blank(batch, self.latent_shape, self.network.dit)
        if given.action is not None:
            canvas = dataclasses.replace(canvas, action=given.action)
        if self.network.dit.condition_channels:
            return self._conditioned(canvas, params, vae_params, statistics, given)
        latents = normalise(split.encode(self.vae, vae_params, given.video).mean, statistics)
        level = latent_level(self.vae, given.level)
        later = canvas.latents.shape[1] - latents.shape[1]
        return dataclasses.replace(
            canvas,
            latents=jnp.pad(latents, ((0, 0), (0, later), *[(0, 0)] * 3)),
            level=jnp.pad(level, ((0, 0), (0, later), (0, 0), (0, 0)), constant_values=1.0),
        )

    def _conditioned(
        self, canvas: Canvas, params: PyTree, vae_params: PyTree, statistics: PyTree, given: Given
    ) -> Canvas:
        if given.level.shape[2:] != (1, 1):
            raise ConfigError("this model is told of whole frames: it cannot take a mask within them")
        later = self.frames - given.video.shape[1]
        level = jnp.pad(given.level, ((0, 0), (0, later), (0, 0), (0, 0)), constant_values=1.0)
        video = jnp.pad(given.video, ((0, 0), (0, later), *[(0, 0)] * 3))
        latents = normalise(
            split.encode(self.vae, vae_params, jnp.where(level[..., None] == 0, video, 0.0)).mean, statistics
        )
        mask = frame_mask(self.vae, level == 0, latents.shape)
        image = None if given.pixels is None else self.network.encode_image(params, given.pixels)
        return dataclasses.replace(canvas, condition=jnp.concatenate([mask, latents], axis=-1), image=image)


def latent_level(vae: VAEConfig, level: Array) -> Array:
    """Of pixels [b s h w] or [b s 1 1] -> of latents [b s' h' w'] or [b s' 1 1]: the largest that each stands for."""
    stride, side = vae.temporal_stride, vae.spatial_stride
    b, _, h, w = level.shape
    if (h, w) != (1, 1):
        level = level.reshape(b, -1, h // side, side, w // side, side).max((3, 5))
    groups = level[:, 1:].reshape(b, -1, stride, *level.shape[2:]).max(2)
    return jnp.concatenate([level[:, :1], groups], axis=1).astype(jnp.float32)


def frame_mask(vae: VAEConfig, known: Array, shape: tuple[int, ...]) -> Array:
    """Which frames are given, as Wan's image-to-video models are told: float32 [b t' h' w' stride], 1 for given.

    known: bool [b t 1 1]; shape: of the latents. A channel for each frame that a latent frame stands for; the first
    stands alone and fills all of its own.
    """
    stride = vae.temporal_stride
    frames = jnp.concatenate([jnp.repeat(known[:, :1], stride, axis=1), known[:, 1:]], axis=1)
    mask = frames.reshape(shape[0], -1, 1, 1, stride)
    return jnp.broadcast_to(mask, (*shape[:4], stride)).astype(jnp.float32)
