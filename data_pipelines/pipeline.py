"""The two Beam pipelines of `vdit curate`: footage to measured rows, and kept rows to shards.

    measure_footage     files -> scan (cut, split, measure; one decoding; long films by ranges of time, in several
                        workers) -> near-duplicates -> rows-*.jsonl
    write_clips         kept rows -> caption, encode -> clips-*.arrayrecord

Between them stands the keep expression (select.py), so that another threshold reads no video again. Every result is a
file named by what it depends on, and appears whole: a runner may run anything twice, and a pipeline that was killed
goes on. No pixel passes between stages: a worker decodes what it uses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from data_pipelines.caption import CaptionClips, CaptionOptions
from data_pipelines.clips import ClipOptions, Encoded, encode_clip, write_file, write_shard
from data_pipelines.duplicates import DuplicateOptions, cluster, compare, keys
from data_pipelines.footage import FootageFile
from data_pipelines.isolate import Isolated
from data_pipelines.ranges import TimeRange, join_file, measure_file_range, ranges_of
from data_pipelines.records import ClipRecord
from data_pipelines.scan import ScanOptions, scan_file
from data_pipelines.select import Row
from vdit import paths
from vdit.errors import DataError, VditError, VideoError, reason

SCANNING = 2  # of the cached records: raise it where the same options give other columns
NEIGHBOURS = 50  # records of a bucket that each one is compared with
RUN_SECONDS = 600.0  # footage of a file that stays in one shard
MOST_NOTE = 256 * paths.MIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """Where things are in a curated folder.

    Args:
        path: the folder, local or in a bucket.
    """

    path: str

    @property
    def scans(self) -> str:
        return f"{self.path}/work/scans"

    @property
    def ranges(self) -> str:
        """Numbers of ranges of long films, until the film's scan is there."""
        return f"{self.path}/work/ranges"

    @property
    def notes(self) -> str:
        """What the shards of the last run say."""
        return f"{self.path}/work/notes.json"

    @property
    def clips(self) -> str:
        return f"{self.path}/work/clips"

    def rows(self) -> list[paths.AnyPath]:
        """The files of rows, sorted."""
        names = [name for name in paths.names_in(self.path) if name.startswith("rows-") and name.endswith(".jsonl")]
        return [paths.path(self.path) / name for name in names]

    def read_rows(self) -> Iterator[Row]:
        """Every row, file after file."""
        for file in self.rows():
            text = paths.read_text(file, limit=4 * paths.GIB, error=DataError, fix="run vdit curate again")
            for number, line in enumerate(text.splitlines(), start=1):
                name = f"{file}, line {number}"
                yield Row.from_json(paths.parse_json(line, name=name, error=DataError, fix="run vdit curate again"))


class Counted(beam.DoFn):
    """A stage that keeps what goes wrong as a row, and counts: done, cached, failed, milliseconds."""

    stage = ""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def setup(self) -> None:
        self._isolated = Isolated(seconds=self.seconds)
        self._counters = {name: Metrics.counter(self.stage, name) for name in ("done", "cached", "failed",
                                                                               "milliseconds")}  # fmt: skip

    def teardown(self) -> None:
        self._isolated.close()

    def count(self, name: str, amount: int = 1) -> None:
        self._counters[name].inc(amount)

    def attempt(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None, bool]:
        """(what the function gave in the isolated process, why it failed, whether it would fail again)."""
        begun = time.monotonic()
        try:
            return self._isolated.call(function, *arguments), None, True
        except VditError as error:
            self.count("failed")
            return None, str(error), isinstance(error, VideoError)
        except Exception as error:  # decoders and libraries raise anything; one file must not end a pipeline
            self.count("failed")
            return None, f"{type(error).__name__}: {reason(error)}", False
        finally:
            self.count("milliseconds", round((time.monotonic() - begun) * 1000))


class ScanFile(Counted):
    """A file to its clips, measured; kept in the work folder, where they are found again.

    Args:
        folder: the curated folder. options: of the scan. seconds: that a file may take.
    """

    stage = "scan"

    def __init__(self, folder: Folder, options: ScanOptions, seconds: float):
        super().__init__(seconds)
        self.folder, self.options = folder, options

    def process(self, file: FootageFile) -> Iterator[Row]:
        place = paths.path(self.folder.scans) / f"{scan_key(file, self.options)}.json"
        records = _read_records(place)
        if records is None:
            records = self._scan(file, place)
        else:
            self.count("cached")
        self.count("done")
        for record in records:
            yield Row(clip=record, name=file.name, captions=file.captions)

    def _scan(self, file: FootageFile, place: paths.AnyPath) -> list[ClipRecord]:
        record = ClipRecord(path=file.path)
        if file.version is None:
            return [record.failed("there is no such file")]
        records, why, again = self.attempt(scan_file, record, self.options)
        records = records if why is None else [record.failed(why)]
        if why is None or (again and not paths.is_remote(file.path)):  # a connection may be better the next time
            paths.write_atomic(place, json.dumps([each.to_json() for each in records]))
        return records


class PlanRanges(Counted):
    """Files to what is scanned at once: (file, None), or (file, (number, count, range)) for each range of a long one.

    A file whose scan is there, or which cannot be opened, stays whole.

    Args:
        folder: the curated folder. options: of the scan. seconds: that a file may take. long: seconds of a range.
    """

    stage = "plan"

    def __init__(self, folder: Folder, options: ScanOptions, seconds: float, long: float):
        super().__init__(seconds)
        self.folder, self.options, self.long = folder, options, long

    def process(self, file: FootageFile) -> Iterator[tuple[FootageFile, tuple[int, int, TimeRange] | None]]:
        key, ranges = scan_key(file, self.options), [None]
        if file.version is not None and not paths.is_file(paths.path(self.folder.scans) / f"{key}.json"):
            ranges = self.attempt(ranges_of, ClipRecord(path=file.path), self.long)[0] or ranges
        for number, each in enumerate(ranges):
            yield file, None if each is None else (number, len(ranges), each)


class ScanRange(Counted):
    """A range of a long film to its numbers, in a file; gives the film. One that fails leaves no file."""

    stage = "ranges"

    def __init__(self, folder: Folder, options: ScanOptions, seconds: float):
        super().__init__(seconds)
        self.folder, self.options = folder, options

    def process(self, item: tuple[FootageFile, tuple[int, int, TimeRange]]) -> Iterator[tuple[str, Any]]:
        file, (number, count, part) = item
        place = _range_files(self.folder, file, self.options, count)[number]
        if paths.is_file(place):
            self.count("cached")
        else:
            data, why, _ = self.attempt(measure_file_range, ClipRecord(path=file.path), self.options, part)
            if why is None:
                paths.write_atomic(place, data)
        self.count("done")
        yield file.path, (file, count)


def _range_files(folder: Folder, file: FootageFile, options: ScanOptions, count: int) -> list[paths.AnyPath]:
    key = scan_key(file, options)
    return [paths.path(folder.ranges) / f"{key}-{number:05d}-of-{count:05d}.npz" for number in range(count)]


class JoinRanges(ScanFile):
    """A long film whose ranges are there to its clips; whole, where its ranges do not fit together."""

    stage = "join"

    def process(self, group: tuple[str, Iterable[tuple[FootageFile, int]]]) -> Iterator[Row]:
        file, self._count = next(iter(group[1]))
        yield from super().process(file)

    def _scan(self, file: FootageFile, place: paths.AnyPath) -> list[ClipRecord]:
        parts = _range_files(self.folder, file, self.options, self._count)
        records = None
        if all(map(paths.is_file, parts)):
            names = [str(part) for part in parts]
            records = self.attempt(join_file, ClipRecord(path=file.path), self.options, names)[0]
        if records is None:
            Metrics.counter(self.stage, "whole").inc()
            records = super()._scan(file, place)
        else:
            paths.write_atomic(place, json.dumps([each.to_json() for each in records]))
        for part in parts:
            part.unlink(missing_ok=True)
        return records


def scan_key(file: FootageFile, options: ScanOptions) -> str:
    """Names the scan of a file: of its path, its version and the options."""
    said = json.dumps([SCANNING, file.path, file.version, dataclasses.asdict(options)], default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:24]


def _read_records(place: paths.AnyPath) -> list[ClipRecord] | None:
    if not paths.is_file(place):
        return None
    try:
        return [ClipRecord.from_json(values) for values in paths.read_json(place, limit=MOST_NOTE, error=DataError)]
    except (DataError, TypeError):
        return None


class WriteRows(beam.DoFn):
    """Rows of one file of rows: sorted, with their cluster, written whole."""

    def __init__(self, folder: Folder, count: int):
        self.folder, self.count = folder, count

    def process(self, group: tuple[int, Iterable[Row]]) -> Iterator[int]:
        number, rows = group
        rows = sorted(rows, key=lambda row: (row.clip.path, row.clip.start))
        lines = [json.dumps(row.to_json(), sort_keys=True) for row in rows]
        paths.write_atomic(rows_file(self.folder, number, self.count), "".join(f"{line}\n" for line in lines))
        yield len(rows)


def rows_file(folder: Folder, number: int, count: int) -> paths.AnyPath:
    return paths.path(folder.path) / f"rows-{number:05d}-of-{count:05d}.jsonl"


def measure_footage(pipeline: beam.Pipeline, files: Sequence[FootageFile], folder: Folder, scanning: ScanOptions,
                    duplicates: DuplicateOptions, *, seconds: float, long: float) -> None:  # fmt: skip
    """The first pipeline: files to rows on disk.

    Args:
        pipeline: takes the stages.
        files: the footage.
        folder: the curated folder.
        scanning: how files are cut and measured.
        duplicates: how near-duplicates are found.
        seconds: that one file may take.
        long: films of twice as many seconds are scanned in ranges of so many, by workers each.
    """
    count = max(1, -(-len(files) // 1000))
    planned = (
        pipeline
        | "files" >> beam.Create(list(files))
        | "spread files" >> beam.Reshuffle()
        | "plan" >> beam.ParDo(PlanRanges(folder, scanning, seconds, long))
        | "spread ranges" >> beam.Reshuffle()
    )
    whole = (
        planned
        | "whole files" >> beam.FlatMap(lambda item: [item[0]] if item[1] is None else [])
        | "scan" >> beam.ParDo(ScanFile(folder, scanning, seconds))
    )
    joined = (
        planned
        | "ranges" >> beam.Filter(lambda item: item[1] is not None)
        | "measure ranges" >> beam.ParDo(ScanRange(folder, scanning, seconds))
        | "by film" >> beam.GroupByKey()
        | "join ranges" >> beam.ParDo(JoinRanges(folder, scanning, seconds))
    )
    rows = (whole, joined) | "rows" >> beam.Flatten()
    clusters = (
        rows
        | "signatures" >> beam.FlatMap(_keyed, duplicates)
        | "buckets" >> beam.GroupByKey()
        | "candidates" >> beam.FlatMap(_pairs)
        | "distinct" >> beam.GroupByKey()
        | "pairs" >> beam.Map(lambda pair: next(iter(pair[1])))
        | "compare" >> beam.Filter(_same, duplicates)
        | "all pairs" >> beam.combiners.ToList()
        | "cluster" >> beam.FlatMap(_clusters)
    )
    by_id = rows | "by id" >> beam.Map(lambda row: (row.clip.id, row))
    (
        {"rows": by_id, "clusters": clusters}
        | "join" >> beam.CoGroupByKey()
        | "name clusters" >> beam.FlatMap(_joined)
        | "file of rows" >> beam.Map(lambda row: (_place(row.clip.path, count), row))
        | "files of rows" >> beam.GroupByKey()
        | "write rows" >> beam.ParDo(WriteRows(folder, count))
    )


def _keyed(row: Row, options: DuplicateOptions) -> Iterator[tuple[str, ClipRecord]]:
    if row.clip.error is None:
        for key in keys(row.clip, options):
            yield str(key), row.clip


def _pairs(bucket: tuple[str, Iterable[ClipRecord]]) -> Iterator[tuple[str, tuple[ClipRecord, ClipRecord]]]:
    """Pairs of records of a bucket that are to be compared: each with its neighbours by id.

    A bucket of thousands (black pictures) then gives thousands of pairs, and not millions; copies among them are still
    one cluster, by way of each other.
    """
    records = sorted(bucket[1], key=lambda record: record.id)
    if len(records) > NEIGHBOURS:
        Metrics.counter("duplicates", "crowded").inc()
    for place, second in enumerate(records):
        for first in records[max(0, place - NEIGHBOURS) : place]:
            yield f"{first.id} {second.id}", (first, second)


def _same(pair: tuple[ClipRecord, ClipRecord], options: DuplicateOptions) -> bool:
    Metrics.counter("duplicates", "compared").inc()
    return compare(*pair, options)


def _clusters(pairs: list[tuple[ClipRecord, ClipRecord]]) -> Iterator[tuple[str, tuple[str, int]]]:
    records = {record.id: record for pair in pairs for record in pair}
    ids = sorted((first.id, second.id) for first, second in pairs)
    for members in cluster([records[name] for name in sorted(records)], ids):
        for rank, record in enumerate(members):
            yield record.id, (members[0].id, rank)


def _joined(group: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[Row]:
    found = next(iter(group[1]["clusters"]), (None, 0))
    for row in group[1]["rows"]:
        yield dataclasses.replace(row, cluster=found[0], rank=found[1])


def _place(text: str, count: int) -> int:
    """A number below `count` that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) % count


class EncodeClip(Counted):
    """A kept row to a video file in the work folder."""

    stage = "encode"

    def __init__(self, folder: Folder, options: ClipOptions, seconds: float):
        super().__init__(seconds)
        self.folder, self.options = folder, options

    def process(self, row: Row) -> Iterator[Encoded]:
        made, why, _ = self.attempt(encode_clip, row, self.options, self.folder.clips)
        self.count("done")
        yield made if why is None else Encoded(row=row, error=why)


class WriteShard(beam.DoFn):
    """Clips of one shard to the shard, to files, or to both. Those that could not be encoded go on with their reasons.

    Args:
        folder: the curated folder. kinds: "shards", "files" or both.
    """

    def __init__(self, folder: Folder, kinds: Collection[str]):
        self.folder, self.kinds = folder, kinds

    def process(self, group: tuple[int, Iterable[Encoded]]) -> Iterator[dict[str, Any]]:
        number, clips = group
        clips = list(clips)
        good = [made for made in clips if made.error is None]
        note = write_shard(good, self.folder.path, number) if good and "shards" in self.kinds else None
        files = [write_file(made, self.folder.path) for made in good] if "files" in self.kinds else []
        failed = {made.row.clip.id: made.error for made in clips if made.error is not None}
        yield {"number": number, "shard": note, "files": files, "failed": failed, "written": len(good)}


class WriteNote(beam.DoFn):
    """What all shards say, in one file: the index is made of it."""

    def __init__(self, file: str):
        self.file = file

    def process(self, notes: list[dict[str, Any]]) -> None:
        notes = sorted(notes, key=lambda note: note["number"])
        paths.write_atomic(self.file, json.dumps(notes, sort_keys=True))


def write_clips(pipeline: beam.Pipeline, rows: Sequence[str], folder: Folder, clips: ClipOptions, *,
                kinds: Collection[str], shards: int, captions: CaptionOptions | None, seconds: float) -> None:
    """The second pipeline: kept rows to shards, to files, or to both.

    Args:
        pipeline: takes the stages.
        rows: files of kept rows, a JSON object a line.
        folder: the curated folder; its notes are written.
        clips: how clips are written. kinds: "shards", "files" or both.
        shards: number of shards, at most: a clip's is decided by its file and its place in it.
        captions: how clips are captioned; None leaves the captions that came with the footage.
        seconds: that one clip may take.
    """
    made = (
        pipeline
        | "kept files" >> beam.Create(list(rows))
        | "kept" >> beam.FlatMap(_read_kept)
        | "spread clips" >> beam.Reshuffle()
        | "encode" >> beam.ParDo(EncodeClip(folder, clips, seconds))
    )
    if captions is not None:
        made = (
            made
            | "batches" >> beam.BatchElements(min_batch_size=8, max_batch_size=8)
            | "caption" >> beam.ParDo(CaptionClips(captions, f"{folder.path}/work/answers"))
        )
    (
        made
        | "shard" >> beam.Map(lambda made: (shard_of(made.row, shards), made))
        | "shards" >> beam.GroupByKey()
        | "write shards" >> beam.ParDo(WriteShard(folder, kinds))
        | "notes" >> beam.combiners.ToList()
        | "write notes" >> beam.ParDo(WriteNote(folder.notes))
    )


def _read_kept(file: str) -> Iterator[Row]:
    for line in paths.read_text(file, limit=4 * paths.GIB, error=DataError).splitlines():
        yield Row.from_json(json.loads(line))


def shard_of(row: Row, count: int) -> int:
    """The shard of a clip: neighbours of ten minutes of a file share one, so that a worker reads on."""
    return _place(f"{row.clip.path} {int(row.clip.start // int(RUN_SECONDS))}", count)


def counters_of(result: Any) -> dict[str, dict[str, int]]:
    """Stage -> counter -> value, of a pipeline that has run; {} where the runner does not tell."""
    try:
        found = result.metrics().query()["counters"]
    except (AttributeError, NotImplementedError, KeyError):
        return {}
    told: dict[str, dict[str, int]] = {}
    for counter in found:
        stage = told.setdefault(counter.key.metric.namespace, {})
        name = counter.key.metric.name
        value = counter.attempted if counter.committed is None else counter.committed
        stage[name] = stage.get(name, 0) + int(value)
    return told
