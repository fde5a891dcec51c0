"""Text to video, or to an image (one frame): a canvas of which nothing is known."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.dist.fetch import to_host
from vdit.dist.rules import batch_shardings, batch_ways
from vdit.errors import ShapeError
from vdit.models.network import Network
from vdit.models.vae import split
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.statistics import denormalise
from vdit.nn.compiling import compiler_options
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Prompts, blank
from vdit.sampling.generate import fill
from vdit.sampling.method import Method
from vdit.types import Array, PyTree


@short_repr
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
    def output_shape(self) -> tuple[int, int, int, int]:
        """(t, h, w, 3) of one video, or (t, h, w, c) of its latents."""
        return (self.frames, *self.size, 3) if self.decode else self.latent_shape

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
        return blank(batch, self.latent_shape, self.network.dit)


def draw(
    task: TextToVideo,
    mesh: Mesh,
    params: PyTree,
    vae_params: PyTree,
    statistics: PyTree,
    prompts: Prompts,
    negative: Prompts,
    key: Array,
    noise: Array | None = None,
    given: PyTree = None,
) -> Array:
    """Calls the task on a mesh: [b ...] for prompts of b, the same numbers on every mesh.

    prompts, negative, noise, given: arrays of the host. What the network is asked about at once, a video or with
    guidance two rows for each, is shared out over data and fsdp: where these do not divide it, further videos are made
    and thrown away. So one video is best made on a mesh of `sequence` and `tensor`, where nothing is.
    On several hosts all call this with the same arguments, and each gets all of the videos, as numpy.
    """
    count = prompts.ids.shape[0]
    padded = _rounded(count, batch_ways(mesh), task.method.rows)
    inputs = jax.tree.map(lambda x: _extend(x, padded), (prompts, negative, noise, given))
    prompts, negative, noise, given = jax.device_put(inputs, batch_shardings(mesh, inputs, strict=False))
    shape = jax.ShapeDtypeStruct((padded, *task.output_shape), jnp.float32)
    with jax.set_mesh(mesh):
        program = compiled(task, batch_shardings(mesh, shape, strict=False))
        out = program(params, vae_params, statistics, prompts, negative, key, noise, given)
    return (to_host(out) if jax.process_count() > 1 else out)[:count]


def _rounded(count: int, ways: int, rows: int) -> int:
    """The least number of videos, from `count` up, whose rows divide by `ways`."""
    step = ways // math.gcd(ways, rows)
    return -(-count // step) * step


def _extend(x: Array, count: int) -> Array:
    """x [b ...] with its last entry again and again, up to `count` entries."""
    x = np.asarray(x)
    return np.concatenate([x, np.repeat(x[-1:], count - len(x), axis=0)])


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
