"""Image to video: the first frame is given."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vdit.tasks.canvas import Canvas
from vdit.tasks.sample import TextToVideo, blank
from vdit.types import Array, PyTree
from vdit.vae import split
from vdit.vae.config import VAEConfig
from vdit.vae.statistics import normalise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFrame:
    """image: float32 [b h w 3] in [-1, 1], the first frame at the video's size.

    pixels: float32 [b side side 3], the same as the image encoder takes it; None for models without.
    """

    image: Array
    pixels: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToVideo(TextToVideo):
    """From prompts and first frames to videos; called with given=FirstFrame(...).

    Models with condition channels (Wan 2.1 and 2.2 A14B image-to-video) see the frame, followed by grey, as
    latents beside the noisy ones, with a mask; others get it as a known latent frame at noise level 0.
    """

    def canvas(
        self, params: PyTree, vae_params: PyTree, statistics: PyTree, batch: int, given: FirstFrame
    ) -> Canvas:
        """The canvas on which the first frame is given."""
        canvas = blank(batch, self.latent_shape)
        encode = lambda video: _encode(self.vae, vae_params, statistics, video)  # noqa: E731
        first = given.image[:, None]
        if not self.network.dit.condition_channels:
            latent = encode(first)
            known = jnp.arange(self.latent_shape[0]) == 0
            latents = jnp.where(known[:, None, None, None], latent, canvas.latents)
            return dataclasses.replace(canvas, latents=latents, known=jnp.broadcast_to(known, canvas.known.shape))
        rest = jnp.zeros((batch, self.frames - 1, *self.size, 3), jnp.float32)
        latents = encode(jnp.concatenate([first, rest], axis=1))
        condition = jnp.concatenate([first_frame_mask(self.vae, latents.shape), latents], axis=-1)
        image = None if given.pixels is None else self.network.encode_image(params, given.pixels)
        return dataclasses.replace(canvas, condition=condition, image=image)


def first_frame_mask(vae: VAEConfig, shape: tuple[int, ...]) -> Array:
    """Which frames are given, as Wan's image-to-video models are told: float32 [b t' h' w' stride], 1 for given.

    A channel for each frame that a latent frame stands for; the first stands alone and fills all of its own.
    """
    given = jnp.arange(shape[1]) == 0
    return jnp.broadcast_to(given[:, None, None, None], (*shape[:4], vae.temporal_stride)).astype(jnp.float32)


def _encode(config: VAEConfig, params: PyTree, statistics: PyTree, video: Array) -> Array:
    return normalise(split.encode(config, params, video).mean, statistics)
