"""What is compiled: from prompts to whole videos, around what a user gives, or to the latents of one canvas."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.dist.mesh import compiler_options
from vdit.dist.rules import batch_shardings, num_batch_shards, to_host
from vdit.errors import ConfigError, ShapeError
from vdit.models.network import Network
from vdit.models.vae import split
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.statistics import denormalise, normalise
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Prompts, blank
from vdit.sampling.config import SamplingConfig
from vdit.sampling.denoise import denoise, inverted_noise
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
    method: SamplingConfig
    frames: int
    size: tuple[int, int]
    decode: bool = True

    def __post_init__(self) -> None:
        patch = self.network.backbone.patch
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
        latents = denoise(self.network, params, canvas, prompts, negative, key, self.method, noise=noise)
        if not self.decode:
            return latents
        video = split.decode(self.vae, vae_params, denormalise(latents, statistics))
        return jnp.clip(video.astype(jnp.float32), -1.0, 1.0)

    def canvas(self, params: PyTree, vae_params: PyTree, statistics: PyTree, batch: int, given: PyTree) -> Canvas:
        """What is known of the videos before they are made: nothing but conditions.

        given: conditions by name (vdit.sampling.canvas.Canvas), or None.
        """
        del params, vae_params, statistics
        return dataclasses.replace(blank(batch, self.latent_shape), cond=dict(given or {}))


class Parameters(NamedTuple):
    """What a task is called with of a model.

    Args:
        network: parameters of the network.
        vae: parameters of the VAE; None for a task that makes latents of latents (SampleCanvas).
        statistics: {"mean": [c], "std": [c]} of the VAE's latents; None likewise.
    """

    network: PyTree
    vae: PyTree = None
    statistics: PyTree = None


def sample(
    task: TextToVideo | SampleCanvas,
    mesh: Mesh,
    parameters: Parameters,
    prompts: tuple[Prompts, Prompts],
    key: Array,
    noise: Array | None = None,
    given: PyTree = None,
) -> Array:
    """Calls a task on a mesh. The numbers are the same on every mesh.

    The rows of the batch (one for each video, two with guidance) are sharded over the mesh axes `data` and `fsdp`.
    Where these axes do not divide the rows, further videos are made and thrown away. A single video wastes nothing on a
    mesh of `sequence` and `tensor`.

    On several hosts, every host calls this with the same arguments and gets all videos, as numpy.

    Args:
        task: what is compiled, once for each value of it.
        mesh: the devices.
        parameters: of the model, on the mesh.
        prompts: (positive, negative), b prompts each, in host memory.
        key: of the noise.
        noise: float32 [b t' h' w' c] in host memory, latents to start from; None draws them from `key`.
        given: what the task knows of the videos, arrays [b ...] in host memory; None for nothing.

    Returns:
        [b ...], as the task makes them.
    """
    count = prompts[0].ids.shape[0]
    inputs, out_sharding = inputs_on(task, mesh, prompts, noise, given)
    with jax.set_mesh(mesh):
        program = compiled(task, out_sharding)
        out = program(*parameters, *inputs[:2], key, *inputs[2:])
    return (to_host(out) if jax.process_count() > 1 else out)[:count]


def inputs_on(
    task: TextToVideo | SampleCanvas, mesh: Mesh, prompts: tuple[Prompts, Prompts], noise: Array | None, given: PyTree
) -> tuple[PyTree, jax.sharding.Sharding]:
    """((positive, negative, noise, given) on the mesh, with as many videos as its devices divide; how results lie)."""
    padded = _rounded(prompts[0].ids.shape[0], num_batch_shards(mesh), task.method.rows)
    inputs = jax.tree.map(lambda x: _extend(x, padded), (*prompts, noise, given))
    inputs = jax.device_put(inputs, batch_shardings(mesh, inputs, strict=False))
    shape = jax.ShapeDtypeStruct((padded, *task.output_shape), jnp.float32)
    return inputs, batch_shardings(mesh, shape, strict=False)


def _rounded(count: int, ways: int, rows: int) -> int:
    """The least number of videos, from `count` up, whose rows divide by `ways`."""
    step = ways // math.gcd(ways, rows)
    return -(-count // step) * step


def _extend(x: Array, count: int) -> Array:
    """x [b ...] with its last entry again and again, up to `count` entries."""
    x = np.asarray(x)
    return np.concatenate([x, np.repeat(x[-1:], count - len(x), axis=0)])


@functools.lru_cache(maxsize=32)
def compiled(task: Hashable, out_sharding: jax.sharding.Sharding | None = None, method: str = "__call__"):
    """A method of the task, jitted: the same one for equal tasks, so that nothing compiles twice."""
    return jax.jit(getattr(task, method), out_shardings=out_sharding, compiler_options=compiler_options())


def _check_multiple(name: str, value: int, multiple: int) -> None:
    if value < 1 or value % multiple:
        low = max(multiple, value // multiple * multiple)
        raise ShapeError(
            f"{name}={value} must be a multiple of {multiple} (VAE stride x DiT patch): use {low} or {low + multiple}"
        )


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """video: float32 [b s h w 3] in [-1, 1], the first s frames of the video to be made; s is 1 + a multiple of the
        VAE's stride in time. Nothing is given of later frames. What is not given holds something near: the nearest
        frame that is, or colours from around, since the VAE mixes a little of it into its neighbours.
    level: float32 [b s h w], or [b s 1 1] where whole frames are alike: 0 given, 1 to be made, between: to begin from
        (vdit.sampling.canvas.Canvas).
    cond: conditions of the canvas, by name (vdit.sampling.canvas.Canvas).
    pixels: float32 [b side side 3], the first frame as the image encoder takes it; None for models without.
    """

    video: Array
    level: Array
    cond: dict[str, Array] = dataclasses.field(default_factory=dict)
    pixels: Array | None = None

    @property
    def known(self) -> np.ndarray:
        """The pixels that are given: bool [b s h w]."""
        return np.broadcast_to(np.asarray(self.level) == 0, np.shape(self.video)[:4])


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class FromVideo(TextToVideo):
    """From prompts and what is given to videos; called with given=Reference(...).

    Models with condition channels (Wan 2.1 and 2.2 A14B image-to-video) see whole given frames, with grey for the
    others, as latents beside the noisy ones, with a mask; others get them as known latents.
    """

    def canvas(self, params: PyTree, vae_params: PyTree, statistics: PyTree, batch: int, given: Reference) -> Canvas:
        """Canvas where a latent counts as known only if every pixel it covers was given."""
        if given.video.shape[1] > self.frames or given.video.shape[2:4] != self.size:
            raise ShapeError(
                f"given frames of shape {given.video.shape} do not fit a video of {self.frames} frames of {self.size}: "
                "give as many or fewer, of that size"
            )
        canvas = blank(batch, self.latent_shape)
        canvas = dataclasses.replace(canvas, cond=dict(given.cond))
        if self.network.reference_channels:
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
        self, canvas: Canvas, params: PyTree, vae_params: PyTree, statistics: PyTree, given: Reference
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
        cond = canvas.cond | {"condition": jnp.concatenate([mask, latents], axis=-1)}
        if given.pixels is not None:
            cond["image"] = self.network.encode_image(params, given.pixels)
        return dataclasses.replace(canvas, cond=cond)


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


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class CanvasInput:
    """canvas: what is to be filled in.

    source: what `shown` shows; None unless the noise is to be that from which the model would make it (inversion).
    shown: float32 [b t h w c], the latents of the video as it was, everywhere.
    """

    canvas: Canvas
    source: Prompts | None = None
    shown: Array | None = None


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCanvas:
    """From prompts and a CanvasInput to latents; called as vdit.sampling.programs.TextToVideo, without a VAE.

    output_shape: (t, h, w, c) of the latents of one video.
    """

    network: Network
    method: SamplingConfig
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
        given: CanvasInput,
    ) -> Array:
        """Normalised latents, float32 [b t h w c]; noise: to start from, drawn from `key` if None."""
        del vae_params, statistics
        noise = self.start_noise(params, key, noise, given)
        return denoise(self.network, params, given.canvas, prompts, negative, key, self.method, noise=noise)

    def start_noise(self, params: PyTree, key: Array, noise: Array | None, given: CanvasInput) -> Array | None:
        """`noise`, or that from which the model would make what is shown, where there is something to invert."""
        if given.source is None:
            return noise
        shown = dataclasses.replace(given.canvas, latents=given.shown)
        # Another key than that of the sampler's own noise.
        return inverted_noise(self.network, params, shown, given.source, jax.random.fold_in(key, 1), self.method)
