"""What of a video is to be made: masks from files, boxes from the command line."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.generate.images import is_image, read_image
from vdit.generate.inputs import Input
from vdit.video.parts import frame_numbers
from vdit.video.read import iter_frames

BLACK = (0, 0, 0)  # stands for what is transparent: not to be made


def read_mask(path: str | Path, like: Input) -> np.ndarray:
    """bool [t h w]: which pixels of like.frames are to be made, from an image or a video (white, from the middle up).

    A mask is made for the file: it has the file's own height and width, and one picture for all frames or as many as
    the file has, whatever part of the file was read. It is fitted as the frames were, and a pixel is to be made if any
    of it is. Transparent is black. Raises ShapeError for another size or number of frames.
    """
    path = Path(path)
    if is_image(path):
        mask = _white(read_image(path, background=BLACK), path, like)
        return np.repeat(mask[None], len(like.frames), axis=0)
    masks = iter_frames(path, background=BLACK)
    first = _white(next(masks)[1], path, like)
    second = next(masks, None)
    if second is None:
        return np.repeat(first[None], len(like.frames), axis=0)
    numbers, total = _numbers(like)
    out = np.zeros((len(numbers), *like.size), bool)
    out[numbers == 0] = first
    count = 1
    while second is not None:
        if (numbers == count).any():
            out[numbers == count] = _white(second[1], path, like)
        count += 1
        second = next(masks, None)
    if count != total:
        raise ShapeError(
            f"{path}: has {count} frames, {like.path.name} has {total}: a mask has one frame for each of the video's, "
            "or is a still image"
        )
    return out


def _white(image: np.ndarray, path: Path, like: Input) -> np.ndarray:
    if image.shape[:2] != like.fit.own:
        mine, theirs = (f"{size[1]}x{size[0]}" for size in (image.shape[:2], like.fit.own))
        raise ShapeError(
            f"{path}: is {mine}, {like.path.name} is {theirs} (width x height): a mask has the size of its video's file"
        )
    return like.fit.mask(image.mean(axis=-1) >= 127.5)


def _numbers(like: Input) -> tuple[np.ndarray, int]:
    """(which of the file's frames like.frames are, how many the file has)."""
    if like.still:
        return np.zeros(1, np.int64), 1
    numbers, total = frame_numbers(like.path, **like.span.reading)
    if like.span.last is not None:
        numbers = numbers[-like.span.last :][like.dropped :]
    return numbers[: len(like.frames)], total


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

    def mask(self, like: Input) -> np.ndarray:
        """bool [t h w]: which pixels of like.frames are in the box, if only in part. ShapeError if it is outside."""
        height, width = like.fit.own
        whole = (width, height, width, height)
        x, y, w, h = (side * full if share else side for side, share, full in zip(self.sides, self.shares, whole))
        slack = 1e-6 * max(height, width)
        if x < 0 or y < 0 or x + w > width + slack or y + h > height + slack:
            raise ShapeError(f"box {self}: does not lie within the {width}x{height} pixels of {like.path.name}")
        inside = np.zeros((height, width), bool)
        rows = slice(math.floor(y + 1e-6), math.ceil(y + h - 1e-6))
        inside[rows, math.floor(x + 1e-6) : math.ceil(x + w - 1e-6)] = True
        inside = like.fit.mask(inside)
        if not inside.any():
            raise ShapeError(f"box {self}: lies in what is cut off of {like.path.name} ({like.fit}): give another size")
        times = np.arange(len(like.frames)) / (like.fps or 1.0)
        during = (times >= self.start - 1e-6) & (times < (math.inf if self.end is None else self.end) - 1e-6)
        if not during.any():
            raise ShapeError(f"box {self}: no frame is in that time; {like.path.name} has {times[-1]:.4g} s of frames")
        return during[:, None, None] & inside

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
