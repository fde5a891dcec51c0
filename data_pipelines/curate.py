"""Raw footage to clips that `vdit train --data OUT` reads, with Apache Beam.

    python -m data_pipelines.curate films curated --keep "motion > 0.02 and duration >= 2"
    python -m data_pipelines.curate gs://bucket/films gs://bucket/curated --runner=DataflowRunner --project=P ...

Options that are not listed below are Beam's: the runner, its workers, its project. `vdit curate` is the same command,
and takes them as --beam=OPTION.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from data_pipelines import pipeline, report
from data_pipelines.caption import CaptionOptions
from data_pipelines.clips import ClipOptions
from data_pipelines.duplicates import DuplicateOptions
from data_pipelines.footage import FootageFile, find_footage
from data_pipelines.keep import Keep
from data_pipelines.measures import COLUMNS
from data_pipelines.progress import (
    Printed,
    Watch,
    check_dataflow,
    counting,
    embedded_options,
    is_dataflow,
    quiet,
)
from data_pipelines.scan import ScanOptions
from data_pipelines.scenes import CutOptions
from data_pipelines.select import DUPLICATE, ERROR, Row, judge
from data_pipelines.split import SplitOptions
from vdit import paths
from vdit.cli import curate as command
from vdit.data.clip_records import FORMAT, INDEX
from vdit.errors import EX_OK, EX_USAGE, ConfigError, DataError, OutputError, VditError, one_line
from vdit.outputs import check_folder

if TYPE_CHECKING:
    from data_pipelines.encoded import EncodeOptions

SETTINGS = "curate.json"
# Columns of other stages than the measures.
MORE_COLUMNS = ("duplicate", "cut_before", "damage", "sound", "codec", "pixel_format", "hdr", "rotation", "streams",
                "claimed_duration", "claimed_frames")  # fmt: skip
KEPT_ROWS = 5000  # of a file that hands kept rows to the second pipeline
Kind = Literal["shards", "files", "both", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How footage is curated.

    Args:
        scanning: how files are cut, split and measured.
        duplicates: how near-duplicates are found.
        clips: how clips are written.
        captions: how kept clips are captioned; None leaves the captions that came with the footage.
        encoding: how kept clips are encoded; None leaves that to the training.
        keep: the keep expression (keep.py); "" keeps every clip that can be used and is no duplicate.
        write: "shards" (ArrayRecord), "files" (videos/ and captions.jsonl), "both", or "none": rows and the page.
        clips_per_shard: about how many clips a shard has.
        seconds_a_file: a file of footage may take so long; then it is given up, with that reason.
        range_seconds: a film of twice as many seconds is scanned in ranges of so many, by several workers; the rows
            are the same.
    """

    scanning: ScanOptions = ScanOptions()
    duplicates: DuplicateOptions = DuplicateOptions()
    clips: ClipOptions = ClipOptions()
    captions: CaptionOptions | None = None
    encoding: EncodeOptions | None = None
    keep: str = "duration >= 1"
    write: Kind = "shards"
    clips_per_shard: int = 512
    seconds_a_file: float = 4 * 3600.0
    range_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.write not in ("shards", "files", "both", "none"):
            raise ConfigError(f"write={self.write!r}: give shards, files, both or none")
        if self.clips_per_shard < 1 or not self.seconds_a_file > 0:
            raise ConfigError(f"clips_per_shard={self.clips_per_shard}, seconds_a_file={self.seconds_a_file}: must be "
                              "above 0")  # fmt: skip
        if not self.range_seconds >= 1:
            raise ConfigError(f"range_seconds={self.range_seconds}: give 1 second or more")
        if self.encoding is not None and "shards" not in self.kinds:
            raise ConfigError(f"write={self.write!r}: latents are made of shards: give shards or both with --vae")
        Keep.parse(self.keep)

    @property
    def kinds(self) -> tuple[str, ...]:
        return {"both": ("shards", "files"), "none": ()}.get(self.write, (self.write,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run found and wrote.

    Args:
        rows: all clips. seconds: of all clips that can be used. dropped: reason -> (clips, seconds).
        kept: clips. kept_seconds: their length. written: clips that were written. failed: id -> why not.
        counters: stage -> what Beam counted in this run.
        latents: how many latents there are. texts: how many captions are encoded. None: it was not asked for.
    """

    rows: int
    seconds: float
    dropped: dict[str, tuple[int, float]]
    kept: int
    kept_seconds: float
    written: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    counters: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    latents: int | None = None
    texts: int | None = None


def curate(place: str, out: str, settings: Settings, *, options: PipelineOptions | None = None,
           watch: Watch | None = None, look: bool = False) -> Outcome:
    """Curates footage. A run that was stopped goes on when it is called again.

    Args:
        place: a folder of videos or a .txt that lists them, local or in a bucket.
        out: the folder to write, local or in a bucket.
        settings: how.
        options: Beam's; None: this process alone.
        watch: is told what happens (see Watch).
        look: only apply the keep expression to the rows that are there, and write the page.

    Returns:
        What was found and written.

    Raises:
        DataError: there is no footage, or nothing to look at. OutputError: the folder cannot be written, or holds
        other things. ConfigError: the keep expression names a column that there is not.
    """
    watch = watch or Watch()
    options = options or embedded_options()
    folder = pipeline.Folder(path=str(out).rstrip("/"))
    keep = Keep.parse(settings.keep)
    keep.check(known_columns(settings))
    _check_out(folder, place)
    counters: dict[str, dict[str, int]] = {}
    if not look:  # a run or a server that is not there is told now
        if settings.encoding is not None:
            settings.encoding.chosen()
        if settings.captions is not None:
            settings.captions.check()
    if not look:
        files = find_footage(place)
        there = sum(file.version is not None for file in files)
        watch.tell("found", f"{there} files of footage in {place}" + (f", and {len(files) - there} that are missing"
                                                                       if there < len(files) else ""))  # fmt: skip
        by = "" if settings.encoding is None else f", latents by the VAE of {settings.encoding.run}"
        watch.tell("makes", f"{folder.path}: {', '.join(settings.kinds) or 'rows alone'}{by}, and report.html")
        watch.tell("keeps", settings.keep or "every clip that can be used and is no duplicate")
        _save_settings(folder, place, settings)
        counters |= _measure(files, folder, settings, options, watch)
    elif not folder.rows():
        raise DataError(f"{folder.path}: has no rows to look at: run vdit curate without --look first")
    rows = _Rows(folder)
    outcome = _select(rows, keep, folder, settings)
    if settings.kinds and not look:
        outcome, more = _write(outcome, folder, settings, options, watch)
        counters |= more
    if settings.encoding is not None and not look and outcome.written:
        from data_pipelines.encoded import encode_curated  # with jax, for which nothing else here waits

        made = encode_curated(folder.path, settings.encoding, options=options, watch=watch)
        outcome = dataclasses.replace(outcome, latents=made["latents"], texts=made["captions"])
    outcome = dataclasses.replace(outcome, counters=counters)
    report.write(folder, rows, keep, outcome)
    return outcome


def check(place: str, out: str, settings: Settings, options: PipelineOptions) -> list[str]:
    """What can be known before a run, without one: footage, keep expression, Beam's options, and stages that pickle.

    Returns:
        What was checked, a line each.

    Raises:
        VditError: something is wrong. What only a cloud knows (rights, quota, images of workers) cannot be found here.
    """
    folder = pipeline.Folder(path=str(out).rstrip("/"))
    _check_out(folder, place)
    Keep.parse(settings.keep).check(known_columns(settings))
    files = find_footage(place)
    lines = [f"footage: {len(files)} files", f"keep: {settings.keep or 'everything'}"]
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    if is_dataflow(options):  # its own check would ask Google: the stages are made for the runner here
        wrong = check_dataflow(options, [place, folder.path])
        if wrong:
            raise ConfigError(f"Dataflow cannot run with these options: {one_line('; '.join(wrong))}")
        lines.append("Dataflow: its options are complete, and buckets are given")
        options = embedded_options()
    try:
        stages = beam.Pipeline(options=options)
        pipeline.measure_footage(stages, files, folder, settings.scanning, settings.duplicates,
                                 seconds=settings.seconds_a_file, long=settings.range_seconds)  # fmt: skip
        stages.to_runner_api()
        lines.append(f"first pipeline: {len(stages.to_runner_api().components.transforms)} transforms, for {runner}")
        stages = beam.Pipeline(options=options)
        pipeline.write_clips(stages, [f"{folder.path}/work/kept-00000.jsonl"], folder, settings.clips,
                             kinds=settings.kinds or ("shards",), shards=1, captions=settings.captions,
                             seconds=settings.seconds_a_file)  # fmt: skip
        lines.append(f"second pipeline: {len(stages.to_runner_api().components.transforms)} transforms")
    except (ValueError, ImportError) as error:  # Beam's validation of options, and runners that are not installed
        raise ConfigError(f"Beam refuses these options: {' '.join(str(error).split())}") from error
    if settings.captions is not None:
        lines.append(f"captions: {settings.captions.check()}")
    if settings.encoding is not None:
        chosen = settings.encoding.chosen()
        lines.append(f"latents: clips of {', '.join(map(str, chosen.data.frames))} frames by the VAE of "
                     f"{settings.encoding.run}; its weights were not read")  # fmt: skip
    return [*lines, "not checked: what only the runner's cluster knows, such as rights, quota and the image of workers"]


def known_columns(settings: Settings) -> list[str]:
    """What a keep expression may name: columns of all stages, and of the user's scorers."""
    return [*COLUMNS, *MORE_COLUMNS, *(scorer.name for scorer in settings.scanning.measure.scorers)]


class _Rows:
    """The rows of a folder, to be gone through any number of times."""

    def __init__(self, folder: pipeline.Folder):
        self.folder = folder

    def __iter__(self) -> Iterator[Row]:
        return self.folder.read_rows()


def _check_out(folder: pipeline.Folder, place: str) -> None:
    check_folder(folder.path)
    out = paths.path(folder.path)
    if paths.names_in(out) and not paths.is_file(out / SETTINGS):
        raise OutputError(f"{folder.path}: is not empty, and no folder of vdit curate ({SETTINGS} is missing): give a "
                          "new folder")  # fmt: skip
    here, source = str(folder.path), str(place).rstrip("/")
    if f"{here}/".startswith(f"{source}/") or here == source:
        raise OutputError(f"{folder.path}: is inside of the footage: its clips would be footage the next time; give "
                          "another folder")  # fmt: skip


def _save_settings(folder: pipeline.Folder, place: str, settings: Settings) -> None:
    said = {"format": "vdit-curate-1", "footage": str(place), "settings": dataclasses.asdict(settings)}
    paths.write_atomic(paths.path(folder.path) / SETTINGS, json.dumps(said, indent=1, sort_keys=True, default=str))


def _measure(files: Sequence[FootageFile], folder: pipeline.Folder, settings: Settings, options: PipelineOptions,
             watch: Watch) -> dict[str, dict[str, int]]:
    """Runs the first pipeline, unless its rows are there."""
    scans = sorted(pipeline.scan_key(file, settings.scanning) for file in files)
    said = [scans, sorted((file.path, file.captions) for file in files), dataclasses.asdict(settings.duplicates)]
    key = hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()
    mark = paths.path(folder.path) / "work" / "measured.json"
    known = paths.read_json(mark, limit=paths.MIB, error=DataError) if paths.is_file(mark) else {}
    if known.get("key") == key and known.get("rows") == [file.name for file in folder.rows()]:
        return {}
    mark.unlink(missing_ok=True)
    for file in folder.rows():
        file.unlink(missing_ok=True)
    wanted = {f"{name}.json" for name in scans}
    with counting(watch, "measure", folder.scans, wanted), beam.Pipeline(options=options) as stages:
        pipeline.measure_footage(stages, files, folder, settings.scanning, settings.duplicates,
                                 seconds=settings.seconds_a_file, long=settings.range_seconds)  # fmt: skip
    found = pipeline.counters_of(stages.result)
    # A file that could not be reached is tried again the next time: then its rows are not final.
    if sum(f"{name}.json" in set(paths.names_in(folder.scans)) for name in scans) == len(files):
        paths.write_atomic(mark, json.dumps({"key": key, "rows": [file.name for file in folder.rows()]}))
    return found


def _select(rows: _Rows, keep: Keep, folder: pipeline.Folder, settings: Settings) -> Outcome:
    """Judges all rows, and hands the kept ones to the second pipeline, in files."""
    work = paths.path(folder.path) / "work"
    for name in paths.names_in(work):
        if name.startswith("kept-"):
            (work / name).unlink(missing_ok=True)
    total, seconds, kept, kept_seconds = 0, 0.0, 0, 0.0
    clips: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    lines: list[str] = []
    for verdict in judge(rows, keep):
        length = verdict.row.clip.duration or 0.0
        total, seconds = total + 1, seconds + length
        if not verdict.kept:
            clips[verdict.reason] += 1
            lengths[verdict.reason] += length
            continue
        if settings.kinds:
            lines.append(json.dumps(verdict.row.to_json(), sort_keys=True))
        if len(lines) == KEPT_ROWS:
            _write_kept(work, kept // KEPT_ROWS, lines)
        kept, kept_seconds = kept + 1, kept_seconds + length
    if lines:
        _write_kept(work, kept // KEPT_ROWS, lines)
    order = [rule.text for rule in keep.rules]
    place = lambda why: order.index(why) if why in order else len(order)  # noqa: E731
    first = sorted(clips, key=lambda why: (why != ERROR, why == DUPLICATE, place(why), why))
    return Outcome(rows=total, seconds=seconds, dropped={why: (clips[why], lengths[why]) for why in first}, kept=kept,
                   kept_seconds=kept_seconds)  # fmt: skip


def _write_kept(work: paths.AnyPath, number: int, lines: list[str]) -> None:
    paths.write_atomic(work / f"kept-{number:05d}.jsonl", "".join(f"{line}\n" for line in lines))
    lines.clear()


def _write(outcome: Outcome, folder: pipeline.Folder, settings: Settings, options: PipelineOptions,
           watch: Watch) -> tuple[Outcome, dict[str, dict[str, int]]]:
    """Runs the second pipeline, then writes the index of its shards, last of all."""
    out = paths.path(folder.path)
    work = out / "work"
    kept = [str(work / name) for name in paths.names_in(work) if name.startswith("kept-")]
    found: dict[str, dict[str, int]] = {}
    notes: list[dict[str, Any]] = []
    if kept:
        shards = max(1, -(-outcome.kept // settings.clips_per_shard))
        counted = counting(watch, "write", folder.clips, total=outcome.kept)
        with counted, beam.Pipeline(options=options) as stages:
            pipeline.write_clips(stages, kept, folder, settings.clips, kinds=settings.kinds, shards=shards,
                                 captions=settings.captions, seconds=settings.seconds_a_file)  # fmt: skip
        found = pipeline.counters_of(stages.result)
        notes = paths.read_json(folder.notes, limit=pipeline.MOST_NOTE, error=DataError)
    if "shards" in settings.kinds:
        _write_index(out, [note["shard"] for note in notes if note["shard"]])
    if "files" in settings.kinds:
        _write_captions(out, [line for note in notes for line in note["files"]])
    failed = {name: why for note in notes for name, why in note["failed"].items()}
    return dataclasses.replace(outcome, written=sum(note["written"] for note in notes), failed=failed), found


def _write_index(out: paths.AnyPath, shards: Sequence[dict[str, Any]]) -> None:
    told = ("file", "records", "bytes", "sha256", "uncaptioned", "sources")
    index = {"format": FORMAT, "count": sum(shard["records"] for shard in shards),
             "captioned": sum(shard["captioned"] for shard in shards),
             "seconds": round(sum(shard["seconds"] for shard in shards), 3),
             "shards": [{key: shard[key] for key in told} for shard in shards]}  # fmt: skip
    paths.write_atomic(out / INDEX, json.dumps(index, indent=1, sort_keys=True))
    listed = {shard["file"] for shard in shards}
    for name in paths.names_in(out):  # those of other thresholds
        if name.endswith(".arrayrecord") and name not in listed:
            (out / name).unlink(missing_ok=True)


def _write_captions(out: paths.AnyPath, files: Sequence[dict[str, Any]]) -> None:
    files = sorted(files, key=lambda line: line["file"])
    paths.write_atomic(out / "captions.jsonl", "".join(f"{json.dumps(line)}\n" for line in files))
    listed = {line["file"].removeprefix("videos/") for line in files}
    for name in paths.names_in(out / "videos"):
        if name not in listed:
            (out / "videos" / name).unlink(missing_ok=True)


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the arguments ask for."""
    if options.workers < 1:
        raise ConfigError(f"--workers={options.workers}: give a number of processes from 1 up")
    if options.clip_seconds is not None and options.experiment is not None:
        raise ConfigError("--clip-seconds and --for both say how long clips are: give one of them")
    split = SplitOptions() if options.clip_seconds is None else SplitOptions(longest=options.clip_seconds)
    split = split if options.experiment is None else split_for(options.experiment)
    keep = options.keep
    if keep is None:
        keep = Settings().keep if options.experiment is None else f"duration >= {split.shortest:g}"
    return Settings(
        scanning=ScanOptions(cut=CutOptions(method=options.cuts), split=split),
        duplicates=DuplicateOptions(mirror=options.mirrored),
        clips=ClipOptions(short_side=options.short_side or None, fps=options.fps),
        range_seconds=options.range_seconds,
        captions=_captions_of(options),
        encoding=_encoding_of(options),
        keep=keep,
        write=options.write,
    )


def _captions_of(options: argparse.Namespace) -> CaptionOptions | None:
    given = {"endpoint": options.caption, "lm": options.caption_lm, "run": options.caption_run}
    given = {by: model for by, model in given.items() if model is not None}
    if len(given) > 1:
        raise ConfigError("--caption, --caption-lm and --caption-run: give one of them")
    return next((CaptionOptions(model=model, by=by) for by, model in given.items()), None)


def _encoding_of(options: argparse.Namespace) -> EncodeOptions | None:
    if options.vae is None:
        unused = next((name for name in ("latents", "text") if getattr(options, name)), None)
        if unused is not None:
            raise ConfigError(f"--{unused} has no effect without --vae: add it, or leave --{unused} out")
        return None
    from data_pipelines.encoded import EncodeOptions

    return EncodeOptions(run=options.vae, experiment=options.experiment, samples=options.latents or 0,
                         text=options.text)  # fmt: skip


def split_for(name: str) -> SplitOptions:
    """Clips as long as an experiment's data config draws them: the longest of them, and no shorter than the shortest.

    Args:
        name: of an experiment, its file, or a run's folder.
    """
    from vdit.cli.train import find_experiment

    data = find_experiment(name).data
    lengths = [frames / rate for frames in data.frames if frames > 1 for rate in data.fps]
    longest = max(lengths, default=1.0)
    # A scene a little longer than two clips gives two: half as long again as the longest leaves room to draw.
    return SplitOptions(shortest=min(lengths, default=0.2), longest=round(1.5 * longest, 3))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: options that it does not know are Beam's."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.curate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    command.add_arguments(parser)
    options, more = parser.parse_known_args(arguments)
    try:
        return run(options, [*options.beam, *more])
    except VditError as error:
        print(f"curate: {error}", file=sys.stderr)
        return EX_USAGE


def run(options: argparse.Namespace, more: Sequence[str]) -> int:
    """Curates as the arguments ask, and tells how far it is on stderr. more: Beam's options."""
    quiet()
    settings = settings_of(options)
    begun, watch = time.monotonic(), Printed()
    if options.dry_run:
        for line in check(options.footage, options.out, settings, embedded_options(options.workers, more)):
            watch.tell("checked", line)
        return EX_OK
    outcome = curate(options.footage, options.out, settings, options=embedded_options(options.workers, more),
                     watch=watch, look=options.look)  # fmt: skip
    for label, words in told(outcome, time.monotonic() - begun):
        watch.tell(label, words)
    made = [f"{outcome.written} clips"] if outcome.written else []
    made += [] if outcome.latents is None else [f"{outcome.latents} latents"]
    made += [] if outcome.texts is None else [f"{outcome.texts} encoded captions"]
    watch.tell("wrote", ", ".join([f"{options.out}/report.html", *made]))
    if outcome.written:
        watch.tell("next", f"vdit train --data {shlex.quote(options.out)} --workdir runs/curated")
    return EX_OK


def told(outcome: Outcome, seconds: float) -> list[tuple[str, str]]:
    """What came out: (label, words) of each line."""
    lines = [("clips", f"{outcome.rows} found ({hours(outcome.seconds)}), {outcome.kept} kept "
                       f"({hours(outcome.kept_seconds)}), in {seconds:.0f} s")]  # fmt: skip
    lines += [("dropped", f"{count} ({hours(length)}): {why}") for why, (count, length) in outcome.dropped.items()]
    lines += [("failed", f"{name}: {why}") for name, why in list(outcome.failed.items())[:20]]
    return lines


def hours(seconds: float) -> str:
    """A length of footage in words."""
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
