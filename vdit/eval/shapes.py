"""An exact detector for the moving world: which colour, which shape, which way.

It needs no learned part. The background is the median of each frame, the foreground what differs from
it; colour is the nearest of the world's palette, shape the best match of the outline, averaged over
the frames, with the world's own shapes at the same area, and direction the slope of the centre.

A shape has a name only where a person would give it that one: the median over the clip forgives what is deformed in
some frames, so the outline must also be like the shape while it moves (`likeness`). The limits were set on 104 samples
judged by eye and checked on others (tests/eval/judged.json).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from vdit.errors import ShapeError
from vdit.eval.pixels import box3, centres, grow, palette, values
from vdit.reprs import short_repr
from vdit.worlds.draw import COLOURS, SHAPES

# Distances between colours are Euclidean in RGB of 0..255; lengths are in short sides of the frame.
_CONTRAST = 45.0  # from the background, of a pixel that is not background; the palette keeps 100
_COLOUR_LIMIT = 90.0  # from the palette, of a colour that still has a name; its colours are 90 apart
_WINDOW = 0.48  # half the window around the object; the largest of the sizes below reaches 0.45
_AREA = (0.02, 0.36)  # of a short side squared; radii of 0.14 to 0.3 have 0.047 to 0.283
_FRAMES_SEEN = 0.6  # share of frames that must show the object
_MATCH_LIMIT = 0.6  # correlation of outline and best template; noise alone reaches 0.55
# Mean over single frames of what `match` measures once. A blob is nearer to a circle than to a triangle or a cross.
_LIKENESS = {"circle": 0.965, "square": 0.9, "triangle": 0.9, "cross": 0.915}
_TRAVEL_LIMIT = 0.06  # over the clip; the world moves at least 0.12
_STRAIGHT = 1.5  # travel along the axis over travel across it

_GRID = 28  # points along each side of the grid on which outlines are compared,
_REACH = 1.15  # which spans this many square roots of the area to each side


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """What a clip shows; a part is None where nothing fits.

    found: one object of a fitting size and outline is there in most frames; else all else is empty.
    colour, shape, direction: names of vdit.worlds.
    colour_margin: 0..1, how much nearer the best colour is than the next. colour_distance: to it.
    match: correlation of the clip's median outline with the best shape. match_margin: its lead over the next.
    likeness: mean over the frames of their own outlines' correlation with it; below a limit `shape` is None.
    travel: (x, y) over the clip in short sides. centres: [t 2] (x, y) in pixels, NaN where not seen.
    """

    found: bool = False
    colour: str | None = None
    shape: str | None = None
    direction: str | None = None
    colour_margin: float = 0.0
    colour_distance: float = math.inf
    match: float = 0.0
    match_margin: float = 0.0
    likeness: float = 0.0
    travel: tuple[float, float] = (0.0, 0.0)
    centres: np.ndarray | None = None


def detect(video: np.ndarray) -> Detection:
    """What one clip of the moving world shows; video is uint8, or float in [-1, 1], [t h w 3]."""
    frames = values(video)
    difference = frames - np.median(frames, axis=(1, 2), keepdims=True)
    distance = np.sqrt((box3(difference) ** 2).sum(-1))
    mask = distance > _CONTRAST
    side = min(mask.shape[1:])
    windows = [_find(frame, side) for frame in mask]
    seen = np.array([window is not None for window in windows])
    if seen.mean() < _FRAMES_SEEN:
        return Detection()

    near = np.stack([_crop(m, w) for m, w in zip(mask, windows) if w is not None])
    vivid = distance[seen] >= np.median(distance[seen][near])
    inside = near & vivid
    colour, colour_distance, colour_margin = _name_colour(np.median(frames[seen][inside], axis=0))

    contrast = np.median(difference[seen][inside], axis=0)
    cover = np.clip(difference[seen] @ (contrast / (contrast @ contrast)), -0.25, 1.25)
    window = np.stack([_box(w, mask.shape[1:]) for w in windows if w is not None])
    centre, area = _measure(cover, window)
    outlines = _outlines(cover, centre, area)
    shape, match, match_margin = _name_shape(np.median(outlines, axis=0))
    if match < _MATCH_LIMIT:
        return Detection()
    likeness = _likeness(outlines, shape)

    direction, travel = _name_direction(np.flatnonzero(seen), centre / side, len(frames))
    track = np.full((len(frames), 2), np.nan)
    track[seen] = centre
    return Detection(
        found=True,
        colour=colour,
        shape=shape if likeness >= _LIKENESS[shape] else None,
        direction=direction,
        colour_margin=colour_margin,
        colour_distance=colour_distance,
        match=match,
        match_margin=match_margin,
        likeness=likeness,
        travel=travel,
        centres=track,
    )


def score(videos: Iterable[np.ndarray], wanted: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """The share of clips [t h w 3] that show the wanted (colour, shape, direction): each, and all."""
    found = [detect(video) for video in videos]
    if len(found) != len(wanted) or not found:
        raise ShapeError(f"{len(found)} videos for {len(wanted)} prompts; give one of each, at least one")
    right = np.array([[d.colour == c, d.shape == s, d.direction == w] for d, (c, s, w) in zip(found, wanted)])
    shares = dict(zip(("colour", "shape", "direction"), right.mean(0).tolist()))
    return shares | {"all": float(right.all(1).mean())}


def _find(mask: np.ndarray, side: int) -> tuple[int, int, int, int] | None:
    """The window (y0, y1, x0, x1) that holds the densest part of mask [h w], if an object's worth."""
    if not _AREA[0] <= mask.mean() * mask.size / side**2:
        return None
    half = max(2, round(0.1 * side))
    y, x = np.unravel_index(_box_sum(mask, half).argmax(), mask.shape)
    reach = round(_WINDOW * side)
    for _ in range(3):
        window = (max(y - reach, 0), y + reach + 1, max(x - reach, 0), x + reach + 1)
        rows, columns = np.nonzero(mask[window[0] : window[1], window[2] : window[3]])
        if not _AREA[0] <= len(rows) / side**2 <= _AREA[1]:
            return None
        y, x = window[0] + round(rows.mean()), window[2] + round(columns.mean())
    return window


def _box_sum(mask: np.ndarray, half: int) -> np.ndarray:
    """The count of mask [h w] in the square of 2 half + 1 pixels around each pixel."""
    height, width = mask.shape
    total = np.zeros((height + 2 * half + 1, width + 2 * half + 1), np.int64)
    total[1:, 1:] = np.pad(mask, half).cumsum(0).cumsum(1)
    k = 2 * half + 1
    return total[k:, k:] - total[:-k, k:] - total[k:, :-k] + total[:-k, :-k]


def _box(window: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """bool [h w], true inside the window."""
    inside = np.zeros(size, bool)
    inside[window[0] : window[1], window[2] : window[3]] = True
    return inside


def _crop(mask: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    return mask & _box(window, mask.shape)


def _name_colour(rgb: np.ndarray) -> tuple[str | None, float, float]:
    """The palette's name of a colour [3], its distance and its margin over the next."""
    names = list(COLOURS)
    distances = np.linalg.norm(palette() - rgb, axis=1)
    best, second = np.argsort(distances)[:2]
    name = names[best] if distances[best] <= _COLOUR_LIMIT else None
    return name, float(distances[best]), float(1 - distances[best] / distances[second])


def _measure(cover: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, float]:
    """Centres [t 2] (x, y) in pixels and the object's area in pixels, from its coverage [t h w]."""
    hard = (cover > 0.5) & window
    soft = np.where(grow(hard), cover, 0)
    return centres(soft), float(max(np.median(hard.sum((1, 2))), 1))


def _grid() -> np.ndarray:
    return (np.arange(_GRID) + 0.5) / _GRID * 2 * _REACH - _REACH


def _outlines(cover: np.ndarray, centre: np.ndarray, area: float) -> np.ndarray:
    """Coverage [t h w] around the object's centres [t 2] on the grid that templates are on: [t n n]."""
    step = _grid() * math.sqrt(area)
    return np.stack([_sample(frame, x + step, y + step) for frame, (x, y) in zip(cover, centre)])


def _name_shape(outline: np.ndarray) -> tuple[str, float, float]:
    """The best shape for an outline [n n], its match and its lead."""
    outline = _unit(outline)
    matches = {name: float((outline * template).sum()) for name, template in _templates().items()}
    best, second = sorted(matches, key=matches.get, reverse=True)[:2]
    return best, matches[best], matches[best] - matches[second]


def _likeness(outlines: np.ndarray, shape: str) -> float:
    """How like a shape each of the outlines [t n n] is: the mean of their correlations."""
    template = _templates()[shape]
    return float(np.mean([(_unit(outline) * template).sum() for outline in outlines]))


def _unit(outline: np.ndarray) -> np.ndarray:
    """Of zero mean and unit norm, as templates are."""
    outline = outline - outline.mean()
    return outline / (np.linalg.norm(outline) + 1e-6)


def _sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """image [h w] at columns x and rows y (pixels), linear between pixel centres, 0 outside."""
    image = np.pad(image, 1)
    height, width = image.shape
    x, y = np.clip(x + 0.5, 0, width - 1.001), np.clip(y + 0.5, 0, height - 1.001)
    x0, y0 = x.astype(int), y.astype(int)
    fx, fy = (x - x0), (y - y0)[:, None]
    top = image[np.ix_(y0, x0)] * (1 - fx) + image[np.ix_(y0, x0 + 1)] * fx
    bottom = image[np.ix_(y0 + 1, x0)] * (1 - fx) + image[np.ix_(y0 + 1, x0 + 1)] * fx
    return top * (1 - fy) + bottom * fy


@functools.cache
def _templates() -> dict[str, np.ndarray]:
    """Each shape at area 1 on the grid, softened as in a video, zero mean and unit norm."""
    fine = np.linspace(-2, 2, 401)
    grid = _grid()
    softness = 0.06
    templates = {}
    for name, shape in SHAPES.items():
        area = (shape.distance(fine[None, :], fine[:, None]) < 0).mean() * 16
        size = 1 / math.sqrt(area)
        distance = shape.distance(grid[None, :] / size, grid[:, None] / size) * size
        template = np.clip(0.5 - distance / (2 * softness), 0, 1)
        templates[name] = _unit(template)
    return templates


def _name_direction(
    index: np.ndarray, centre: np.ndarray, frames: int
) -> tuple[str | None, tuple[float, float]]:
    """The direction of centres [t 2] (in short sides) at frames index [t], and the travel (x, y)."""
    if len(index) < 2:
        return None, (0.0, 0.0)
    lag = index - index.mean()
    x, y = (lag @ centre) / (lag @ lag) * (frames - 1)
    along, across = max(abs(x), abs(y)), min(abs(x), abs(y))
    if along < _TRAVEL_LIMIT or along < _STRAIGHT * across:
        return None, (float(x), float(y))
    if abs(x) > abs(y):
        return ("right" if x > 0 else "left"), (float(x), float(y))
    return ("down" if y > 0 else "up"), (float(x), float(y))
