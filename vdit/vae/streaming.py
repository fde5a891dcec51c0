"""Clips of any length through the VAE in flat memory, a few latent frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vdit.errors import ConfigError
from vdit.types import Array, PyTree
from vdit.vae.config import VAEConfig
from vdit.vae.model import Gaussian, check_latents, check_video


def encode_stream(
    encode_chunk: Callable[[Array, PyTree], tuple[Gaussian, PyTree]],
    config: VAEConfig,
    video: Array,
    *,
    latent_frames: int = 4,
) -> Iterator[Gaussian]:
    """Distributions of the latents of a video [b t h w 3], `latent_frames` at a time.

    encode_chunk: `VAE.encode_chunk` with its parameters bound, jitted or not. Compiles at most three
    shapes, whatever the length: the first chunk, those in the middle, and the last.
    """
    check_video(config, video.shape)
    step = _positive(latent_frames) * config.temporal_stride
    cache, start = None, 0
    while start < video.shape[1]:
        # The clip's first frame is a latent frame of its own.
        stop = start + step if start else 1 + step - config.temporal_stride
        gaussian, cache = encode_chunk(video[:, start:stop], cache)
        yield gaussian
        start = stop


def decode_stream(
    decode_chunk: Callable[[Array, PyTree], tuple[Array, PyTree]],
    config: VAEConfig,
    latents: Array,
    *,
    latent_frames: int = 4,
) -> Iterator[Array]:
    """Frames of latents [b t h w c], as chunks [b t' h' w' 3], `latent_frames` at a time."""
    check_latents(config, latents.shape)
    step, cache = _positive(latent_frames), None
    for start in range(0, latents.shape[1], step):
        video, cache = decode_chunk(latents[:, start : start + step], cache)
        yield video


def _positive(latent_frames: int) -> int:
    if latent_frames < 1:
        raise ConfigError(f"latent_frames={latent_frames} must be at least 1")
    return latent_frames
