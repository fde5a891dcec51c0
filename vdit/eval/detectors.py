"""Exact detectors for the rendered worlds: which colour, which shape, which way; and where a coloured object is.

Nothing here is learned. Two detectors, for two kinds of scene:

`detect` is for the world "moving". The background is the median of each frame, the foreground is what differs from it.
The colour is the nearest of the world's palette. The shape is the best match of the outline, averaged over the frames,
with the world's own shapes at the same area. The direction is the slope of the centre. A shape has a name only where a
person would give it that name: the median over the clip forgives what is deformed in some frames, so the outline must
also be like the shape while it moves (`likeness`). The limits were set on 104 samples that were judged by eye, and
checked on others (tests/eval/judged.json).

`track` and `count_objects` are for flat worlds, before any grey. A pixel there is a mix of the object's colour and a
grey, of the background or of a wall. So its part that is not grey is the object's, in proportion to how much the object
covers it, whatever is behind or beside. Centres and areas are sums of that part. They do not change under blur, which
moves none of it in the mean. A white object has no such part: it is what is lighter than the grey of its row and of its
column.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

from vdit.errors import ShapeError
from vdit.eval.metrics import pixel_values
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

# Of 0..255. The least colourful name of the palette, green, has a part of 103 that is not grey.
_COLOURFUL = 32.0  # length of that part, over 3x3 pixels, of a pixel that is an object's
_LIGHTER = 45.0  # what a white object is lighter than its grey: walls have 180, it has 240
_LIGHT_OF_COLOUR = 1.3  # a colour's own lightness over its colourful part; the palette's largest is 1.27
_SIMILAR = 0.9  # cosine between a colour and the one that names it; neighbours of the palette have 0.9

# Short sides squared; a circle of radius 0.08 has 0.02.
LEAST = 0.004
LEAST_COUNTED = 0.008


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """What a clip shows. A name is None where nothing fits.

    Attributes:
        found: whether one object of a fitting size and outline is there in most frames.
        colour: a name of vdit.worlds.
        shape: a name of vdit.worlds.
        direction: a name of vdit.worlds.
        colour_margin: how much nearer the best colour is than the next, 0..1.
        colour_distance: from the object's colour to the best one, in RGB of 0..255.
        match: correlation of the clip's median outline with the best shape.
        match_margin: lead of `match` over the next shape.
        likeness: mean over the frames of the correlation of their own outlines with the best shape. Below a limit,
            `shape` is None.
        travel: (x, y) over the clip, in short sides of the frame.
        centres: [t 2] (x, y) in pixels, NaN where the object is not seen.
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
    """Find the one object of a clip of the world "moving".

    Args:
        video: [t h w 3], uint8 or float in [-1, 1].

    Returns:
        What the clip shows. Everything is empty where `found` is False.
    """
    frames = pixel_values(video)
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
    """Score clips of the world "moving" against what their prompts asked for.

    Args:
        videos: clips [t h w 3], uint8 or float in [-1, 1].
        wanted: (colour, shape, direction) of each clip.

    Returns:
        The fraction of clips that are right, in 0..1, under "colour", "shape", "direction" and "all".

    Raises:
        ShapeError: no clips, or not one prompt for each.
    """
    found = [detect(video) for video in videos]
    if len(found) != len(wanted) or not found:
        raise ShapeError(f"{len(found)} videos for {len(wanted)} prompts; give one of each, at least one")
    right = np.array([[d.colour == c, d.shape == s, d.direction == w] for d, (c, s, w) in zip(found, wanted)])
    shares = dict(zip(("colour", "shape", "direction"), right.mean(0).tolist()))
    return shares | {"all": float(right.all(1).mean())}


def framing(video: np.ndarray) -> tuple[float, float]:
    """How well the one object of a clip of the world "moving" is framed.

    Args:
        video: [t h w 3], uint8 or float in [-1, 1].

    Returns:
        (whole, cut): the share of frames that show an object which no border cuts, 0..1, and the mean length of the
        border that the object covers, in short sides, over the frames that show one; NaN where none does.
    """
    frames = pixel_values(video)
    distance = np.linalg.norm(frames - np.median(frames, axis=(1, 2), keepdims=True), axis=-1)
    ring = np.ones(distance.shape[1:], bool)
    ring[1:-1, 1:-1] = False
    whole, cut = 0, []
    for frame in distance:
        seen = frame > _CONTRAST
        if seen.sum() < LEAST * min(ring.shape) ** 2:
            continue
        covered = int((frame[ring] > np.median(frame[seen]) / 2).sum())  # half covered: the outline lies there
        whole += covered == 0
        cut.append(covered / min(ring.shape))
    return whole / len(frames), float(np.mean(cut)) if cut else math.nan


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """The largest coloured object of each frame.

    Attributes:
        centres: float64 [t 2], (x, y) in pixels of the visible part; NaN where nothing is visible.
        area: float64 [t], visible pixels, 0 where nothing is visible. A pale object counts for less. The area of a
            white object half behind a wall is a fifth too large.
        colour: the palette's name in each frame; None where nothing is visible or no name fits.
        rgb: float64 [t 3] of 0..255, of the object's inner pixels; NaN where nothing is visible.
    """

    centres: np.ndarray
    area: np.ndarray
    colour: tuple[str | None, ...]
    rgb: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """Whether the object is visible, bool [t]."""
        return self.area > 0


def track(video: np.ndarray, *, least: float = LEAST) -> Track:
    """Find the largest coloured object of each frame, each frame on its own.

    Args:
        video: [t h w 3], uint8 or float in [-1, 1].
        least: smallest area of a visible object, in short sides squared.
    """
    frames = pixel_values(video)
    chroma, light = _parts(frames)
    vivid = box3(np.concatenate([chroma, light[..., None]], -1))
    strength = np.linalg.norm(vivid[..., :3], axis=-1)
    white = vivid[..., 3] - _LIGHT_OF_COLOUR * strength
    mask = _largest((strength > _COLOURFUL) | (white > _LIGHTER), np.maximum(strength, white))

    near = grow(mask)
    is_white = (strength * mask).sum((1, 2)) < (white * mask).sum((1, 2))
    direction, name = _names((chroma * mask[..., None]).sum((1, 2)))
    cover = np.where(is_white[:, None, None], _white_cover(frames, light), np.einsum("thwc,tc->thw", chroma, direction))
    cover = np.where(near, np.clip(cover, -0.25, 1.25), 0)
    area = cover.sum((1, 2))
    seen = mask.any((1, 2)) & (area >= least * min(frames.shape[1:3]) ** 2)

    rgb = np.full((len(frames), 3), np.nan)
    inner = ndimage.binary_erosion(mask, np.ones((1, 3, 3)))
    for t in np.flatnonzero(seen):
        rgb[t] = np.median(frames[t][inner[t] if inner[t].any() else mask[t]], axis=0)
    names = ("white" if w else n for w, n in zip(is_white, name))
    return Track(
        centres=np.where(seen[:, None], centres(cover), np.nan),
        area=np.where(seen, area, 0.0),
        colour=tuple(n if s else None for n, s in zip(names, seen)),
        rgb=rgb,
    )


def track_colours(video: np.ndarray, colours: Sequence[str], *, least: float = LEAST) -> tuple[np.ndarray, np.ndarray]:
    """Find several objects of known, different colours in each frame.

    A pixel belongs to the colour that its part which is not grey is nearest to; light pixels without such a part are
    white. Of each colour the largest connected part is the object.

    Args:
        video: [t h w 3], uint8 or float in [-1, 1].
        colours: k names of the palette.
        least: smallest area of a visible object, in short sides squared.

    Returns:
        (centres float64 [t k 2] (x, y) in pixels of the visible part, NaN where it is not seen; areas [t k] in pixels).
    """
    frames = pixel_values(video)
    chroma, light = _parts(frames)
    vivid = box3(np.concatenate([chroma, light[..., None]], -1))
    strength = np.linalg.norm(vivid[..., :3], axis=-1)
    colourful = [name for name in COLOURS if name != "white"]
    likeness = (vivid[..., :3] @ _directions().T) / np.maximum(strength, 1e-6)[..., None]
    nearest = np.where(likeness.max(-1) >= _SIMILAR, likeness.argmax(-1), -1)
    white = vivid[..., 3] - _LIGHT_OF_COLOUR * strength
    places, areas = [], []
    for name in colours:
        if name == "white":
            mask, weight, cover = (white > _LIGHTER) & (strength < _COLOURFUL), white, _white_cover(frames, light)
        else:
            k = colourful.index(name)
            pure = palette()[list(COLOURS).index(name)]
            mask, weight = (nearest == k) & (strength > _COLOURFUL), strength
            cover = chroma @ (_directions()[k] / np.linalg.norm(pure - pure.mean()))
        mask = _largest(mask, weight)
        cover = np.where(grow(mask), np.clip(cover, -0.25, 1.25), 0)
        area = cover.sum((1, 2))
        seen = mask.any((1, 2)) & (area >= least * min(frames.shape[1:3]) ** 2)
        places.append(np.where(seen[:, None], centres(cover), np.nan))
        areas.append(np.where(seen, area, 0.0))
    return np.stack(places, 1), np.stack(areas, 1)


def count_objects(frame: np.ndarray, *, least: float = LEAST_COUNTED) -> int:
    """Count coloured objects in one frame. Two objects of one colour that touch are one.

    Args:
        frame: [h w 3], uint8 or float in [-1, 1].
        least: smallest area of an object, in short sides squared.
    """
    frames = pixel_values(np.asarray(frame)[None])
    chroma, light = _parts(frames)
    vivid = box3(np.concatenate([chroma, light[..., None]], -1))[0]
    strength = np.linalg.norm(vivid[..., :3], axis=-1)
    white = (vivid[..., 3] - _LIGHT_OF_COLOUR * strength > _LIGHTER) & (strength < _COLOURFUL)
    nearest = (vivid[..., :3] @ _directions().T).argmax(-1)
    nearest = np.where(white, len(COLOURS), nearest)
    count = 0
    for kind in np.unique(nearest[(strength > _COLOURFUL) | white]):
        blobs, _ = ndimage.label((nearest == kind) & ((strength > _COLOURFUL) | white), np.ones((3, 3)))
        count += int((np.bincount(blobs.ravel())[1:] >= least * min(blobs.shape) ** 2).sum())
    return count


def displacements(points: np.ndarray) -> np.ndarray:
    """Steps from the frame before, as actions are: [t 2] -> [t 2]. 0 in the first frame, NaN where a point is NaN."""
    points = np.asarray(points, np.float64)
    return np.diff(points, axis=0, prepend=points[:1])


def position_error(points: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distances of points [... 2] from the truth [... 2]: [...]. NaN where a point is NaN (nothing visible)."""
    points, truth = np.asarray(points, np.float64), np.asarray(truth, np.float64)
    if points.shape != truth.shape:
        raise ShapeError(f"points of shape {points.shape} and truth of shape {truth.shape}: give as many of both")
    return np.linalg.norm(points - truth, axis=-1)


def obeyed_fraction(points: np.ndarray, displacement: np.ndarray, *, within: float) -> float:
    """The fraction of steps that move as asked.

    Args:
        points: [t 2], where the object is, in pixels. A step to or from NaN (nothing visible) does not count as obeyed.
        displacement: [t 2], the steps asked for, in pixels.
        within: pixels by which x and y may differ.

    Returns:
        0..1; NaN for a clip of one frame.
    """
    error = np.abs(displacements(points) - displacement)[1:]
    return float((error <= within).all(-1).mean()) if len(error) else math.nan


def is_permanent(
    found: Track, truth: np.ndarray, visibility: np.ndarray, colour: str, *, within: float
) -> bool:
    """Whether an object passes behind a wall and comes out as it must (the world "occluder").

    The object must be invisible in at least half of the frames where it is wholly hidden. After that, among the frames
    where it is wholly visible, it must be found with its colour in at least half, and its median error must be small.

    Args:
        found: what `track` saw.
        truth: [t 2], the object's centres in pixels.
        visibility: [t], the fraction of the object that the wall leaves visible: frames of 0, then frames of 1.
        colour: the object's name of colour.
        within: largest median error, in pixels.

    Raises:
        ShapeError: the object is never hidden, or not wholly visible after it.
    """
    hidden = np.asarray(visibility) < 1e-9
    after = (np.asarray(visibility) > 1 - 1e-9) & (np.arange(len(hidden)) > np.flatnonzero(hidden)[-1:].max(initial=-1))
    if not hidden.any() or not after.any():
        raise ShapeError("an object that is never hidden, or not whole in sight after it: choose clips that show both")
    error = np.where(found.seen, position_error(found.centres, truth), np.inf)[after]
    right = np.array([name == colour for name in found.colour])[after]
    return bool((~found.seen)[hidden].mean() >= 0.5 and right.mean() >= 0.5 and np.median(error) <= within)


def colour_drift(rgb: np.ndarray, *, first: int = 8) -> np.ndarray:
    """How far colours have drifted from those at the start.

    Args:
        rgb: [t 3], as Track.rgb or the means of whole frames; NaN where a frame has none.
        first: how many of the first frames that have a colour give the reference, by their median.

    Returns:
        [t], Euclidean distance in RGB; NaN where a frame has no colour.
    """
    rgb = np.asarray(rgb, np.float64)
    known = rgb[np.isfinite(rgb).all(-1)]
    if not len(known):
        return np.full(len(rgb), np.nan)
    return np.linalg.norm(rgb - np.median(known[:first], axis=0), axis=-1)


# Parts of `detect`.


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


# Parts of `track` and `count_objects`.


def _parts(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of frames [t h w 3]: what is not grey [t h w 3], and what is lighter than the grey behind [t h w]."""
    level = frames.mean(-1)
    # Along rows or along columns a wall is alike; an object covers less than half of either.
    behind = np.maximum(np.median(level, axis=1)[:, None, :], np.median(level, axis=2)[:, :, None])
    return frames - level[..., None], level - behind


def _white_cover(frames: np.ndarray, light: np.ndarray) -> np.ndarray:
    """How much of each pixel white covers, given what is lighter [t h w]."""
    white = np.mean(COLOURS["white"])
    return light / np.maximum(white - (frames.mean(-1) - light), 1.0)


def _directions() -> np.ndarray:
    """Of each colour but white the part that is not grey, at length 1: [7 3]."""
    chroma = palette() - palette().mean(1, keepdims=True)
    chroma = chroma[[name != "white" for name in COLOURS]]
    return chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


def _names(chroma: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
    """Of colours [t 3] that are not grey: by what [t 3] a pixel's is multiplied to give its cover, and their names."""
    colourful = [name for name in COLOURS if name != "white"]
    length = np.linalg.norm(chroma, axis=1, keepdims=True).clip(1e-6)
    direction = chroma / length
    likeness = direction @ _directions().T
    best = likeness.argmax(1)
    pure = palette()[[list(COLOURS).index(colourful[k]) for k in best]]
    full = np.linalg.norm(pure - pure.mean(1, keepdims=True), axis=1, keepdims=True)
    names = [colourful[k] if row[k] >= _SIMILAR else None for k, row in zip(best, likeness)]
    return direction / full, names


def _largest(mask: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The connected part of mask [t h w] that weighs most in each frame."""
    within = np.zeros((3, 3, 3), bool)
    within[1] = True
    blobs, count = ndimage.label(mask, within)
    total = ndimage.sum_labels(weight, blobs, np.arange(count + 1))
    total[0] = 0
    heaviest = total[blobs].reshape(len(mask), -1).max(1)
    return mask & (total[blobs] == heaviest[:, None, None])


# Shared.


def box3(x: np.ndarray) -> np.ndarray:
    """The mean over 3x3 pixels of x [t h w c]."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    x = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    return (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) / 9


def grow(mask: np.ndarray) -> np.ndarray:
    """mask [t h w] and its neighbours, two pixels on."""
    padded = np.pad(mask, ((0, 0), (2, 2), (2, 2)))
    _, height, width = mask.shape
    rows = functools.reduce(np.logical_or, (padded[:, k : k + height] for k in range(5)))
    return functools.reduce(np.logical_or, (rows[:, :, k : k + width] for k in range(5)))


def centres(weight: np.ndarray) -> np.ndarray:
    """The centre of mass [t 2] (x, y) in pixels of weights [t h w]; the first pixel spans 0..1."""
    _, height, width = weight.shape
    total = weight.sum((1, 2)).clip(1e-3)
    x = weight.sum(1) @ (np.arange(width) + 0.5) / total
    y = weight.sum(2) @ (np.arange(height) + 0.5) / total
    return np.stack([x, y], 1)


def palette() -> np.ndarray:
    """The colours of vdit.worlds in their order: float64 [8 3] of 0..255."""
    return np.array(list(COLOURS.values()), np.float64)
