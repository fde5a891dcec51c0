"""Encode and decode videos of any length with a trained VAE."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vdit.dist.mesh import compiler_options
from vdit.errors import ConfigError, ShapeError
from vdit.models.vae import split
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.model import Gaussian, check_latents, check_video
from vdit.models.vae.statistics import denormalise, normalise
from vdit.pixels import check_pixels
from vdit.reprs import short_repr
from vdit.types import Array, PyTree


def encode_stream(
    encode_chunk: Callable[[Array, PyTree], tuple[Gaussian, PyTree]],
    config: VAEConfig,
    video: Array,
    *,
    latent_frames: int = 4,
) -> Iterator[Gaussian]:
    """Encodes a video a few latent frames at a time.

    It compiles at most two shapes for any length: the first chunk may be shorter, all others are alike.

    Args:
        encode_chunk: `VAE.encode_chunk` with its parameters bound, jitted or not.
        config: of the VAE.
        video: [b t h w 3].
        latent_frames: latent frames of a chunk.

    Returns:
        An iterator over the distributions of the latents of each chunk.

    Raises:
        ShapeError: the VAE cannot encode such a video.
        ConfigError: `latent_frames` is below 1.
    """
    check_video(config, video.shape)
    stride, cache = config.temporal_stride, None
    for start, stop in _chunks(1 + (video.shape[1] - 1) // stride, latent_frames):
        # The clip's first frame is a latent frame of its own.
        first = 1 + (start - 1) * stride if start else 0
        gaussian, cache = encode_chunk(video[:, first : 1 + (stop - 1) * stride], cache)
        yield gaussian


def decode_stream(
    decode_chunk: Callable[[Array, PyTree], tuple[Array, PyTree]],
    config: VAEConfig,
    latents: Array,
    *,
    latent_frames: int = 4,
) -> Iterator[Array]:
    """Decodes latents a few frames at a time.

    Args:
        decode_chunk: `VAE.decode_chunk` with its parameters bound, jitted or not.
        config: of the VAE.
        latents: [b t h w c].
        latent_frames: latent frames of a chunk; the first chunk may be shorter.

    Returns:
        An iterator over chunks of frames [b t' h' w' 3].

    Raises:
        ShapeError: the VAE cannot decode such latents.
        ConfigError: `latent_frames` is below 1.
    """
    check_latents(config, latents.shape)
    cache = None
    for start, stop in _chunks(latents.shape[1], latent_frames):
        video, cache = decode_chunk(latents[:, start:stop], cache)
        yield video


def _chunks(frames: int, step: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of chunks. Only the first may be smaller: devices that share frames fill up a clip's start."""
    if step < 1:
        raise ConfigError(f"latent_frames={step} must be at least 1")
    start = 0
    for stop in range((frames - 1) % step + 1, frames + 1, step):
        yield start, stop
        start = stop


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoVAE:
    """A VAE with its parameters and the statistics of its latents. The devices of the mesh in context share the work.

    config: the VAE's. params: its parameters.
    statistics: {"mean": [c], "std": [c]}; latents are normalised by them.
    """

    config: VAEConfig
    params: PyTree
    statistics: PyTree

    def encode(self, video: Array, *, latent_frames: int | None = None) -> Array:
        """Videos to latents.

        Args:
            video: [b t h w 3], uint8 or float in [-1, 1]. t is 1 + a multiple of the stride in time; h and w are
            multiples of
                the stride in space.
            latent_frames: work through so many latent frames at a time, in flat device memory; None: all at once.

        Returns:
            float32 [b t' h' w' c], the mean of the distribution, normalised by the statistics.

        Raises:
            ShapeError: the VAE cannot encode such a shape, or pixels are NaN or out of range.
        """
        video = _as_float(video)
        if latent_frames is None:
            return _encode(self.config)(self.params, self.statistics, video)
        chunk = functools.partial(_encode_chunk(self.config), self.params)
        parts = [g.mean for g in encode_stream(chunk, self.config, video, latent_frames=latent_frames)]
        return normalise(jnp.concatenate(parts, 1), self.statistics)

    def decode(self, latents: Array, *, latent_frames: int | None = None) -> Array:
        """Latents to videos.

        Args:
            latents: float32 [b t' h' w' c], normalised.
            latent_frames: work through so many latent frames at a time, in flat device memory; None: all at once.

        Returns:
            float32 [b t h w 3] in [-1, 1].
        """
        latents = jnp.asarray(latents, jnp.float32)
        if latent_frames is None:
            return _decode(self.config)(self.params, self.statistics, latents)
        chunk = functools.partial(_decode_chunk(self.config), self.params)
        latents = denormalise(latents, self.statistics)
        parts = decode_stream(chunk, self.config, latents, latent_frames=latent_frames)
        return jnp.clip(jnp.concatenate(list(parts), 1), -1.0, 1.0)

    def encode_chunk(self, video: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        """Encodes the next frames of a video, as VAE.encode_chunk.

        Args:
            video: [b t h w 3], uint8 or float in [-1, 1]; t is 1 + stride*k at the start (cache None), later stride*k.
            cache: what the previous call returned; None at the start.

        Returns:
            (latents, normalised; the next cache).
        """
        gaussian, cache = _encode_chunk(self.config)(self.params, _as_float(video), cache)
        return normalise(gaussian.mean, self.statistics), cache

    def decode_chunk(self, latents: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        """Decodes the next latents of a video, as VAE.decode_chunk.

        Args:
            latents: float32 [b t' h' w' c], normalised.
            cache: what the previous call returned; None at the start.

        Returns:
            (frames in [-1, 1], the next cache).
        """
        latents = denormalise(jnp.asarray(latents, jnp.float32), self.statistics)
        video, cache = _decode_chunk(self.config)(self.params, latents, cache)
        return jnp.clip(video, -1.0, 1.0), cache


def _as_float(video: Array) -> Array:
    if np.ndim(video) != 5 or np.shape(video)[-1] != 3:
        raise ShapeError(f"video of shape {np.shape(video)} must be [b t h w 3]: add the batch axis with video[None]")
    check_pixels(video, "video")
    if video.dtype == np.uint8:
        return jnp.asarray(video, jnp.float32) / 127.5 - 1.0
    return jnp.asarray(video, jnp.float32)


@functools.cache
def _encode(config: VAEConfig):
    def encode(params, statistics, video):
        mean = split.encode(config, params, video).mean
        return normalise(mean.astype(jnp.float32), statistics)

    return jax.jit(encode, compiler_options=compiler_options())


@functools.cache
def _decode(config: VAEConfig):
    def decode(params, statistics, latents):
        video = split.decode(config, params, denormalise(latents, statistics))
        return jnp.clip(video.astype(jnp.float32), -1.0, 1.0)

    return jax.jit(decode, compiler_options=compiler_options())


@functools.cache
def _encode_chunk(config: VAEConfig):
    def encode_chunk(params, chunk, cache):
        return split.encode_chunk(config, params, chunk, cache)

    return jax.jit(encode_chunk, compiler_options=compiler_options())


@functools.cache
def _decode_chunk(config: VAEConfig):
    def decode_chunk(params, latents, cache):
        return split.decode_chunk(config, params, latents, cache)

    return jax.jit(decode_chunk, compiler_options=compiler_options())
