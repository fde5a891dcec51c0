"""Rollout: a minute of video and more, piece by piece, in flat memory.

    pieces = vdit.rollout(generator, [(0.0, "a dog runs"), (10.0, "the dog sits down")], seconds=60)
    vdit.write_video("long.mp4", pieces, fps=generator.experiment.sample.fps)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Unpack

import jax
import numpy as np

from vdit.dist.fetch import to_host
from vdit.errors import ConfigError, ShapeError
from vdit.infer.filling import Sampling, Video, frames_of, grouping_of, window_of
from vdit.infer.generator import Generator
from vdit.infer.images import as_bytes, fit_images
from vdit.infer.keep import keep_given
from vdit.tasks.canvas import Canvas
from vdit.tasks.generate import Method
from vdit.tasks.grouping import Grouping
from vdit.tasks.rollout import Script, Slide, beginning, going_on
from vdit.tasks.sample import draw
from vdit.tasks.window import FillWindow, Window
from vdit.types import Array


def rollout(
    generator: Generator,
    prompts: str | Sequence[tuple[float, str]],
    *,
    frames: int | None = None,
    seconds: float | None = None,
    fps: float | None = None,
    image: Array | None = None,
    video: Video | None = None,
    size: tuple[int, int] | None = None,
    context: int | None = None,
    window: int | None = None,
    seed: int = 0,
    **sampling: Unpack[Sampling],
) -> Iterator[np.ndarray]:
    """One video of any length, float32 [t h w 3] in [-1, 1] some frames at a time, as they are made.

    prompts: a text, or texts from times in seconds on, the first from 0; of what is made at once, that of the first
        new frame counts.
    frames, or seconds at `fps` (None: the experiment's `sample`): of the whole result, what is given included.
    image, video: how it begins, one of them: [h w 3] of any size, scaled to cover `size` (height, width; None: as in
        the experiment's `sample`) and cut; or [t h w 3] or a Clip, whose height and width must be multiples of VAE
        stride x patch. These frames come back bit for bit.
    window: frames that are made at once; None is the longest video that the model was trained on or is sampled at.
    context: how many of them are known from before, once the window slides (rounded down to what the model makes at
        once); None is about half.
    seed, sampling: see vdit.infer.Generator. A video of one window is the one that the generator makes by this seed.
    Four programs are compiled, whatever the length: the first window and the later ones, and the decoder for each.
    Neither the device nor the host keeps what has been made, but for the last window.
    Raises ShapeError for what does not fit the model, ConfigError for prompts that are not as said; at once.
    """
    script, grouping, config = Script.of(prompts), grouping_of(generator), generator.experiment
    if config.dit.condition_channels:
        raise ConfigError("this model makes videos of images: it cannot go on from frames of its own, use vdit.extend")
    if (frames is None) == (seconds is None):
        raise ConfigError(f"frames={frames}, seconds={seconds}: give one of them, the length of the video")
    fps = config.sample.fps if fps is None else fps
    frames = round(seconds * fps) if frames is None else frames
    if frames < 1:
        raise ShapeError(f"a video of {frames} frames: give 1 or more")
    given = _given(generator, image, video, size)
    size = given.shape[1:3] if given is not None else tuple(config.sample.size if size is None else size)
    if given is not None and frames <= len(given):
        raise ShapeError(f"a video of {frames} frames: {len(given)} are given, give a length of more than that")
    window, slide = window_of(generator, window), None
    if frames > window or context is not None:
        slide = Slide.of(grouping, window=window, context=context)
    negative = sampling.pop("negative", "")
    roll = _Roll(
        generator=generator, method=generator.method(**sampling), script=script, negative=negative, fps=fps,
        frames=frames, size=size, given=given, slide=slide, window=window, seed=seed,
    )  # fmt: skip
    roll.check()
    return iter(roll)


def _given(
    generator: Generator, image: Array | None, video: Video | None, size: tuple[int, int] | None
) -> np.ndarray | None:
    """How the video begins, float32 [t h w 3]."""
    if image is not None and video is not None:
        raise ConfigError("image and video: give one of them, how the video begins")
    if video is not None:
        if size is not None:
            raise ConfigError(f"size={size}: that of the given video counts, leave it out")
        return frames_of(video)[0]
    if image is None:
        return None
    images = as_bytes(image)
    if len(images) != 1:
        raise ShapeError(f"{len(images)} images: give one, [h w 3]")
    return frames_of(fit_images(images, generator.experiment.sample.size if size is None else size))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Roll:
    """One rollout. slide: None where all is made at once. given: float32 [t h w 3] or None."""

    generator: Generator
    method: Method
    script: Script
    negative: str
    fps: float
    frames: int
    size: tuple[int, int]
    given: np.ndarray | None
    slide: Slide | None
    window: int
    seed: int

    def check(self) -> None:
        """ShapeError for a size that the model cannot make."""
        self.generator.task(self.method, self.grouping.first, self.size, given=True)

    @property
    def grouping(self) -> Grouping:
        return grouping_of(self.generator)

    @property
    def head(self) -> int:
        """Frames at the end of what is given that the first canvas begins with."""
        if self.given is None:
            return 0
        most = self.window - self.grouping.step
        if self.slide is not None:
            most = min(most, self.grouping.first + (self.slide.context - 1) * self.grouping.step)
        return max(self.grouping.head(min(len(self.given), most)), min(len(self.given), self.grouping.first))

    def __iter__(self) -> Iterator[np.ndarray]:
        head, sent = self.head, 0
        if self.given is not None and len(self.given) > head:
            sent = len(self.given) - head
            yield self.given[:sent]
        made, cache, index = None, None, 0
        while sent < self.frames:
            if made is None:
                canvas = self._beginning(head, self.frames - sent)
                prompt = self.script.at((sent + head) / self.fps)
            else:
                canvas = going_on(made, self.slide, **self._kind)
                prompt = self.script.at(sent / self.fps)
            known = 0 if made is None else self.slide.context * self._kind["patch"]
            made = self._filled(canvas, prompt, index)
            video, cache = self._decoded(made[:, known:], cache)
            if index == 0 and head:
                given = self.given[-head:]
                video = keep_given(video, given, np.ones((head, 1, 1), bool))
            yield video[: self.frames - sent]
            sent, index = sent + len(video), index + 1

    @property
    def _kind(self) -> dict[str, int]:
        dit = self.generator.experiment.dit
        return {"patch": dit.patch[0], "action_width": dit.action_width}

    def _beginning(self, head: int, wanted: int) -> Canvas:
        """The first canvas: as long as the window, or as the frames `wanted`, if these are fewer."""
        generator, grouping = self.generator, self.grouping
        length = min(self.window, grouping.canvas(wanted))
        cell = generator.experiment.vae.latent_shape(1, *self.size)[1:]
        latents = np.zeros((1, 0, *cell), np.float32)
        if head:
            frames = self.given[-head:]
            # Fewer frames than are made at once stand still to the end of their group, as far as the model is told.
            frames = np.concatenate([frames, np.repeat(frames[-1:], max(0, grouping.first - head), axis=0)])
            with jax.set_mesh(generator.mesh):
                latents = to_host(generator.vae.encode(frames[None]))
        groups = 1 + (length - grouping.first) // grouping.step
        return beginning(latents, groups, **self._kind)

    def _filled(self, canvas: Canvas, prompt: str, index: int) -> np.ndarray:
        generator, key = self.generator, jax.random.key(self.seed)
        task = FillWindow(
            network=generator.experiment.network, method=self.method, output_shape=canvas.latents.shape[1:]
        )
        words = generator.tokens([prompt]), generator.tokens([self.negative])
        key = jax.random.fold_in(key, index) if index else key  # the first is that of the generator
        return to_host(
            draw(task, generator.mesh, generator.params, None, None, *words, key, None, Window(canvas=canvas))
        )

    def _decoded(self, latents: np.ndarray, cache) -> tuple[np.ndarray, object]:
        """Latents [1 t' h' w' c] and what was decoded before them -> frames [t h w 3], and the next cache."""
        with jax.set_mesh(self.generator.mesh):
            video, cache = self.generator.vae.decode_chunk(latents, cache)
        return to_host(video)[0], cache
