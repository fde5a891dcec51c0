"""Clips of any length through the VAE in flat memory, a few latent frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vdit.errors import ConfigError
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.model import Gaussian, check_latents, check_video
from vdit.types import Array, PyTree


def encode_stream(
    encode_chunk: Callable[[Array, PyTree], tuple[Gaussian, PyTree]],
    config: VAEConfig,
    video: Array,
    *,
    latent_frames: int = 4,
) -> Iterator[Gaussian]:
    """Distributions of the latents of a video [b t h w 3], `latent_frames` at a time.

    encode_chunk: `VAE.encode_chunk` with its parameters bound, jitted or not. Compiles at most two shapes, whatever
    the length: what is left over comes first, and all other chunks are alike.
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
    """Frames of latents [b t h w c], as chunks [b t' h' w' 3], `latent_frames` at a time; what is left over first."""
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
