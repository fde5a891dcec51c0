"""Scan: cut, split and measure a file with one decoding. What the pipeline runs, in the worker that decodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from data_pipelines.frames import AnalysisFrame, read_frames
from data_pipelines.measures import MeasureOptions, Meter, scored
from data_pipelines.records import ClipRecord
from data_pipelines.scenes import CutOptions, merge, scenes_between
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
    meter, detector = Meter(options.measure), options.cut.detector()
    found, end, damage = [], None, None
    for frame in _frames(record, options):
        if isinstance(frame, VideoError):
            damage = str(frame)
            break
        meter.push(frame)
        found += detector.push(frame)
        end = frame.end
    found += detector.finish()
    times = meter.times(0, meter.count)
    clips = []
    for first, stop, kind in scenes_between(merge(found, times, options.cut.shortest), meter.count):
        scene = record.replace(start=times[first], end=times[stop] if stop < len(times) else end)
        scene = scene.with_measures(cut_before=kind, damage=damage)
        index = {time: first + k for k, time in enumerate(times[first:stop])}
        for clip in split(scene, options.split, times=times[first:stop]):
            clips.append(meter.summary(clip, index[clip.start], index.get(clip.end, stop)))
    return [scored(clip, options.measure) for clip in clips]


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
