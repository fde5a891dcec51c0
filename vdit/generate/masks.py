"""What of a video is to be made: masks from files, boxes from the command line."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vdit import paths
from vdit.errors import ConfigError, ShapeError, VideoError
from vdit.generate.images import is_image, read_image
from vdit.generate.inputs import VideoInput
from vdit.video.read import Window, frame_numbers, iter_frames

BLACK = (0, 0, 0)  # stands for what is transparent: not to be made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks:
    """The mask of a video, some frames at a time.

    begin: gives a reader that stands at the first frame: called with a number of frames, it gives bool [t h w] for the
    next ones. whole: bool [1 h w], where all frames are alike; None where they are not.
    """

    begin: Callable[[], Callable[[int], np.ndarray]]
    whole: np.ndarray | None = None

    @classmethod
    def still(cls, mask: np.ndarray) -> Masks:
        """One bool [h w] for all frames."""
        return cls(begin=lambda: lambda count: np.broadcast_to(mask, (count, *mask.shape)), whole=mask[None])


def mask_frames(path: str | Path, like: VideoInput) -> Masks:
    """The mask of a video from an image or a video (white, from the middle up), read in step with its frames.

    A mask is made for the file: it has the file's own height and width, and one picture for all frames or as many as
    the file has, whatever part of the file is read. It is fitted as the frames are, and a pixel is to be made if any
    of it is. Transparent is black. The whole of a video is decoded here, to see that it fits; none of it is held.

    Raises: ShapeError for another size or number of frames, or where nothing is white.
    """
    path = paths.local_copy(path, error=VideoError)
    if is_image(path):
        mask = _white(read_image(path, background=BLACK), path, like)
        if not mask.any():
            raise ShapeError(f"{path}: is black everywhere in what is kept of it: nothing is to be made")
        return Masks.still(mask)
    numbers, total = _numbers(like)
    count, any_white, single = 0, False, None
    for _, picture in iter_frames(path, background=BLACK):
        white = _white(picture, path, like)
        single = white if count == 0 else None
        any_white |= bool(white.any())
        count += 1
    if not any_white:
        raise ShapeError(f"{path}: is black everywhere in what is kept of it: nothing is to be made")
    if count == 1:
        return Masks.still(single)
    if count != total:
        raise ShapeError(
            f"{path}: has {count} frames, {like.path.name} has {total}: a mask has one frame for each of the video's, "
            "or is a still image"
        )

    def begin() -> Callable[[int], np.ndarray]:
        pictures = enumerate(picture for _, picture in iter_frames(path, background=BLACK))
        wanted, now = iter(numbers), [-1, None]

        def take(count: int) -> np.ndarray:
            out = np.zeros((count, *like.size), bool)
            for k in range(count):
                number = next(wanted, None)
                while number is not None and now[0] < number:
                    now[0], picture = next(pictures)
                    now[1] = _white(picture, path, like) if now[0] == number else None
                if now[1] is not None:
                    out[k] = now[1]
            return out

        return take

    return Masks(begin=begin)


def box_masks(boxes: Sequence[Box], like: VideoInput) -> Masks:
    """The mask of boxes; ShapeError for a box that lies outside, in space or in time."""
    areas = [box.area(like) for box in boxes]
    if all(box.start == 0 and box.end is None for box in boxes):
        return Masks.still(np.any(areas, axis=0))

    def begin() -> Callable[[int], np.ndarray]:
        at = [0]

        def take(count: int) -> np.ndarray:
            numbers = np.arange(at[0], at[0] + count)
            at[0] += count
            out = np.zeros((count, *like.size), bool)
            for box, area in zip(boxes, areas):
                out |= box.during(numbers, like)[:, None, None] & area
            return out

        return take

    return Masks(begin=begin)


def _white(image: np.ndarray, path: Path, like: VideoInput) -> np.ndarray:
    if image.shape[:2] != like.fit.own:
        mine, theirs = (f"{size[0]}x{size[1]}" for size in (image.shape[:2], like.fit.own))
        raise ShapeError(
            f"{path}: is {mine}, {like.path.name} is {theirs} (height x width): a mask has the size of its video's file"
        )
    return like.fit.mask(image.mean(axis=-1) >= 127.5)


def _numbers(like: VideoInput) -> tuple[np.ndarray, int]:
    """(which of the file's frames are read, how many the file has)."""
    if like.fps is None:
        return np.zeros(1, np.int64), 1
    return frame_numbers(like.path, Window(**like.span.reading))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of a file's own picture, for some of the time.

    sides: x, y, width, height, in pixels, or as shares of the picture where `shares` says so. start, end: seconds
    from the first of the frames that were read; end None is to the last.
    """

    sides: tuple[float, float, float, float]
    shares: tuple[bool, bool, bool, bool] = (False, False, False, False)
    start: float = 0.0
    end: float | None = None

    def area(self, like: VideoInput) -> np.ndarray:
        """bool [h w]: which pixels of a frame are in the box, if only in part. ShapeError if it is outside."""
        height, width = like.fit.own
        whole = (width, height, width, height)
        x, y, w, h = (side * full if share else side for side, share, full in zip(self.sides, self.shares, whole))
        slack = 1e-6 * max(height, width)
        if x < 0 or y < 0 or x + w > width + slack or y + h > height + slack:
            where = f"{height}x{width} pixels (height x width) of {like.path.name}"
            raise ShapeError(f"box {self}: does not lie within the {where}")
        inside = np.zeros((height, width), bool)
        rows = slice(math.floor(y + 1e-6), math.ceil(y + h - 1e-6))
        inside[rows, math.floor(x + 1e-6) : math.ceil(x + w - 1e-6)] = True
        inside = like.fit.mask(inside)
        if not inside.any():
            raise ShapeError(f"box {self}: lies in what is cut off of {like.path.name} ({like.fit}): give another size")
        numbers = np.arange(max(1, like.count))
        if not self.during(numbers, like).any():
            last = numbers[-1] / (like.fps or 1.0)
            raise ShapeError(f"box {self}: no frame is in that time; {like.path.name} has {last:.4g} s of frames")
        return inside

    def during(self, numbers: np.ndarray, like: VideoInput) -> np.ndarray:
        """bool [t]: whether frames of these numbers are in the box's time."""
        times = numbers / (like.fps or 1.0)
        return (times >= self.start - 1e-6) & (times < (math.inf if self.end is None else self.end) - 1e-6)

    def __str__(self) -> str:
        sides = ",".join(f"{100 * n:g}%" if share else f"{n:g}" for n, share in zip(self.sides, self.shares))
        end = "" if self.end is None else f"{self.end:g}"
        return sides if self.start == 0 and self.end is None else f"{sides}@{self.start:g}-{end}"


_NUMBER = r"\s*(\d+\.?\d*|\.\d+)\s*"
_SIDE = _NUMBER + r"(%?)\s*"
_BOX = re.compile(rf"{','.join([_SIDE] * 4)}(?:@{_NUMBER}-(?:{_NUMBER})?)?")


def parse_box(text: str) -> Box:
    """"x,y,width,height", each in pixels or with % of the picture and "@t0-t1" for some seconds or "@t0-" on from t0.

    Raises ConfigError for anything else.
    """
    found = _BOX.fullmatch(text)
    rule = "write x,y,width,height in pixels or percent, as in 10%,20%,50%,30%, then @2-3.5 for seconds 2 to 3.5"
    if found is None:
        raise ConfigError(f"box {text!r} cannot be read: {rule}")
    *sides, start, end = found.groups()
    shares = tuple(bool(percent) for percent in sides[1::2])
    values = tuple(float(n) / 100 if share else float(n) for n, share in zip(sides[::2], shares))
    box = Box(sides=values, shares=shares, start=float(start or 0), end=None if end is None else float(end))
    if min(box.sides[2:]) <= 0 or (box.end is not None and box.end <= box.start):
        raise ConfigError(f"box {text!r} is empty: {rule}")
    return box
