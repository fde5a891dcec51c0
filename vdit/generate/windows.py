"""A video of any length made again, window after window of latents, in flat device memory.

The source is encoded as a stream, a window's new frames at a time, and the result decoded as one. A window after the
first begins with latents that the one before has made, and knows them; nothing is encoded twice, so there is no seam.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from vdit.dist.rules import to_host
from vdit.errors import ConfigError, ShapeError
from vdit.generate.filling import grouping_of, window_of
from vdit.generate.generator import Generator
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Prompts
from vdit.sampling.config import SamplingConfig
from vdit.sampling.programs import Reference, SampleCanvas, Window, latent_level
from vdit.seeds import child_seed, key_of
from vdit.types import Array

Begin = Callable[[int, int], Reference]


def latent_windows(count: int, window: int, overlap: int) -> list[tuple[int, int, int]]:
    """(start, known, stop) of windows over `count` latent frames: all of `window` frames, unless all fit into one.

    Each after the first knows its first `overlap` frames; the last one, which must end with the video, more.
    """
    windows = [(0, 0, min(window, count))]
    while (done := windows[-1][2]) < count:
        stop = min(done - overlap + window, count)
        windows.append((stop - window, done, stop))
    return windows


def check_size(generator: Generator, size: tuple[int, int]) -> None:
    """ShapeError unless the model takes videos of this (h, w)."""
    multiple = generator.experiment.size_multiple
    if any(side % multiple for side in size):
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in size)
        raise ShapeError(
            f"a video of {size[0]}x{size[1]} (height x width): both must be multiples of {multiple} (VAE stride x DiT "
            f"patch): scale or cut it to {near} (vdit.generate.inputs.read_input)"
        )


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Remake:
    """A video made again for each prompt.

    begin: (first, stop) -> Reference of those frames of the video, of b = 1 or one for each prompt; of frames after its
        last one too, where the last repeats.
    source: what the video shows, for inversion; None for noise that is drawn.
    window: frames of the longest canvas; overlap: how many of them are known from the one before, about. None: what
        the model was trained on, and a third of it.
    noise: float32 [b t' h' w' c] of all latents, to start from; drawn from `seed` if None.
    """

    generator: Generator
    method: SamplingConfig
    prompts: list[str]
    begin: Begin
    frames: int
    size: tuple[int, int]
    negative: str = ""
    source: str | None = None
    seed: int = 0
    window: int | None = None
    overlap: int | None = None
    noise: Array | None = None

    def __post_init__(self) -> None:
        check_size(self.generator, self.size)
        if self.generator.experiment.network.reference_channels:
            raise ConfigError("this model makes videos of images, with frames given whole: it cannot make one again")
        if self.noise is not None and np.shape(self.noise)[1:] != (self.latent_frames, *self._cell_shape):
            wanted = (len(self.prompts), self.latent_frames, *self._cell_shape)
            raise ShapeError(f"noise of shape {np.shape(self.noise)} must be {wanted}, as the latents")

    @property
    def latent_frames(self) -> int:
        """Those of the video, with what its last frame is repeated for."""
        stride = self.generator.experiment.vae.temporal_stride
        return 1 + (grouping_of(self.generator).canvas(self.frames) - 1) // stride

    @property
    def windows(self) -> list[tuple[int, int, int]]:
        """See latent_windows."""
        stride, patch = self.generator.experiment.vae.temporal_stride, self.generator.experiment.backbone.patch[0]
        window = 1 + (window_of(self.generator, self.window) - 1) // stride
        if window >= self.latent_frames:
            return latent_windows(self.latent_frames, self.latent_frames, 0)
        step = patch * stride
        if window == patch:
            shown = 1 + (window - 1) * stride
            raise ShapeError(
                f"{self.frames} frames in windows of {shown}, as the model was trained on, would not know each other: "
                f"give a window of {shown + step} or more"
            )
        most = (window - patch) * stride
        if self.overlap is not None and not step <= self.overlap <= most:
            raise ShapeError(
                f"overlap={self.overlap} of windows of {1 + (window - 1) * stride} frames: give {step} to {most}"
            )
        overlap = max(window // 3, patch) if self.overlap is None else self.overlap // stride
        overlap = overlap // patch * patch
        return latent_windows(self.latent_frames, window, overlap)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Decoded frames, float32 [b t h w 3] in [-1, 1], some at a time: `frames` in all."""
        before, made, caches, sent = 0, None, (None, None), 0
        shown = None
        for index, (start, known, stop) in enumerate(self.windows):
            new, level, cache = self._encoded(known, stop, caches[0])
            shown = new if shown is None else np.concatenate([shown[:, start - before :], new], axis=1)
            head = new[:, :0] if made is None else made[:, start - before :]
            level = np.pad(level, ((0, 0), (head.shape[1], 0), (0, 0), (0, 0)))
            canvas = Canvas(
                latents=np.concatenate([head, new], axis=1), level=level, first=min(start, 1)
            )  # fmt: skip
            made = self._filled(index, start, stop, canvas, shown) if level.max() > 0 else canvas.latents
            video, decoder = self._decoded(made[:, known - start :], caches[1])
            caches, before = (cache, decoder), start
            yield video[:, : self.frames - sent]
            sent += video.shape[1]

    @property
    def _cell_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of latents."""
        return self.generator.experiment.vae.latent_shape(1, *self.size)[1:]

    @property
    def _chunk(self) -> int:
        """Latent frames that go through the VAE at a time after the first window: one size, one program."""
        return max((stop - known for _, known, stop in self.windows[1:]), default=0)

    def _encoded(self, start: int, stop: int, cache) -> tuple[np.ndarray, np.ndarray, object]:
        """Latents [b t h w c] and levels of latent frames start..stop of the source, and the next cache."""
        vae = self.generator.experiment.vae
        stride, count = vae.temporal_stride, len(self.prompts)
        ends = stop if start == 0 else start + self._chunk
        given = self.begin(max(0, 1 + (start - 1) * stride), 1 + (ends - 1) * stride)
        with jax.set_mesh(self.generator.mesh):
            latents, cache = self.generator.vae.encode_chunk(given.video, cache)
        level = np.asarray(given.level)
        if start:  # a frame of the latent frame before stands in for the one that begins a clip
            level = np.concatenate([level[:, :1], level], axis=1)
        level = np.asarray(latent_level(vae, level))[:, min(start, 1) :]
        spread = lambda x: np.broadcast_to(x, (count, *x.shape[1:]))[:, : stop - start]  # noqa: E731
        return spread(to_host(latents)), spread(level), cache

    def _filled(self, index: int, start: int, stop: int, canvas: Canvas, shown: np.ndarray) -> np.ndarray:
        generator, count = self.generator, len(self.prompts)
        task = SampleCanvas(
            network=generator.experiment.network, method=self.method, output_shape=canvas.latents.shape[1:]
        )
        given = Window(canvas=canvas)
        if self.source is not None:
            given = Window(canvas=canvas, source=self._tokens([self.source] * count), shown=shown)
        noise = None if self.noise is None else np.asarray(self.noise, np.float32)[:, start:stop]
        key = key_of(child_seed(self.seed, index))
        tokens = self._tokens(self.prompts), self._tokens([self.negative] * count)
        return to_host(generator.fill(task, tokens, key, noise, given))

    def _decoded(self, latents: np.ndarray, cache) -> tuple[np.ndarray, object]:
        count = latents.shape[1]
        if cache is not None:  # pad with copies of the last latent; extra frames are dropped
            latents = np.concatenate([latents, np.repeat(latents[:, -1:], self._chunk - count, axis=1)], axis=1)
        with jax.set_mesh(self.generator.mesh):
            video, new = self.generator.vae.decode_chunk(latents, cache)
        stride = self.generator.experiment.vae.temporal_stride
        return to_host(video)[:, : count * stride if cache is not None else None], new

    def _tokens(self, texts: list[str]) -> Prompts:
        return self.generator.tokens(texts)
