"""One long film by several workers: each measures the frames of a range of time, and one puts the numbers together.

    part = measure_range(record, options, TimeRange(start=Fraction(600), stop=Fraction(1200)))     # in a worker each
    clips = join_ranges(record, options, parts)        # what scan(record, options) gives, to the last bit

A worker reads from a key frame some seconds before its range, until its numbers no longer depend on what came before.
The frames that it measured before its range are those at the end of the range before: where one number of theirs
differs, or anything is odd about a file (damage, times that step back, no index), `join_ranges` gives None, and the
file is scanned as a whole. Cuts are looked for when the numbers are put together: that takes a twentieth of the time
with "mixes"; a network (`transnet`) takes longer.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import cv2
import numpy as np

from data_pipelines.frames import AnalysisFrame, read_frames
from data_pipelines.measures import PER_FRAME, FrameMeter, FrameNumbers
from data_pipelines.probe import probe
from data_pipelines.records import ClipRecord
from data_pipelines.scan import Cutter, ScanOptions
from vdit import paths
from vdit.errors import DataError, VideoError
from vdit.video.source import Source, decoding

LEAD = (Fraction(2), Fraction(10), Fraction(60))  # seconds before a range at which reading begins; then from the front
SEAM = 8  # frames before a range, at least, that must be as the range before has them
_MOST = 8 * paths.GIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeRange:
    """Frames with start <= time < stop, in seconds; stop None: to the end."""

    start: Fraction
    stop: Fraction | None


def time_ranges(record: ClipRecord, seconds: float) -> list[TimeRange]:
    """The ranges of a file, each of `seconds` and the last up to twice as long; one where the file is no longer, or
    does not say how long it is."""
    claimed = record.measures.get("claimed_duration")
    count = int(claimed // seconds) if isinstance(claimed, int | float) and claimed > 0 else 1
    if count < 2 or not record.measures.get("fps"):
        return [TimeRange(start=Fraction(0), stop=None)]
    step = Fraction(seconds).limit_denominator(1000)
    return [TimeRange(start=k * step, stop=None if k == count - 1 else (k + 1) * step) for k in range(count)]


def can_seek(record: ClipRecord) -> bool:
    """Whether the middle of a file is found without reading what is before it."""
    middle = record.measures["claimed_duration"] / 2
    with decoding(record.path), Source(record.path) as source:
        return next(source.frames(start=middle)).time > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredRange:
    """The numbers of a range.

    Args:
        numbers: of each frame. pictures: uint8 [n h w 3], what the detector looks at.
        lead: numbers of the frames before the range that are certain, the last ones of the range before.
        end: when the last frame leaves the screen.
    """

    numbers: list[FrameNumbers]
    pictures: np.ndarray
    lead: list[FrameNumbers]
    end: Fraction

    def to_bytes(self) -> bytes:
        """A file of arrays; `from_bytes` reads it."""
        arrays = {"pictures": self.pictures} | _arrays("n", self.numbers) | _arrays("l", self.lead)
        arrays["end"] = np.frombuffer(json.dumps(str(self.end)).encode(), np.uint8)
        out = io.BytesIO()
        np.savez(out, **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> MeasuredRange:
        """The range of `to_bytes`.

        Raises:
            DataError: these bytes are none.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            end = Fraction(json.loads(found["end"].tobytes()))
            return cls(numbers=_numbers("n", found), pictures=found["pictures"], lead=_numbers("l", found), end=end)
        except Exception as error:  # numpy and zipfile raise many types
            raise DataError(f"a range of numbers is damaged ({type(error).__name__}): it is measured again") from error


def _arrays(key: str, numbers: list[FrameNumbers]) -> dict[str, np.ndarray]:
    places = [k for k, one in enumerate(numbers) if one.thumb is not None]
    times = [str(one.time) for one in numbers]
    return {
        f"{key}_times": np.frombuffer(json.dumps(times).encode(), np.uint8),
        f"{key}_columns": np.array([one.columns for one in numbers], np.float64).reshape(-1, len(PER_FRAME)),
        f"{key}_digests": np.frombuffer(b"".join(one.digest for one in numbers), np.uint8).reshape(-1, 16),
        f"{key}_places": np.array(places, np.int64),
        f"{key}_thumbs": np.array([numbers[k].thumb for k in places], np.uint8),
    }


def _numbers(key: str, arrays: dict[str, np.ndarray]) -> list[FrameNumbers]:
    thumbs = dict(zip(arrays[f"{key}_places"].tolist(), arrays[f"{key}_thumbs"]))
    times = json.loads(arrays[f"{key}_times"].tobytes())
    rows = zip(times, arrays[f"{key}_columns"].tolist(), arrays[f"{key}_digests"], strict=True)
    return [FrameNumbers(Fraction(time), tuple(columns), digest.tobytes(), thumbs.get(k))
            for k, (time, columns, digest) in enumerate(rows)]  # fmt: skip


def measure_range(record: ClipRecord, options: ScanOptions, part: TimeRange) -> MeasuredRange:
    """Measures the frames of a range.

    Args:
        record: the file, probed.
        options: of the scan.
        part: the range.

    Raises:
        VideoError: the range holds no frame, or is not to be measured alone.
    """
    for lead in LEAD:
        if part.start - lead <= 0:
            break
        found = _measure(record, options, part, part.start - lead)
        if found is not None:
            return found
    found = _measure(record, options, part, Fraction(0))
    if found is None:
        raise VideoError(f"{record.path}: has no frame from {float(part.start):.3f} s on")
    return found


def _measure(record: ClipRecord, options: ScanOptions, part: TimeRange, first: Fraction) -> MeasuredRange | None:
    """Reads from `first` on; None where the numbers at the range's start still depend on earlier frames."""
    measure, height_width = FrameMeter(options.measure), options.cut.input_size
    lead: list[FrameNumbers] = []
    numbers: list[FrameNumbers] = []
    pictures: list[np.ndarray] = []
    end = part.start
    for frame in read_frames(record.path, start=first, end=part.stop, threads=options.cut.threads):
        certain = measure.settled or first == 0
        if frame.time >= part.start and not numbers and first > 0 and len(lead) < SEAM:
            return None
        one = measure(frame)
        if frame.time < part.start:
            lead = [*lead, one][-SEAM:] if certain else lead
            continue
        numbers.append(one)
        pictures.append(cv2.resize(frame.image, height_width[::-1], interpolation=cv2.INTER_AREA))
        end = frame.end
    if not numbers:
        return None
    return MeasuredRange(numbers=numbers, pictures=np.stack(pictures), lead=lead, end=end)


def join_ranges(record: ClipRecord, options: ScanOptions, parts: Iterable[MeasuredRange]) -> list[ClipRecord] | None:
    """The clips of a file, as `scan` gives them.

    Args:
        record: the file, probed.
        options: of the scan.
        parts: all of its ranges, in order; held one at a time.

    Returns:
        The clips; None where ranges do not meet exactly, or hold more frames than the file says.
    """
    cutter, before, end, count = Cutter(record, options), None, None, 0
    for part in parts:
        if before is not None and not _meets(before, part):
            return None
        for one, image in zip(part.numbers, part.pictures, strict=True):
            cutter.add(one, AnalysisFrame(count, one.time, one.time, image, None))
            count += 1
        before, end = part.numbers[-SEAM:], part.end
    claimed = record.measures.get("claimed_frames")
    if end is None or (claimed and count > claimed):  # then a scan of the whole file looks at it again
        return None
    return cutter.finish(end)


def _meets(before: list[FrameNumbers], part: MeasuredRange) -> bool:
    same = min(len(before), len(part.lead))
    return same > 0 and all(map(_same, before[-same:], part.lead[-same:])) and (
        before[-1].time < part.numbers[0].time
    )  # fmt: skip


def _same(a: FrameNumbers, b: FrameNumbers) -> bool:
    columns = np.array_equal(np.array(a.columns, np.float32), np.array(b.columns, np.float32), equal_nan=True)
    return a.time == b.time and a.digest == b.digest and columns


def read_parts(files: Iterable[Any]) -> Iterator[MeasuredRange]:
    """The ranges in files, one at a time."""
    for file in files:
        yield MeasuredRange.from_bytes(paths.read_bytes(file, limit=_MOST, error=DataError))


def ranges_of(record: ClipRecord, seconds: float) -> list[TimeRange] | None:
    """The ranges of a long file; None for one that is scanned at once."""
    record = probe(record)
    ranges = time_ranges(record, seconds)
    return ranges if len(ranges) > 1 and can_seek(record) else None


def measure_file_range(record: ClipRecord, options: ScanOptions, part: TimeRange) -> bytes:
    """A range of a file to its numbers."""
    return measure_range(probe(record), options, part).to_bytes()


def join_file(record: ClipRecord, options: ScanOptions, parts: Sequence[str]) -> list[ClipRecord] | None:
    """The clips of a film whose ranges are in files."""
    return join_ranges(probe(record), options, read_parts(parts))
