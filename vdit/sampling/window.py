"""A window of latents filled in, where a video is longer than one canvas: what is made once for each."""

from __future__ import annotations

import dataclasses

import jax

from vdit.models.network import Network
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Prompts
from vdit.sampling.generate import fill, noise_of
from vdit.sampling.method import Method
from vdit.types import Array, PyTree


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """canvas: what is to be filled in.

    source: what `shown` shows; None unless the noise is to be that from which the model would make it (inversion).
    shown: float32 [b t h w c], the latents of the video as it was, everywhere.
    """

    canvas: Canvas
    source: Prompts | None = None
    shown: Array | None = None


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class FillWindow:
    """From prompts and a Window to latents; called as vdit.sampling.sample.TextToVideo, without a VAE.

    output_shape: (t, h, w, c) of the latents of one video.
    """

    network: Network
    method: Method
    output_shape: tuple[int, int, int, int]

    def __call__(
        self,
        params: PyTree,
        vae_params: PyTree,
        statistics: PyTree,
        prompts: Prompts,
        negative: Prompts,
        key: Array,
        noise: Array | None,
        given: Window,
    ) -> Array:
        """Normalised latents, float32 [b t h w c]; noise: to start from, drawn from `key` if None."""
        del vae_params, statistics
        if given.source is not None:
            shown = dataclasses.replace(given.canvas, latents=given.shown)
            # Another key than that of the sampler's own noise.
            noise = noise_of(self.network, params, shown, given.source, jax.random.fold_in(key, 1), self.method)
        return fill(self.network, params, given.canvas, prompts, negative, key, self.method, noise=noise)
