"""Measures of a clip, one column each. Nothing is judged or deleted here: the keep expression does that later.

A `Meter` takes the frames of a file one by one and keeps a few numbers for each; `Meter.summary` turns the frames of
one clip into its columns. Some numbers are taken of every frame, motion 8 times a second, and what needs the full size
(bars, blur, blocks, interlacing, text) twice a second. Pictures are measured inside their black bars.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import cv2
import numpy as np

from data_pipelines import picture
from data_pipelines.frames import AnalysisFrame, read_frames
from data_pipelines.records import ClipRecord, Value
from data_pipelines.signature import Signature, gray_thumb
from vdit.errors import ConfigError, DataError

DETAIL_RATE, MOTION_RATE, THUMB_RATE = 2, 8, 4  # a second
_REPEAT = 1.0  # mean grey levels of the most changed block, below which a frame repeats the one before
_FREEZE_S = 0.5  # seconds of repeats that are a freeze
_STILL = 0.01  # diagonals a second, below which nothing moves

COLUMNS = {
    "duration": "seconds", "frames": "number of frames", "fps": "frames a second, by their times",
    "height": "pixels as displayed", "width": "pixels as displayed",
    "crop_top": "pixels of black above the picture", "crop_left": "pixels of black to its left",
    "crop_height": "pixels of the picture without bars", "crop_width": "pixels of the picture without bars",
    "bars": "share of the frame that is bars",
    "motion": "mean speed of what is seen, diagonals of the picture a second",
    "camera_motion": "mean speed that the camera alone would give, diagonals a second",
    "object_motion": "mean speed against the camera's, diagonals a second",
    "stillness": "share of the time in which nothing moves",
    "shake": "mean change of the camera's speed from one 1/8 s to the next, beyond what is smooth; diagonals a second",
    "blur": "standard deviation of the blur of the sharpest edges, stored pixels",
    "blockiness": "how much more pixels differ across 8x8 blocks than inside them, 0 for no more",
    "interlacing": "share of frames whose lines are combed",
    "exposure": "mean brightness, 0..1", "contrast": "standard deviation of brightness, 0..1",
    "dark": "share of pixels near black", "bright": "share of pixels near white",
    "black": "share of frames that are black", "freeze": "share of the time in stills of half a second or more",
    "repeats": "share of frames that repeat the one before",
    "text_area": "share of the picture under what looks like letters (without OCR)",
    "logo_area": "share of the picture under edges that stand still while the rest moves; null where all stands still",
    "colourfulness": "Hasler and Süsstrunk 2003, 0 for grey", "si": "spatial information (ITU-T P.910) at 160 pixels",
    "ti": "temporal information (ITU-T P.910) at 160 pixels",
    "digest": "of all decoded frames: equal where the content is",
}  # fmt: skip


class Scorer(Protocol):
    """A measure that the user brings: an aesthetic score, image and text agreement, OCR.

    name: of the column. frames: how many frames, spread over the clip, `score` takes. It must pickle.
    """

    name: str
    frames: int

    def score(self, frames: np.ndarray, record: ClipRecord) -> float | None:
        """frames: uint8 [n h w 3] RGB, the longer side 160 or of `read_scored`; the measure, or None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What is measured.

    Args:
        text: whether to look for letters; costs about as much as all else at full size.
        scorers: measures that the user brings; each decodes its few frames at full size.
        threads: of the decoder.
    """

    text: bool = True
    scorers: tuple[Scorer, ...] = ()
    threads: int = 1

    def __post_init__(self) -> None:
        names = [scorer.name for scorer in self.scorers]
        taken = sorted({name for name in names if name in COLUMNS or names.count(name) > 1})
        if taken:
            raise ConfigError(f"scorer {taken[0]!r}: a column of this name exists: give the scorer another name")


def measure(record: ClipRecord, options: MeasureOptions | None = None) -> ClipRecord:
    """A clip with all of its measures and its signature.

    Args:
        record: a clip, or a whole file.
        options: MeasureOptions; None for the defaults.

    Returns:
        The record with the columns of `COLUMNS` (and of the scorers) and `signature`; `end` is set if it was None.

    Raises:
        VideoError: the clip cannot be decoded.
    """
    options = options or MeasureOptions()
    meter, end = Meter(options), None
    for frame in read_frames(record.path, start=record.start, end=record.end, threads=options.threads):
        meter.push(frame)
        end = frame.end
    record = record if record.end is not None else record.replace(end=end)
    return scored(meter.summary(record, 0, meter.count), options)


def scored(record: ClipRecord, options: MeasureOptions) -> ClipRecord:
    """The record with the user's own measures."""
    for scorer in options.scorers:
        value = scorer.score(picture.spread_frames(record, scorer.frames), record)
        if value is not None and not math.isfinite(value):
            raise DataError(f"{record.path}: scorer {scorer.name!r} gave {value}, must be a finite number or None")
        record = record.with_measures(**{scorer.name: value})
    return record


_PER_FRAME = ("luma", "spread", "dark", "bright", "colour", "si", "ti", "change")
_DETAIL = ("top", "bottom", "left", "right", "blur", "blocks", "combed", "text")
_MOTION = ("moved", "camera", "object", "camera_x", "camera_y", "over", "pair")


PER_FRAME = (*_PER_FRAME, *_DETAIL, *_MOTION)


@dataclasses.dataclass(frozen=True)
class FrameNumbers:
    """What is measured of one frame. columns: of PER_FRAME, NaN where it was not its turn. thumb: uint8 [45 80], four
    times a second, else None."""

    time: Fraction
    columns: tuple[float, ...]
    digest: bytes
    thumb: np.ndarray | None


class FrameMeter:
    """Measures frames, which come in order: some numbers are of a frame and of those before it.

    A meter that begins in the middle of a file gives what one from its beginning would, once it is `settled`.
    """

    def __init__(self, options: MeasureOptions | None = None):
        self.options = options or MeasureOptions()
        self._last: Fraction | None = None
        self._previous: np.ndarray | None = None  # grey
        self._anchor: tuple[int, float, np.ndarray] | None = None  # of motion: index, time, grey
        self._bars = (0.0, 0.0, 0.0, 0.0)
        self._flow = picture.Flow()
        self._turns = {"bars": 0, "motion": 0}

    @property
    def settled(self) -> bool:
        """Whether bars and motion are known from frames whose turn it was: the first one's always is."""
        return min(self._turns.values()) > 1

    def __call__(self, frame: AnalysisFrame) -> FrameNumbers:
        row = dict.fromkeys(PER_FRAME, math.nan)
        time, last, thumb = frame.time, self._last, None
        due = lambda rate: last is None or _slot(time, rate) != _slot(last, rate)  # noqa: E731
        gray = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
        digest = hashlib.blake2b(frame.image, digest_size=16)
        if due(DETAIL_RATE):
            luma = frame.luma
            digest.update(np.ascontiguousarray(luma))
            row |= picture.detail(luma, frame.raw, text=self.options.text)
            if gray.mean() > 10:  # a black frame has no bars to go by
                self._turns["bars"] += 1 if self._turns["bars"] or last is None else 2
                self._bars = tuple(row[side] for side in ("top", "bottom", "left", "right"))
        box = picture.inner_box(gray.shape, self._bars)
        row |= picture.of_frame(frame.image[box], gray[box])
        if self._previous is not None and self._previous.shape == gray.shape:
            row |= picture.of_pair(self._previous[box], gray[box])
        if due(MOTION_RATE):
            if self._anchor is not None and self._anchor[2].shape == gray.shape:
                index, before, earlier = self._anchor
                row |= self._flow(earlier[box], gray[box], float(time) - before)
                row["pair"] = frame.index - index
            self._anchor = (frame.index, float(time), gray)
            self._turns["motion"] += 1
        if due(THUMB_RATE):
            thumb = gray_thumb(gray)
        self._previous, self._last = gray, time
        return FrameNumbers(time, tuple(row.values()), digest.digest(), thumb)


def _slot(time: Fraction, rate: int) -> int:
    """floor(time * rate), without making a fraction."""
    return time.numerator * rate // time.denominator


class Meter:
    """Numbers of each frame of a file, and summaries of stretches of them.

    Memory: about 100 bytes a frame and 15 kB a second; `forget` lets go of frames whose clips are done.
    """

    def __init__(self, options: MeasureOptions | None = None):
        self.count = 0
        self._measure = FrameMeter(options)
        self._base = 0  # index of the first frame that is held
        self._columns = {name: array.array("f") for name in PER_FRAME}
        self._times: list[Fraction] = []
        self._digests: list[bytes] = []
        self._thumbs: list[tuple[int, np.ndarray]] = []

    def push(self, frame: AnalysisFrame) -> None:
        """Takes the next frame of the file."""
        self.add(self._measure(frame))

    def add(self, numbers: FrameNumbers) -> None:
        """Takes the numbers of the next frame of the file."""
        for column, value in zip(self._columns.values(), numbers.columns):
            column.append(value)
        self._times.append(numbers.time)
        self._digests.append(numbers.digest)
        if numbers.thumb is not None:
            self._thumbs.append((self.count, numbers.thumb))
        self.count += 1

    def time(self, index: int) -> Fraction:
        """When a held frame comes on screen."""
        return self._times[index - self._base]

    def times(self, first: int, stop: int) -> list[Fraction]:
        """Of frames first <= index < stop."""
        return self._times[first - self._base : stop - self._base]

    def forget(self, index: int) -> None:
        """Lets go of all frames before this one."""
        drop = max(0, index - self._base)
        for column in self._columns.values():
            del column[:drop]
        del self._times[:drop], self._digests[:drop]
        self._thumbs = [(k, thumb) for k, thumb in self._thumbs if k >= index]
        self._base += drop

    def summary(self, record: ClipRecord, first: int, stop: int) -> ClipRecord:
        """The record with the measures of frames first <= index < stop, and its signature. record.end must be set."""
        a, b = first - self._base, stop - self._base
        columns = {name: np.frombuffer(column, np.float32)[a:b].astype(np.float64) for name, column in
                   self._columns.items()}  # fmt: skip
        times = np.array([float(time) for time in self._times[a:b]])
        held = [(self.time(k), thumb) for k, thumb in self._thumbs if first <= k < stop]
        bars = _bars(columns)
        values = _summary(columns, times, float(record.end), bars, record.size)
        values["logo_area"] = picture.logo_area([thumb for _, thumb in held])
        values["digest"] = hashlib.blake2b(b"".join(self._digests[a:b]), digest_size=16).hexdigest()
        signature = Signature.of([float(t - record.start) for t, _ in held], [thumb for _, thumb in held], bars)
        declared = record.measures.get("fps")  # times in a container are rounded; its rate, where it fits them, is not
        if declared and values["fps"] and abs(declared / values["fps"] - 1) < 0.01:
            values["fps"] = declared
        order = {name: _tidy(values.get(name)) for name in COLUMNS}
        return record.replace(signature=signature.to_bytes()).with_measures(**order)


def _bars(columns: dict[str, np.ndarray]) -> tuple[float, float, float, float]:
    """(top, bottom, left, right), shares of the frame, that are black in nearly all frames that show anything."""
    lit = columns["luma"] > 0.05
    sides = []
    for side in ("top", "bottom", "left", "right"):
        values = columns[side][lit & np.isfinite(columns[side])]
        sides.append(float(np.quantile(values, 0.1, method="lower")) if len(values) else 0.0)
    return tuple(sides)


def _summary(
    columns: dict[str, np.ndarray], times: np.ndarray, end: float, bars: Sequence[float], size: tuple[int, int] | None
) -> dict[str, Value]:
    n = len(times)
    lengths = np.diff(np.append(times, end))
    seconds = max(float(lengths.sum()), 1e-9)
    mean = lambda name: float(np.nanmean(columns[name])) if np.isfinite(columns[name]).any() else None  # noqa: E731
    pairs = columns["pair"] <= np.arange(n)  # both frames lie in the clip
    within = lambda name: columns[name][pairs & np.isfinite(columns[name])]  # noqa: E731
    moved, over = within("moved"), within("over")
    weigh = lambda name: float(np.average(within(name), weights=over)) if len(over) else None  # noqa: E731
    repeats = np.append(False, columns["change"][1:] < _REPEAT)
    black = (columns["luma"] < 0.06) & (columns["spread"] < 0.04)
    values: dict[str, Value] = {
        "duration": seconds, "frames": n, "fps": (n - 1) / (times[-1] - times[0]) if n > 1 else None,
        "motion": weigh("moved"), "camera_motion": weigh("camera"), "object_motion": weigh("object"),
        "stillness": float(np.average(moved < _STILL, weights=over)) if len(over) else None,
        "shake": _shake(within("camera_x"), within("camera_y")),
        "blur": mean("blur"), "blockiness": mean("blocks"), "interlacing": mean("combed"), "text_area": mean("text"),
        "exposure": mean("luma"), "contrast": mean("spread"), "dark": mean("dark"), "bright": mean("bright"),
        "black": float(np.average(black, weights=lengths)), "freeze": _freeze(repeats, lengths) / seconds,
        "repeats": float(repeats[1:].mean()) if n > 1 else None,
        "colourfulness": mean("colour"), "si": mean("si"),
        "ti": float(np.nanmean(columns["ti"][1:])) if np.isfinite(columns["ti"][1:]).any() else None,
        "bars": 1 - (1 - bars[0] - bars[1]) * (1 - bars[2] - bars[3]),
    }  # fmt: skip
    if size is not None:
        height, width = size
        top, bottom, left, right = (round(share * side) for share, side in zip(bars, (height, height, width, width)))
        values |= {"height": height, "width": width, "crop_top": top, "crop_left": left,
                   "crop_height": height - top - bottom, "crop_width": width - left - right}  # fmt: skip
    return values


def _freeze(repeats: np.ndarray, lengths: np.ndarray) -> float:
    """Seconds in runs of repeated frames of half a second or more; the frame that is repeated counts as well."""
    total, run = 0.0, 0.0
    for again, length, before in zip(repeats, lengths, np.append(0.0, lengths[:-1])):
        if again:
            run = run + length if run else before + length
        else:
            total, run = total + (run if run >= _FREEZE_S else 0.0), 0.0
    return total + (run if run >= _FREEZE_S else 0.0)


def _shake(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < 3:
        return None
    second = lambda v: v[1:-1] - (v[:-2] + v[2:]) / 2  # noqa: E731
    return float(np.hypot(second(x), second(y)).mean())


def _tidy(value: Value) -> Value:
    """Six digits are more than any measure is good for, and the same on every machine."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
