"""Rollout: a minute of video and more, piece by piece, in flat memory.

    pieces = vdit.rollout(generator, [(0.0, "a dog runs"), (10.0, "the dog sits down")], seconds=60)
    vdit.write_video("long.mp4", pieces, fps=generator.experiment.sample.fps)
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Unpack

import jax
import numpy as np

from vdit.dist.rules import to_host
from vdit.errors import ConfigError, ShapeError, VditWarning
from vdit.generate.filling import Sampling, Video, frames_of, given_frames, grouping_of, window_of
from vdit.generate.generator import Generator
from vdit.generate.images import as_bytes, fit_images
from vdit.generate.keep import keep_given
from vdit.sampling.canvas import Canvas, Grouping, Prompts
from vdit.sampling.config import SamplingConfig
from vdit.sampling.kv import Continuation, Continue, check_keep, continued
from vdit.sampling.programs import SampleCanvas, Window
from vdit.sampling.rollout import Script, Slide, beginning, going_on
from vdit.seeds import check_seed, key_of
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
    anchor: bool = False,
    seed: int = 0,
    keep: bool | None = None,
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
    anchor: the beginning of the video stays known to all windows, as if it came just before what they know. Colours
        and background drift less, but the scene cannot change much.
    keep: keep what was computed of finished frames (vdit.sampling.kv), as causal models can; None: where it is
        possible. It costs less, and frames know of more than the window holds.
    seed, sampling: see vdit.generate.Generator. A video of one window is the one that the generator makes by this seed.
    Four programs are compiled, whatever the length: the first window and the later ones, and the decoder for each.
    Neither the device nor the host keeps what has been made, but for the last window.
    Raises ShapeError for what does not fit the model, ConfigError for prompts that are not as said; at once.
    """
    script, grouping, config = Script.of(prompts), grouping_of(generator), generator.experiment
    if config.network.reference_channels:
        raise ConfigError("this model makes videos of images: it cannot go on from frames of its own, use `extend`")
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
        slide = Slide.of(grouping, window=window, context=context, anchor=anchor)
    negative = sampling.pop("negative", "")
    method = generator.method(given=given is not None or slide is not None, **sampling)
    generator.check_negative(negative, method)
    unused = [text for time, text in script if time * fps >= frames]
    if unused:
        warnings.warn(
            f"{len(unused)} of {len(script.parts)} prompts have no effect, the first of them {unused[0][:30]!r}: their "
            f"times are after the end, at {frames / fps:.4g} s",
            VditWarning,
            stacklevel=2,
        )
    if anchor and slide is None:
        warnings.warn(f"anchor has no effect: all {frames} frames are made at once", VditWarning, stacklevel=2)
    if anchor and keep:
        raise ConfigError("anchor=True, keep=True: an anchor is known afresh in each window, leave one of them out")
    keep = False if anchor else check_keep(keep, config.network, method)
    roll = _Roll(
        generator=generator, method=method, script=script, negative=negative, fps=fps, frames=frames, size=size,
        given=given, slide=slide, window=window, seed=check_seed(seed), keep=keep,
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
        return given_frames(generator, video)[0]
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
    method: SamplingConfig
    script: Script
    negative: str
    fps: float
    frames: int
    size: tuple[int, int]
    given: np.ndarray | None
    slide: Slide | None
    window: int
    seed: int
    keep: bool

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
        cache = None
        for index, made in enumerate(self._latents(head, sent)):
            video, cache = self._decoded(made, cache)
            if index == 0 and head:
                video = keep_given(video, self.given[-head:], np.ones((head, 1, 1), bool))
            yield video[: self.frames - sent]
            sent += len(video)
            if sent >= self.frames:
                return

    def _latents(self, head: int, sent: int) -> Iterator[Array]:
        """Latents [1 t h w c] without end, some at a time; head: as many frames are known, sent: frames before them."""
        index, at = 0, sent + head
        begun = made = self._filled(self._beginning(head, self.frames - sent), self._words(at), index)
        yield made
        begun = begun[:, : self._kind["patch"]].copy()
        at = sent + self._frames_of(made)
        if self.keep and self.slide is not None:
            yield from self._kept(made, at)
        while True:
            index += 1
            canvas = going_on(made, self.slide, begun=begun, **self._kind)
            made = self._filled(canvas, self._words(at), index)
            new = made[:, self.slide.known * self._kind["patch"] :]
            yield new
            at += new.shape[1] * self.generator.experiment.vae.temporal_stride

    def _kept(self, made: Array, at: int) -> Iterator[Array]:
        """What follows on `made`, by what a causal model keeps of it; at: frames there are."""
        generator, slide = self.generator, self.slide
        go_on = Continue(
            continuation=Continuation(
                network=generator.experiment.network, method=self.method, capacity=slide.context
            ),
            cell=made.shape[2:], new=slide.new,
        )  # fmt: skip
        begin, step = continued(go_on, generator.mesh)
        with jax.set_mesh(generator.mesh):
            memory = begin(generator.params, *self._words(at), self._key(0), made)
        for index in itertools.count(1):
            with jax.set_mesh(generator.mesh):
                new, memory = step(generator.params, *self._words(at), self._key(index), memory)
            yield new
            at += slide.new * self.grouping.step

    @property
    def _kind(self) -> dict[str, int]:
        dit = self.generator.experiment.backbone
        return {"patch": dit.patch[0]}

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

    def _filled(self, canvas: Canvas, words: tuple[Prompts, Prompts], index: int) -> np.ndarray:
        generator = self.generator
        task = SampleCanvas(
            network=generator.experiment.network, method=self.method, output_shape=canvas.latents.shape[1:]
        )
        given, key = Window(canvas=canvas), self._key(index)
        return to_host(generator.fill(task, words, key, None, given))

    def _words(self, at: int) -> tuple[Prompts, Prompts]:
        """What is asked for at a frame, and what is not."""
        texts = self.script.at(at / self.fps), self.negative
        return tuple(self.generator.tokens([text]) for text in texts)

    def _key(self, index: int) -> Array:
        """Of each window; the first one's is that of the generator."""
        key = key_of(self.seed)
        return jax.random.fold_in(key, index) if index else key

    def _frames_of(self, latents: Array) -> int:
        """How many video frames the first latents of a video stand for."""
        return 1 + (latents.shape[1] - 1) * self.generator.experiment.vae.temporal_stride

    def _decoded(self, latents: np.ndarray, cache) -> tuple[np.ndarray, object]:
        """Latents [1 t' h' w' c] and what was decoded before them -> frames [t h w 3], and the next cache."""
        with jax.set_mesh(self.generator.mesh):
            video, cache = self.generator.vae.decode_chunk(latents, cache)
        return to_host(video)[0], cache
