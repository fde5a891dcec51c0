"""What can be measured of one frame, or of two: brightness, edges, bars, blur, blocks, combs, letters, motion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import av
import cv2
import numpy as np

from data_pipelines.records import ClipRecord
from vdit.errors import VideoError
from vdit.video.convert import orientation_of
from vdit.video.read import iter_frames

cv2.setNumThreads(1)  # one core a worker: Beam has a worker for each

_BLACK = 34  # stored luma of a bar; 16 is black in limited range, and coding adds noise
_MOST_BAR = 0.45  # of a side


def of_frame(image: np.ndarray, gray: np.ndarray) -> dict[str, float]:
    """Of RGB uint8 [h w 3] and the same in grey [h w]: brightness, its spread, ends, colourfulness, edges."""
    mean, spread = cv2.meanStdDev(gray)
    r, g, b = cv2.split(image)
    rg = cv2.subtract(r, g, dtype=cv2.CV_16S)
    yb = cv2.subtract(cv2.addWeighted(r, 0.5, g, 0.5, 0, dtype=cv2.CV_32F), b, dtype=cv2.CV_32F)
    (rg_mean, rg_std), (yb_mean, yb_std) = cv2.meanStdDev(rg), cv2.meanStdDev(yb)
    colour = math.hypot(rg_std[0, 0], yb_std[0, 0]) + 0.3 * math.hypot(rg_mean[0, 0], yb_mean[0, 0])
    x, y = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    return {
        "luma": mean[0, 0] / 255,
        "spread": spread[0, 0] / 255,
        "dark": np.count_nonzero(gray < 16) / gray.size,
        "bright": np.count_nonzero(gray > 239) / gray.size,
        "colour": colour,
        "si": _spread(_strength(x[1:-1, 1:-1], y[1:-1, 1:-1])),
    }


def of_pair(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Of two grey pictures in a row: temporal information, and the change of the block that changes most."""
    difference = cv2.subtract(after, before, dtype=cv2.CV_16S)
    blocks = cv2.resize(np.abs(difference), (8, 8), interpolation=cv2.INTER_AREA)
    return {"ti": _spread(difference), "change": float(blocks.max())}


def _spread(x: np.ndarray) -> float:
    """The standard deviation, by OpenCV: several times faster than numpy's on small pictures."""
    return float(cv2.meanStdDev(x)[1][0, 0])


def detail(luma: np.ndarray, raw: av.VideoFrame, *, text: bool) -> dict[str, float]:
    """Of a frame at its stored size.

    Args:
        luma: uint8 [h w] as stored.
        raw: the decoder's frame, for its orientation.
        text: whether to look for letters.
    """
    stored = bars(luma)
    orientation = orientation_of(raw)
    shown = stored[2:] + stored[:2] if orientation.transpose else stored
    top, bottom = shown[1::-1] if orientation.mirror_y else shown[:2]
    left, right = shown[:1:-1] if orientation.mirror_x else shown[2:]
    inner = luma[inner_box(luma.shape, stored)]
    return {
        "top": top, "bottom": bottom, "left": left, "right": right,
        "blur": blur(inner), "blocks": blockiness(luma),
        "combed": float(raw.interlaced_frame or combed(inner)),
        "text": text_area(inner) if text else math.nan,
    }  # fmt: skip


def inner_box(shape: tuple[int, ...], bars: Sequence[float]) -> tuple[slice, slice]:
    """The picture inside bars (top, bottom, left, right; shares of the frame) of a frame [h w]; at least 8 x 8."""
    height, width = shape[:2]
    top, bottom = math.ceil(bars[0] * height - 1e-6), height - math.ceil(bars[1] * height - 1e-6)
    left, right = math.ceil(bars[2] * width - 1e-6), width - math.ceil(bars[3] * width - 1e-6)
    if bottom - top < 8 or right - left < 8:
        return slice(None), slice(None)
    return slice(top, bottom), slice(left, right)


def bars(luma: np.ndarray) -> tuple[float, float, float, float]:
    """Black rows above and below, black columns left and right of the picture, as shares of the sides."""
    found = []
    bright = cv2.threshold(luma, _BLACK, 1, cv2.THRESH_BINARY)[1]
    for axis in (1, 0):
        # Nearly all of a bar's pixels are black: text in it, and ringing at its edge, are few.
        lit = cv2.reduce(bright, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() > 0.02 * luma.shape[axis]
        edges = np.flatnonzero(lit)
        n = len(lit)
        first, last = (int(edges[0]), n - 1 - int(edges[-1])) if len(edges) else (0, 0)
        found += [min(first / n, _MOST_BAR), min(last / n, _MOST_BAR)]
    return tuple(found)


_TILE, _MOST_TILES = 160, 9
_REBLUR = 1.0
_EDGE = 40.0  # of Sobel's operator: what is weaker is no edge


def blur(luma: np.ndarray) -> float:
    """Standard deviation in pixels of the blur at the strongest edges, in the sharper half of the picture's tiles.

    Zhuo and Sim 2011, "Defocus map estimation from a single image": an edge of blur s, blurred again by s0, has
    sqrt(s^2 + s0^2) / s times the gradient. NaN where there is no edge.
    """
    found = []
    for tile in _tiles(luma):
        if min(tile.shape) < 16:
            continue
        tile = tile.astype(np.float32)
        again = _gradient(cv2.GaussianBlur(tile, (0, 0), _REBLUR))
        if again.max() < _EDGE:
            continue
        strongest, sample = again.ravel(), again[::2, ::2].ravel()
        rank = int(0.97 * len(sample))
        least = max(float(np.partition(sample, rank)[rank]), _EDGE)
        edges = np.flatnonzero(strongest >= least)
        if len(edges) < 20:
            continue
        ratio = float(np.median(_gradient(tile).ravel()[edges] / strongest[edges]))
        found.append(_REBLUR / math.sqrt(max(ratio**2 - 1, 1e-3)))
    return float(np.median(sorted(found)[: (len(found) + 1) // 2])) if found else math.nan


def _gradient(tile: np.ndarray) -> np.ndarray:
    """Strength of the edges of a picture float32 [h w], without its rim: [h-8 w-8]."""
    x, y = cv2.Sobel(tile, cv2.CV_32F, 1, 0), cv2.Sobel(tile, cv2.CV_32F, 0, 1)
    return _strength(x[4:-4, 4:-4], y[4:-4, 4:-4])


def _strength(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lengths of vectors. Not cv2.magnitude: its last bit depends on where in memory the arrays begin."""
    x, y = x * x, y * y
    x += y
    return np.sqrt(x, out=x)


def _tiles(luma: np.ndarray) -> list[np.ndarray]:
    height, width = luma.shape
    rows, columns = min(3, max(1, height // _TILE)), min(3, max(1, width // _TILE))
    tiles = []
    for i in range(rows):
        for j in range(columns):
            y, x = round((height - _TILE) * (i + 0.5) / rows), round((width - _TILE) * (j + 0.5) / columns)
            tiles.append(luma[max(0, y) : max(0, y) + _TILE, max(0, x) : max(0, x) + _TILE])
    return tiles[:_MOST_TILES]


def blockiness(luma: np.ndarray) -> float:
    """How much more neighbours differ across the lines of an 8 x 8 grid than elsewhere: 0 for not at all, 1 twice."""
    worst, part = 0.0, luma[:512, :1024]
    for axis in (0, 1):  # along which differences are averaged
        if part.shape[1 - axis] < 17:
            continue
        difference = cv2.absdiff(part[:, 1:], part[:, :-1]) if axis == 0 else cv2.absdiff(part[1:], part[:-1])
        by_line = cv2.reduce(difference, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() / part.shape[axis]
        count = len(by_line) // 8 * 8
        phases = by_line[:count].reshape(-1, 8).mean(0)
        worst = max(worst, float(phases[7] / (np.delete(phases, 7).mean() + 0.25) - 1))
    return worst


_COMB = 12  # grey levels
_COMBED = 0.01  # share of pixels, beyond the share along lines, where noise and texture are alike


def combed(luma: np.ndarray) -> bool:
    """Whether lines alternate between two moments: a pixel differs from those above and below, which agree."""
    if min(luma.shape) < 16:
        return False
    top, left = max(0, len(luma) // 2 - 128), max(0, luma.shape[1] // 2 - 256)
    tile = luma[top : top + 256, left : left + 512].astype(np.int16)
    return bool(_combs(tile[:, ::2]) - 2 * _combs(tile[::2].T) > _COMBED)  # half of the lines tell as much


def _combs(x: np.ndarray) -> float:
    """Share of pixels that differ from both neighbours, which agree, as those one further agree with the pixel."""
    up, here, down = x[:-4], x[2:-2], x[4:]  # the same field
    above, below = x[1:-3], x[3:-1]  # the other field
    comb = ((here - above) * (here - below) > _COMB * _COMB) & (np.abs(above - below) < _COMB)
    comb &= (np.abs(up - here) < _COMB) & (np.abs(down - here) < _COMB)
    return np.count_nonzero(comb) / comb.size


_TEXT_WIDTH = 640


def text_area(luma: np.ndarray) -> float:
    """Share of the picture under lines of what looks like letters: many strong, near, upright strokes in a row.

    No letter is read: writing in the scene counts, and a fence may. An OCR model (MeasureOptions.scorers) knows better.
    """
    image = _narrowed(luma, _TEXT_WIDTH)
    strokes = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    _, strong = cv2.threshold(strokes, 90, 255, cv2.THRESH_BINARY)
    lines = cv2.morphologyEx(strong, cv2.MORPH_CLOSE, np.ones((1, 13), np.uint8))
    lines = cv2.morphologyEx(lines, cv2.MORPH_OPEN, np.ones((5, 9), np.uint8))
    across = cv2.threshold(cv2.absdiff(image[:, 1:], image[:, :-1]), 45, 1, cv2.THRESH_BINARY)[1]
    words = []
    for outline in cv2.findContours(lines, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, width, height = cv2.boundingRect(outline)
        if width < 0.8 * height or not 6 <= height <= 0.2 * image.shape[0]:
            continue
        if cv2.countNonZero(lines[y : y + height, x : x + width]) < 0.5 * width * height:
            continue
        steps = cv2.reduce(across[y : y + height, x : x + width - 1], 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        if sorted(steps.ravel().tolist())[height // 2] >= 1.8 * width / height:
            words.append((x, y, x + width, y + height))
    return sum((right - left) * (bottom - top) for left, top, right, bottom in _lines(words)) / image.size


def _narrowed(luma: np.ndarray, width: int) -> np.ndarray:
    """At most `width` wide: halved while that is not too small, then linear. Areas of odd sizes take ten times as
    long."""
    while luma.shape[1] >= 2 * width:
        luma = cv2.resize(luma, (luma.shape[1] // 2, max(1, len(luma) // 2)), interpolation=cv2.INTER_AREA)
    if luma.shape[1] <= width:
        return luma
    size = width, max(1, round(len(luma) * width / luma.shape[1]))
    return cv2.resize(luma, size, interpolation=cv2.INTER_LINEAR)


_MOST_WORDS = 400


def _lines(words: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of words that stand on one line close together; a line is 3.5 times as long as
    high, or it is none."""
    lines: list[tuple[int, int, int, int]] = []
    for box in sorted(words)[:_MOST_WORDS]:
        for k in range(len(lines) - 1, -1, -1):
            line = lines[k]
            height = line[3] - line[1], box[3] - box[1]
            shared = min(line[3], box[3]) - max(line[1], box[1])
            if box[0] - line[2] < 1.7 * max(height) and shared > 0.65 * max(height):
                lines[k] = (line[0], min(line[1], box[1]), max(line[2], box[2]), max(line[3], box[3]))
                break
        else:
            lines.append(box)
    return [line for line in lines if line[2] - line[0] >= 3.5 * (line[3] - line[1])]


_LARGEST_LOGO = 0.1  # of the picture


def logo_area(thumbs: Sequence[np.ndarray]) -> float | None:
    """Share of the picture with edges that stay where they are while other edges move.

    Args:
        thumbs: uint8 [h w] of a clip, in time.

    Returns:
        The share; None where nothing moves enough to tell, or there are fewer than 4 pictures.
    """
    if len(thumbs) < 4:
        return None
    stack = np.stack(thumbs).astype(np.float32)
    x, y = np.gradient(stack, axis=(2, 1))
    strength = np.hypot(x, y).mean(0)
    steady = np.hypot(x.mean(0), y.mean(0)) / np.maximum(strength, 1e-3)
    edges = strength > 8
    if edges.sum() < 10 or np.median(steady[edges]) > 0.75:
        return None
    fixed = cv2.dilate((edges & (steady > 0.95)).astype(np.uint8), np.ones((3, 3), np.uint8))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(fixed)
    gx, gy = x.mean(0), y.mean(0)
    total = 0
    for number in range(1, count):
        _, _, width, height, area = boxes[number].tolist()
        mine = labels == number
        if area < 12 or area < 0.3 * width * height or area > _LARGEST_LOGO * fixed.size:
            continue
        # A long edge along which the camera moves stands still as well; a logo has edges of all directions.
        xx, yy, xy = (gx[mine] ** 2).sum(), (gy[mine] ** 2).sum(), (gx[mine] * gy[mine]).sum()
        weaker = (xx + yy) / 2 - math.hypot((xx - yy) / 2, xy)
        total += area if weaker > 0.15 * (xx + yy) else 0
    return total / fixed.size


class Flow:
    """Motion between two grey pictures: all of it, the camera's, and what moves against it."""

    def __init__(self):
        self._dense = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def __call__(self, before: np.ndarray, after: np.ndarray, seconds: float) -> dict[str, float]:
        """before, after: uint8 [h w] of one size. seconds: between them. Speeds in diagonals a second."""
        height, width = before.shape
        scale = 1 / (math.hypot(height, width) * max(seconds, 1e-3))
        if min(height, width) < 24:
            return {}
        flow = self._dense.calc(np.ascontiguousarray(before), np.ascontiguousarray(after), None)
        edges = cv2.morphologyEx(before, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        rows, columns = np.nonzero(edges[2::4, 2::4] > 12)  # where there is nothing to see, flow is a guess
        if len(rows) < 12:
            return {"moved": 0.0, "camera": 0.0, "object": 0.0, "camera_x": 0.0, "camera_y": 0.0, "over": seconds}
        points = np.stack([columns, rows], 1).astype(np.float32) * 4 + 2
        moved = flow[2::4, 2::4][rows, columns]
        fit, _ = cv2.estimateAffinePartial2D(points, points + moved, method=cv2.RANSAC, ransacReprojThreshold=0.7)
        fit = np.array([[1, 0, 0], [0, 1, 0]], float) if fit is None else fit
        camera = points @ fit[:, :2].T + fit[:, 2] - points
        centre = np.array([width / 2, height / 2]) @ fit[:, :2].T + fit[:, 2] - np.array([width / 2, height / 2])
        length = lambda v: float(np.hypot(v[..., 0], v[..., 1]).mean() * scale)  # noqa: E731
        return {
            "moved": length(moved), "camera": length(camera), "object": length(moved - camera),
            "camera_x": float(centre[0] * scale), "camera_y": float(centre[1] * scale), "over": seconds,
        }  # fmt: skip


def spread_frames(record: ClipRecord, count: int) -> np.ndarray:
    """uint8 [n h w 3] at full size: frames spread over a clip, the middle one for count 1; n is at most count."""
    duration = record.duration
    if duration is None or count < 1:
        raise VideoError(f"{record.path}: {count} frames of a clip without an end: cut it first, and ask for 1 or more")
    rate = count / duration
    start = float(record.start) + 0.5 / rate
    frames = [frame for _, frame in iter_frames(record.path, fps=rate, start=start, max_frames=count,
                                                duration=max(duration - 0.5 / rate, 1e-3))]  # fmt: skip
    return np.stack(frames)
