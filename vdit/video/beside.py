"""Several videos in one, side by side, as a model and the emulator that it learned from; and in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from vdit.errors import ShapeError

_GAP = 8  # pixels between videos
_LINE = 20  # pixels above them for their names
_PAPER, _INK = 24, 235


def side_by_side(videos: Mapping[str, np.ndarray], *, height: int = 256) -> np.ndarray:
    """Puts videos side by side, each under its name; small ones are enlarged without blur.

    Args:
        videos: name -> uint8 [t h w 3], all of one number of frames and one size.
        height: pixels that each is enlarged to, as far as whole numbers go.

    Returns:
        uint8 [t height width 3], both sides even.

    Raises:
        ShapeError: the videos are of several shapes, or there is none.
    """
    shapes = {video.shape for video in videos.values()}
    if len(shapes) != 1:
        raise ShapeError(f"videos of shapes {sorted(shapes)}: give one or more of the same shape")
    t, h, w, _ = next(iter(shapes))
    scale = max(1, height // h)
    high, wide = _LINE + h * scale, len(videos) * (w * scale + _GAP) - _GAP
    page = np.full((t, high + high % 2, wide + wide % 2, 3), _PAPER, np.uint8)
    names = Image.new("RGB", (wide, _LINE), (_PAPER,) * 3)
    for number, (name, video) in enumerate(videos.items()):
        left = number * (w * scale + _GAP)
        ImageDraw.Draw(names).text((left + 2, 4), name, fill=(_INK,) * 3)
        page[:, _LINE:high, left : left + w * scale] = video.repeat(scale, axis=1).repeat(scale, axis=2)
    page[:, :_LINE, :wide] = np.asarray(names)
    return page


def strips(videos: Mapping[str, np.ndarray], frames: Sequence[int], *, height: int = 128) -> np.ndarray:
    """A picture of some frames of several videos: a row for each video, a column for each frame.

    Args:
        videos: name -> uint8 [t h w 3], all of one number of frames and one size.
        frames: numbers of the frames.
        height: pixels that each is enlarged to, as far as whole numbers go.

    Returns:
        uint8 [height width 3].

    Raises:
        ShapeError: the videos are of several shapes, or there is none.
    """
    rows = []
    for name, video in videos.items():
        cells = side_by_side({f"{name}, frame {frame}": video[frame : frame + 1] for frame in frames}, height=height)[0]
        rows.append(np.pad(cells, ((0, _GAP), (0, 0), (0, 0)), constant_values=_PAPER))
    if len({row.shape for row in rows}) != 1:
        raise ShapeError(f"videos of shapes {[video.shape for video in videos.values()]}: give some of the same shape")
    return np.concatenate(rows)
