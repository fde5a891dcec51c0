"""Videos that are made again while a canvas slides along them: edit, inpaint and outpaint as streams."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.generate import known as knowing
from vdit.generate.blend import Blend, Piece
from vdit.generate.generator import Generator
from vdit.generate.sliding import Frames, Pieces, Run, iter_closing, kept
from vdit.models.vae.config import VAEConfig
from vdit.sampling.config import Structure
from vdit.sampling.programs import Reference
from vdit.sampling.sliding import EditedVideo, SlidingCanvas, Window
from vdit.types import Array

# On 24 clips of rendered worlds 1.6 to 2.3 dB better inside the mask than 1, and among the best of 0.4 to 1.
EDGE = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedFrames:
    """A video in a larger frame (vdit.generate.known.Frame), grey around."""

    video: Frames
    frame: knowing.Frame

    @property
    def size(self) -> tuple[int, int]:
        return self.frame.size

    @property
    def count(self) -> int:
        return self.video.count

    def __iter__(self) -> Pieces:
        return (self.frame.place(piece) for piece in self.video)

    def part(self, **more) -> Part:
        """What is around the video. more: of Part."""
        mask = self.frame.mask
        return Part(masks=lambda count: np.broadcast_to(mask, (count, *mask.shape)), whole=mask[None], **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a video that is made again.

    masks: gives bool [t h w] of the next t frames, called in their order: true where something is to be made.
    grow: pixels by which the mask is wider for the model. edge: the level at which latents begin that are known in
    part; None: masked pixels begin as they are, noised (editing). soft: Blend.sigma. whole: the mask of the whole
    video, or bool [1 h w] where all frames are alike; None where it is not at hand.
    """

    masks: Callable[[int], np.ndarray]
    grow: int = 0
    edge: float | None = None
    soft: tuple[float, float] | None = None
    whole: np.ndarray | None = None

    @classmethod
    def of_array(cls, mask: np.ndarray, **more) -> Part:
        """mask: bool [t h w]."""
        left = iter(mask)
        return cls(masks=lambda count: np.stack(list(itertools.islice(left, count))), whole=mask, **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """What is asked of vdit.edit or vdit.inpaint.

    levels: float32 [t], where each frame begins; the last one counts for all later frames. part: None for all of the
    video. source, structure, invert: as of vdit.edit. overlap, noise: as of vdit.generate.verbs.
    """

    levels: np.ndarray | Sequence[float] = (1.0,)
    part: Part | None = None
    source: str | None = None
    structure: Structure | None = None
    invert: bool = False
    overlap: int | None = None
    noise: Array | None = None

    def __post_init__(self) -> None:
        if self.source is not None and not self.invert:
            raise ConfigError("source describes the video for its inversion: add invert=True, or leave it out")
        if self.invert and self.noise is not None:
            raise ConfigError("noise and invert=True: inversion finds the noise, leave one of them out")

    @property
    def known(self) -> bool:
        """Whether a part of the video is to stay."""
        return self.part is not None or float(np.min(self.levels)) == 0

    def at(self, numbers: np.ndarray) -> np.ndarray:
        """Levels of frames by their numbers."""
        return np.asarray(self.levels, np.float32)[np.minimum(numbers, len(self.levels) - 1)]


def edit(run: Run, video: Frames, asked: Edit) -> Pieces:
    """vdit.edit, vdit.inpaint: a video made again while a canvas slides along it."""
    generator, count, part = run.generator, len(run.prompts), asked.part
    vae, start = generator.experiment.vae, float(np.max(asked.levels))
    if part is not None and part.whole is not None and part.edge is not None:
        wide = knowing.grown(part.whole, part.grow)
        if wide.all():
            raise ShapeError(
                "mask is true everywhere" + (f" once grown by {part.grow} pixels" if part.grow else "")
                + ": that is text to video, make it by generator(prompts) (vdit sample)"
            )  # fmt: skip
        check_size(generator, video.size)
        stride, side = vae.temporal_stride, vae.spatial_stride
        start = float(knowing.edge_levels(wide, edge=part.edge, stride=stride, side=side).max())
    check_size(generator, video.size)
    if generator.experiment.network.reference_channels:
        raise ConfigError("this model makes videos of images, with frames given whole: it cannot make one again")
    if asked.invert and "sampler" not in run.sampling:
        run = dataclasses.replace(run, sampling=run.sampling | {"sampler": "euler"})
    # Each canvas but the first knows the end of the one before.
    method = dataclasses.replace(run.method(known=asked.known or video.count > run.window), structure=asked.structure)
    if start < 1.0:
        method = dataclasses.replace(method, grid=dataclasses.replace(method.grid, start=start))
    generator.check_negative(run.negative, method)
    if asked.noise is not None:
        wanted = count, *vae.latent_shape(run.grouping.canvas(video.count), *video.size)
        if np.shape(asked.noise)[1:] != wanted[1:]:
            raise ShapeError(f"noise of shape {np.shape(asked.noise)} must be {wanted}, as the latents")
    reader = _Source(video, asked, vae)
    shown = generator.tokens([asked.source or ""] * count) if asked.invert else None
    engine = SlidingCanvas(
        model=generator, sampling=method, window=edit_window(run, video.count, asked.overlap),
        source=EditedVideo(frames=reader, prompts=shown, noise=asked.noise),
    )  # fmt: skip
    words = run.words(run.prompts)
    pieces = run.going_on(engine, None, lambda made: words)
    if part is None:
        return pieces

    def pairs() -> Iterator[list[Piece]]:
        for made in pieces:
            given, mask = reader.given.popleft()
            yield [Piece(made=one, reference=given[0], known=~mask) for one in made]

    return kept(pairs(), count, Blend(sigma=part.soft, joins=run.joins))


class _Source:
    """A video as a Source of the engine (vdit.sampling.sliding).

    given: the frames [1 t h w 3] and masks [t h w] that it has given out and that were not put back yet.
    """

    def __init__(self, video: Frames, asked: Edit, vae: VAEConfig):
        self._pieces, self._asked, self._vae = iter_closing(video), asked, vae
        self._waiting: list[np.ndarray] = []
        self._done, self._shown = 0, None
        self.given: collections.deque[tuple[np.ndarray, np.ndarray]] = collections.deque()

    def __call__(self, frames: int) -> Reference | None:
        while sum(part.shape[1] for part in self._waiting) < frames:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._waiting.append(piece)
        if not self._waiting:
            return None
        both = np.concatenate(self._waiting, axis=1)
        video, rest = both[:, :frames].copy(), both[:, frames:].copy()  # a view would keep all of `both`
        self._waiting = [rest] if rest.shape[1] else []
        first, self._done = self._done, self._done + video.shape[1]
        level, part = self._asked.at(np.arange(first, self._done)), self._asked.part
        if part is None:
            return knowing.edit(video, strength=level)
        mask = part.masks(video.shape[1])
        self.given.append((video, mask))
        wide = knowing.grown(mask, part.grow)
        if part.edge is None:
            return knowing.edit(video, strength=level, mask=wide)
        stride, side = self._vae.temporal_stride, self._vae.spatial_stride
        levels = knowing.edge_levels(wide, edge=part.edge, stride=stride, side=side, first=first == 0)
        return knowing.inpaint(*self._nearest(video, wide), levels)

    def _nearest(self, video: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In the place of frames that are masked whole, the nearest so far that shows something."""
        before = 0 if self._shown is None else 1
        if before:
            video = np.concatenate([self._shown[0], video], axis=1)
            mask = np.concatenate([self._shown[1], mask])
        if not mask.all((1, 2)).all():
            near = knowing.nearest_shown(mask)
            video, mask = video[:, near], mask[near]
            self._shown = video[:, -1:], mask[-1:]
        return video[:, before:], mask[before:]


def edit_window(run: Run, frames: int, overlap: int | None) -> Window:
    """How the canvas slides along a video of about so many frames; ShapeError where it cannot."""
    grouping = run.grouping
    groups = 1 + (run.window - grouping.first) // grouping.step
    if frames <= run.window:
        overlap = None  # one canvas holds all
    elif groups == 1:
        raise ShapeError(
            f"{frames} frames in windows of {run.window}, as the model was trained on, would not know each other: "
            f"give a window of {run.window + grouping.step} or more"
        )
    most = (groups - 1) * grouping.step
    if overlap is not None and not grouping.step <= overlap <= most:
        raise ShapeError(f"overlap={overlap} of windows of {run.window} frames: give {grouping.step} to {most}")
    context = max(1, groups // 3) if overlap is None else overlap // grouping.step
    return Window(first=groups, context=context, new=max(1, groups - context), start=1)


def check_size(generator: Generator, size: tuple[int, int]) -> None:
    """ShapeError unless the model takes videos of this (h, w)."""
    multiple = generator.experiment.size_multiple
    if any(side % multiple for side in size):
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in size)
        raise ShapeError(
            f"a video of {size[0]}x{size[1]} (height x width): both must be multiples of {multiple} (VAE stride x DiT "
            f"patch): scale or cut it to {near} (vdit.generate.inputs.read_input)"
        )
