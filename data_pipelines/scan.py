"""Scan: cut, split and measure a file with one decoding. What the pipeline runs, in the worker that decodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction

from data_pipelines.frames import AnalysisFrame, read_frames
from data_pipelines.measures import FrameNumbers, MeasureOptions, Meter, scored
from data_pipelines.probe import probe
from data_pipelines.records import ClipRecord
from data_pipelines.scenes import CutOptions, Transition, merge
from data_pipelines.split import SplitOptions, split
from vdit.errors import VideoError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """cut, split, measure: the options of the three stages. keep_damaged: what a damaged file gives before the damage
    is kept (its clips have the reason in the column `damage`); False: the file costs one row with the reason."""

    cut: CutOptions = dataclasses.field(default_factory=CutOptions)
    split: SplitOptions = dataclasses.field(default_factory=SplitOptions)
    measure: MeasureOptions = dataclasses.field(default_factory=MeasureOptions)
    keep_damaged: bool = True


def scan(record: ClipRecord, options: ScanOptions | None = None) -> list[ClipRecord]:
    """The measured clips of a file.

    Args:
        record: a file, after `probe`.
        options: ScanOptions; None for the defaults.

    Returns:
        A record a clip, in order, each with `end`, the columns of the three stages and a signature; `damage` is why
        the file could not be read to its end, None where it could.

    Raises:
        VideoError: nothing of the file can be decoded (or not all, without keep_damaged).
    """
    options = options or ScanOptions()
    cutter, end, damage = Cutter(record, options), None, None
    for frame in _frames(record, options):
        if isinstance(frame, VideoError):
            damage = str(frame)
            break
        cutter.push(frame)
        end = frame.end
    return cutter.finish(end, damage)


def scan_file(record: ClipRecord, options: ScanOptions) -> list[ClipRecord]:
    """A file to its clips, measured."""
    return scan(probe(record), options)


class Cutter:
    """Frames to clips. A scene is measured as soon as the transition after it is certain, and its frames are let go
    of: memory is that of the longest scene, and of a block of the detector."""

    def __init__(self, record: ClipRecord, options: ScanOptions):
        self._record, self._options = record, options
        self._meter, self._detector = Meter(options.measure), options.cut.detector()
        self._waiting: list[Transition] = []  # that later ones may still merge with
        self._start, self._kind = 0, None  # of the scene that has begun
        self._clips: list[ClipRecord] = []

    def push(self, frame: AnalysisFrame) -> None:
        self._meter.push(frame)
        self._cut(frame)

    def add(self, numbers: FrameNumbers, frame: AnalysisFrame) -> None:
        """A frame that was measured elsewhere. frame: what the detector needs of it."""
        self._meter.add(numbers)
        self._cut(frame)

    def _cut(self, frame: AnalysisFrame) -> None:
        if found := self._new(self._detector.push(frame)):
            self._waiting = merge([*self._waiting, *found], self._meter.time, self._options.cut.shortest)
            while len(self._waiting) > 1:
                self._close(self._waiting.pop(0))

    def finish(self, end: Fraction, damage: str | None = None) -> list[ClipRecord]:
        """After the last frame, which ends at `end`: all clips, in order. damage: why there are no more frames."""
        found = [*self._waiting, *self._new(self._detector.finish())]
        for item in merge(found, self._meter.time, self._options.cut.shortest):
            self._close(item)
        if self._start < self._meter.count:
            self._scene(self._meter.count, end)
        clips = [clip.with_measures(damage=damage) for clip in self._clips]
        return [scored(clip, self._options.measure) for clip in clips]

    def _new(self, found: list[Transition]) -> list[Transition]:
        """Without what lies before the scene that has begun: its frames are gone."""
        return [dataclasses.replace(t, first=max(t.first, self._start)) for t in found if t.last > self._start]

    def _close(self, item: Transition) -> None:
        if item.first > self._start:
            self._scene(item.first, self._meter.time(item.first))
        self._start, self._kind = item.last, item.kind
        self._meter.forget(item.last)

    def _scene(self, stop: int, end: Fraction) -> None:
        meter, first = self._meter, self._start
        times = meter.times(first, stop)
        scene = self._record.replace(start=times[0], end=end).with_measures(cut_before=self._kind)
        index = {time: first + k for k, time in enumerate(times)}
        for clip in split(scene, self._options.split, times=times):
            self._clips.append(meter.summary(clip, index[clip.start], index.get(clip.end, stop)))


def _frames(record: ClipRecord, options: ScanOptions) -> Iterator[AnalysisFrame | VideoError]:
    """The file's frames; an error after the first frame comes as the last item if damaged files are kept."""
    seen = False
    try:
        for frame in read_frames(record.path, start=record.start, end=record.end, threads=options.cut.threads):
            seen = True
            yield frame
    except VideoError as error:
        if not (seen and options.keep_damaged):
            raise
        yield error
