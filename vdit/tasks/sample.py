"""Text to video, or to an image (one frame): a canvas of which nothing is known."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vdit.errors import ShapeError
from vdit.nn.compiling import compiler_options
from vdit.tasks.canvas import Canvas, Prompts
from vdit.tasks.generate import Method, fill
from vdit.tasks.network import Network
from vdit.types import Array, PyTree
from vdit.vae import split
from vdit.vae.config import VAEConfig
from vdit.vae.statistics import denormalise


def blank(batch: int, latent_shape: tuple[int, int, int, int]) -> Canvas:
    """Nothing known: `batch` clips of latents (t, h, w, c)."""
    return Canvas(
        latents=jnp.zeros((batch, *latent_shape), jnp.float32), known=jnp.zeros((batch, latent_shape[0]), bool)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToVideo:
    """From prompts to videos of one size: a pure function, to be jitted once for each of its values.

    frames: 1 + a multiple of the VAE's stride in time (times the DiT's patch in time). size: (height, width).
    decode: False gives the normalised latents and leaves the VAE out.
    """

    network: Network
    vae: VAEConfig
    method: Method
    frames: int
    size: tuple[int, int]
    decode: bool = True

    def __post_init__(self) -> None:
        patch = self.network.dit.patch
        _check_multiple("height", self.size[0], self.vae.spatial_stride * patch[1])
        _check_multiple("width", self.size[1], self.vae.spatial_stride * patch[2])
        stride = self.vae.temporal_stride
        latent_frames = 1 + (self.frames - 1) // stride
        if self.frames < 1 or (self.frames - 1) % stride or latent_frames % patch[0]:
            low = max(1, self.frames - 1) // (stride * patch[0]) * stride * patch[0] + 1 + (patch[0] - 1) * stride
            raise ShapeError(
                f"frames={self.frames} must be 1 + a multiple of {stride} (the VAE's stride in time), with latent "
                f"frames a multiple of the DiT's patch {patch[0]}: use {low} or {low + stride * patch[0]}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latents of one video."""
        return self.vae.latent_shape(self.frames, *self.size)

    def __call__(
        self,
        params: PyTree,
        vae_params: PyTree,
        statistics: PyTree,
        prompts: Prompts,
        negative: Prompts,
        key: Array,
        noise: Array | None = None,
        given: PyTree = None,
    ) -> Array:
        """Videos float32 [b t h w 3] in [-1, 1], or latents float32 [b t' h' w' c].

        params: the network's; vae_params: the VAE's; statistics: {"mean": [c], "std": [c]} of its latents.
        noise: latents to start from, drawn from `key` if None. given: what the task knows of the video.
        """
        canvas = self.canvas(params, vae_params, statistics, prompts.ids.shape[0], given)
        latents = fill(self.network, params, canvas, prompts, negative, key, self.method, noise=noise)
        if not self.decode:
            return latents
        video = split.decode(self.vae, vae_params, denormalise(latents, statistics))
        return jnp.clip(video.astype(jnp.float32), -1.0, 1.0)

    def canvas(self, params: PyTree, vae_params: PyTree, statistics: PyTree, batch: int, given: PyTree) -> Canvas:
        """What is known of the videos before they are made: nothing."""
        del params, vae_params, statistics, given
        return blank(batch, self.latent_shape)


@functools.lru_cache(maxsize=32)
def compiled(task: TextToVideo, out_sharding: jax.sharding.Sharding | None = None):
    """`jax.jit(task)`, the same one for equal tasks, so that nothing compiles twice."""
    return jax.jit(task, out_shardings=out_sharding, compiler_options=compiler_options())


def _check_multiple(name: str, value: int, multiple: int) -> None:
    if value < 1 or value % multiple:
        low = max(multiple, value // multiple * multiple)
        raise ShapeError(
            f"{name}={value} must be a multiple of {multiple} (VAE stride x DiT patch): use {low} or {low + multiple}"
        )
