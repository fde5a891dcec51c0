"""Ordinary files (videos, animations, still images) to frames that fit a model.

The rule, which the note of each input tells in words: a picture is scaled to cover the size asked for, or the size
that suits its shape best (vdit.generate.images.choose_size), and the overhang is cut off evenly; never squashed, and
never scaled up unless a size is asked for. Pixels that are not square are made so first (vdit.video.convert). Frames
come at the file's own rate unless another is asked for: then by time, each moment as it is on screen. A still image is
a clip of one frame. `read_input` reads a file whole, `open_input` some frames at a time, in flat memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdit.errors import ShapeError, VideoError
from vdit.generate.images import Fit, choose_size, is_image, read_image
from vdit.paths import local_copy
from vdit.pixels import Clip
from vdit.reprs import short_repr
from vdit.video.read import iter_frames, probe, read_tail, read_video

SAME_RATE = 5e-3  # rates this near, as 29.97 and 30, are taken for one: no frame is repeated or left out for it
PART_RATE = 0.1  # how far the rate of a part may be from the file's, and still be taken for it
CHUNK = 32  # frames of a file that are held at a time
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # .gif and .avif may be videos too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Which frames of a file are taken.

    fps: one for each 1/fps seconds, the one on screen then; None for each frame once. start: seconds from the file's
    first frame. seconds: how long from there, None to the end. max_frames: the first so many of these. last: the last
    so many of these.
    """

    fps: float | None = None
    start: float = 0.0
    seconds: float | None = None
    max_frames: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.max_frames is not None:
            raise ShapeError(f"last={self.last} and max_frames={self.max_frames}: give one of them")

    def at_rate(self, rate: float | None) -> Span:
        """The span in a file of this rate: each frame once where `fps` nearly agrees with it."""
        same = self.fps is not None and bool(rate) and same_rate(self.fps, rate)
        return dataclasses.replace(self, fps=None) if same else self

    @property
    def reading(self) -> dict[str, float | int | None]:
        """Arguments of vdit.video.read's readers, all but `last`."""
        most = {} if self.last is not None else {"max_frames": self.max_frames}
        return {"fps": self.fps, "start": self.start, "duration": self.seconds} | most


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """What was read of a file.

    frames: uint8 [t h w 3]. fps: frames per second; None for a still image.
    fit: how its pictures became those frames. span: which of its frames they are; `dropped` more were left out, at
    the end (with span.last, at the beginning), for a length that the model can make. sound: whether the file has any.
    note: what was done, in one line for people to read.
    """

    path: Path
    frames: np.ndarray
    fps: float | None
    fit: Fit
    span: Span
    dropped: int = 0
    sound: bool = False
    note: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the frames."""
        return self.fit.size

    @property
    def still(self) -> bool:
        return self.fps is None


def read_input(
    path: str | Path,
    span: Span | None = None,
    *,
    size: tuple[int, int] | None = None,
    area: int | None = None,
    multiple: int = 1,
    least: int = 1,
    lengths: tuple[int, int] = (1, 1),
    **options: Any,
) -> Input:
    """Reads a file, fitted; holds only the frames that are asked for, and decodes little more.

    Args:
        path: a video or an image.
        span: which frames; None for all. Its `fps` counts as the file's own where they nearly agree.
        size: (h, w), multiples of `multiple`. None: what suits the picture.
        area: the most pixels where `size` is None; None: as many as the picture's own.
        multiple: VAE stride x DiT patch, in pixels.
        least: fewer frames are a ShapeError.
        lengths: (first, step): the model makes first + any multiple of step frames; frames beyond the last such length
            are left out.
        options: fields of `Span` (fps, start, seconds, max_frames, last) that replace those of `span`.

    Returns:
        The frames, and what was done to them.

    Raises:
        VideoError: the file cannot be read.
        ShapeError: what it holds does not fit.
    """
    span = dataclasses.replace(span or Span(), **options)
    path = local_copy(path, error=VideoError)
    info = _look(path)
    fit = Fit(own=info.size, size=_size(path, info.size, size, area, multiple))
    if info.still:
        frames = fit.image(read_image(path))[None]
        _check_length(path, 1, least)
        return Input(path=path, frames=frames, fps=None, fit=fit, span=Span(), note=_note(path, fit, "a still image"))
    rate, wanted = info.rate, span.fps
    span = span.at_rate(rate)
    fps, last = span.fps, span.last
    clip = _read(path, span, fit)
    count = len(clip.frames)
    _check_length(path, count, max(least, lengths[0]))
    dropped = (count - lengths[0]) % lengths[1]
    frames = clip.frames[dropped:] if last is not None else clip.frames[: count - dropped]
    taken = f"{_taken(span, count)}{_left_out(span, dropped, lengths)}{_uneven(clip, span)}"
    if fps is not None and rate and fps > rate:
        taken += ", some of them twice or more" if fps > 2 * rate else ", some of them twice"
    taken += "".join(f"; {remark}" for remark in info.remarks)
    own = rate if fps else _rate(clip, rate, span)
    note = f"{_note(path, fit, 'of unknown rate' if own is None else f'at {own:.4g} fps')}; {taken}"
    shown = wanted or own
    return Input(
        path=path, frames=frames, fps=shown, fit=fit, span=span, dropped=dropped, sound=info.sound, note=note
    )


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInput:
    """A file that is read while something is made of it; it may be read more than once (vdit.generate.sliding.Frames).

    fps: of its frames; None for a still image. count: how many frames it has, as the file says before it is decoded.
    fit, span, note: as of Input. sound: whether the file has any.
    """

    path: Path
    fps: float | None
    count: int
    fit: Fit
    span: Span
    sound: bool = False
    note: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the frames."""
        return self.fit.size

    def __iter__(self) -> Iterator[np.ndarray]:
        """float32 [1 t h w 3] in [-1, 1], at most CHUNK frames at a time."""
        waiting: list[np.ndarray] = []
        for frame in self._frames():
            waiting.append(frame)
            if len(waiting) == CHUNK:
                yield _floats(waiting)
                waiting = []
        if waiting:
            yield _floats(waiting)

    def _frames(self) -> Iterator[np.ndarray]:
        """uint8 [h w 3]"""
        if self.fps is None:
            return iter([self.fit.image(read_image(self.path))])
        return (frame for _, frame in iter_frames(self.path, size=self.fit.size, threads=0, **self.span.reading))


def open_input(
    path: str | Path,
    span: Span | None = None,
    *,
    size: tuple[int, int] | None = None,
    area: int | None = None,
    multiple: int = 1,
    **options: Any,
) -> VideoInput:
    """Opens a file, whose frames are read when they are asked for.

    Arguments and errors as of `read_input`, but the span has no `last`.
    """
    asked = dataclasses.replace(span or Span(), **options)
    if asked.last is not None:
        raise ShapeError(f"last={asked.last}: the last frames are read whole, with read_input")
    path = local_copy(path, error=VideoError)
    info = _look(path)
    fit = Fit(own=info.size, size=_size(path, info.size, size, area, multiple))
    if info.still:
        note = _note(path, fit, "a still image")
        return VideoInput(path=path, fps=None, count=1, fit=fit, span=Span(), note=note)
    rate, span = info.rate, asked.at_rate(info.rate)
    count = claimed_frames(path, span)
    taken = _taken(span, count)
    if span.fps is not None and rate and span.fps > rate:
        taken += ", some of them twice or more" if span.fps > 2 * rate else ", some of them twice"
    taken += "".join(f"; {remark}" for remark in info.remarks)
    note = f"{_note(path, fit, 'of unknown rate' if rate is None else f'at {rate:.4g} fps')}; {taken}"
    shown = span.fps or rate
    return VideoInput(path=path, fps=shown or 25.0, count=count, fit=fit, span=span, sound=info.sound, note=note)


def _floats(frames: list[np.ndarray]) -> np.ndarray:
    return np.float32(np.stack(frames))[None] / np.float32(127.5) - np.float32(1)


def claimed_frames(path: str | Path, span: Span | None = None, **options: Any) -> int:
    """How many frames `read_input` would hold, as the file says before it is decoded; 0 where it does not say."""
    span = dataclasses.replace(span or Span(), **options)
    info = _look(local_copy(path, error=VideoError))
    if info.still:
        return 1
    rate, seconds = span.fps or info.rate, span.seconds
    length = None if info.seconds is None else max(0.0, info.seconds - span.start)
    if seconds is not None:
        length = seconds if length is None else min(length, seconds)
    most = min(n for n in (span.max_frames, span.last, math.inf) if n is not None)
    if length is None or rate is None:
        return 0 if most == math.inf else most
    return min(math.ceil(length * rate), most)


def same_rate(a: float, b: float) -> bool:
    """Whether two numbers of frames per second count as one: 29.97 and 30 do."""
    return abs(a / b - 1) <= SAME_RATE


def common_size(
    paths: Sequence[str | Path], *, size: tuple[int, int] | None = None, area: int | None = None, multiple: int = 1
) -> tuple[int, int]:
    """One (h, w) for files that go on one canvas: `size` if it is given, else what suits the first of them.

    Give it to `read_input` of each. The others are cut, or scaled up where they are smaller; their notes say so.
    """
    own = _look(local_copy(paths[0], error=VideoError)).size if size is None else (0, 0)
    return _size(local_copy(paths[0], error=VideoError), own, size, area, multiple)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Looks:
    """What a file says of itself. size: (h, w) as displayed. rate: frames per second, or None where it is unknown;
    seconds: its length, likewise. remarks: what it has that is not taken, for the note."""

    size: tuple[int, int]
    still: bool
    rate: float | None = None
    seconds: float | None = None
    sound: bool = False
    remarks: tuple[str, ...] = ()


def _look(path: Path) -> _Looks:
    if path.suffix.lower() in (".heic", ".heif"):
        raise VideoError(f"{path}: HEIF pictures are not read: write it as .jpg or .png")
    if path.suffix.lower() in PICTURES or is_image(path):
        return _Looks(size=read_image(path).shape[:2], still=True)
    info = probe(path)
    remarks = (
        "it is interlaced, and stays so" if info.interlaced else "",
        f"it has {info.streams} videos, the first is taken" if info.streams > 1 else "",
    )
    return _Looks(
        size=(info.height, info.width), still=False, rate=info.fps, seconds=info.duration, sound=info.sound,
        remarks=tuple(filter(None, remarks)),
    )  # fmt: skip


def _size(
    path: Path, own: tuple[int, int], size: tuple[int, int] | None, area: int | None, multiple: int
) -> tuple[int, int]:
    if size is None:
        try:
            return choose_size(*own, multiple=multiple, area=area)
        except ShapeError as error:
            raise ShapeError(f"{path}: {error}") from None
    height, width = int(size[0]), int(size[1])
    if min(height, width) < 1 or height % multiple or width % multiple:
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in (height, width))
        raise ShapeError(
            f"size {height}x{width} (height x width): both must be multiples of {multiple} (VAE stride x DiT patch): "
            f"use {near}"
        )
    return height, width


def _read(path: Path, span: Span, fit: Fit) -> Clip:
    if span.last is not None:
        return read_tail(path, span.last, size=fit.size, threads=0, **span.reading)
    return read_video(path, size=fit.size, threads=0, **span.reading)


def _rate(clip: Clip, declared: float | None, span: Span) -> float:
    """Of frames at the file's own rate. A few of them tell it badly where they come at uneven times (phones)."""
    if declared is None:
        return clip.fps
    part = span.seconds is not None or span.max_frames is not None or span.last is not None
    return declared if part and abs(clip.fps / declared - 1) < PART_RATE else clip.fps


def _check_length(path: Path, count: int, least: int) -> None:
    if count < least:
        has = "1 frame" if count == 1 else f"{count} frames"
        raise ShapeError(f"{path}: has {has} to take, {least} are needed: give a longer video, or take more of it")


def _note(path: Path, fit: Fit, kind: str) -> str:
    return f"{path.name}: {fit.own[0]}x{fit.own[1]} {kind}, {fit}"


def _taken(span: Span, count: int) -> str:
    frames = "1 frame" if count == 1 else f"{count} frames"
    rate = "" if span.fps is None else f" at {span.fps:.4g} fps"
    whole = span.seconds is None and span.max_frames is None and span.last is None
    if span.last is not None:
        end = "" if span.seconds is None else f" before {span.start + span.seconds:.4g} s"
        return f"its last {frames}{end}{rate}"
    if span.start:
        return f"{frames} from {span.start:.4g} s on{rate}"
    if not whole:
        return f"its first {frames}{rate}"
    return f"taken{rate}: {frames}" if rate else "every frame kept"


def _left_out(span: Span, dropped: int, lengths: tuple[int, int]) -> str:
    if not dropped:
        return ""
    where = "first" if span.last is not None else "last"
    which = f"the {where} of them" if dropped == 1 else f"the {where} {dropped} of them"
    return f", but {which} (the model makes {lengths[0]} + a multiple of {lengths[1]} frames)"


def _uneven(clip: Clip, span: Span) -> str:
    """A word on frames that come at uneven times, and would be shown at even ones."""
    if span.fps is not None or len(clip.times) < 3:
        return ""
    even = np.arange(len(clip.times)) / clip.fps
    if np.abs(clip.times - even).max() < 0.75 / clip.fps:
        return ""
    return "; they come at uneven times (an fps evens them out)"
