"""The page of a curated folder: the funnel, every measure with its thresholds, and what was kept, dropped and merged.

    write(folder, rows, keep, outcome)       # OUT/report.html

Pictures of clips are kept in the work folder, so a page with another threshold takes seconds.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from data_pipelines.keep import Keep
from data_pipelines.measures import COLUMNS
from data_pipelines.select import DUPLICATE, ERROR, Row, Verdict, judge
from vdit import paths
from vdit.errors import DataError, VditError
from vdit.eval.page import Page
from vdit.video.read import read_video

if TYPE_CHECKING:
    from data_pipelines.curate import Outcome
    from data_pipelines.pipeline import Folder

SHEET = 24  # pictures of a contact sheet
CLUSTERS, CUTS = 12, 16
VALUES = 20_000  # of a measure, sampled evenly, that a histogram is drawn of
BINS = 40
SIDE = 168  # pixels of the longer side of a picture; above 160 pixels are not shown as squares


class Sample:
    """An even sample of a stream of unknown length, the same in every run."""

    def __init__(self, most: int, seed: int = 0):
        self.items: list[Any] = []
        self._most, self._count, self._random = most, 0, random.Random(seed)

    def add(self, item: Any) -> None:
        self._count += 1
        if len(self.items) < self._most:
            self.items.append(item)
        elif (place := self._random.randrange(self._count)) < self._most:
            self.items[place] = item


def write(folder: Folder, rows: Iterable[Row], keep: Keep, outcome: Outcome) -> None:
    """Writes the page.

    Args:
        folder: the curated folder.
        rows: all rows; they are gone through twice.
        keep: the keep expression.
        outcome: of the run.
    """
    kept, cuts = Sample(SHEET), Sample(CUTS)
    dropped: dict[str, Sample] = {}
    values: dict[str, Sample] = {}
    clusters: dict[str, list[Verdict]] = {}
    errors: Sample = Sample(200)
    before: Row | None = None
    for verdict in judge(rows, keep):
        row = verdict.row
        if verdict.reason == ERROR:
            errors.add((row.name, row.clip.error))
            continue
        (kept if verdict.kept else dropped.setdefault(verdict.reason, Sample(SHEET))).add(row)
        for name, value in row.columns.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, Sample(VALUES)).add(float(value))
        if row.cluster is not None and (row.cluster in clusters or len(clusters) < CLUSTERS):
            clusters.setdefault(row.cluster, []).append(verdict)
        if before is not None and before.clip.path == row.clip.path and row.clip.measures.get("cut_before"):
            cuts.add((before, row))
        before = row
    page = Page("Curated footage", f"keep: {keep.text or 'everything'}")
    _funnel(page, outcome, keep)
    with _Pictures(folder) as pictures:
        _histograms(page, values, keep, deciding=True)
        page.videos(pictures.cards(kept.items, keep), 1.0, title=f"Kept: {len(kept.items)} of {outcome.kept}")
        for why, sample in dropped.items():
            count = outcome.dropped.get(why, (len(sample.items), 0.0))[0]
            page.videos(pictures.cards(sample.items, keep), 1.0,
                        title=f"Dropped by {why}: {len(sample.items)} of {count}")  # fmt: skip
        for name, members in sorted(clusters.items()):
            best = sorted(members, key=lambda verdict: (verdict.reason == DUPLICATE, verdict.row.rank))[:SHEET]
            page.videos((card for verdict in best for card in pictures.cards(
                [verdict.row], keep, "kept: " if verdict.kept else f"dropped by {verdict.reason}: ")), 1.0,
                title=f"Near-duplicates, cluster {name[:8]}: {len(members)} clips")  # fmt: skip
        if cuts.items:
            page.compare(pictures.cuts(cuts.items), 1.0, title="Cuts: the last frame before, the first after")
    _histograms(page, values, keep, deciding=False)
    if errors.items:
        page.table(["file", "reason"], sorted(errors.items), title="Files that cannot be used")
    if outcome.failed:
        page.table(["clip", "reason"], sorted(outcome.failed.items())[:200], title="Clips that could not be written")
    if outcome.counters:
        page.table(["stage", "counter", "value"], [(stage, name, value) for stage, counters in
                                                  sorted(outcome.counters.items()) for name, value in
                                                  sorted(counters.items())],
                   title="Counters of the last run")  # fmt: skip
    page.commands([f"vdit curate FOOTAGE {folder.path} --look --keep \"{keep.text or 'duration >= 2'}\"",
                   f"vdit train --data {folder.path} --workdir runs/curated"],
                  title="Change a threshold and look again; then train")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vdit-report-") as place:
        page.save(Path(place) / "report.html")
        paths.write_atomic(f"{folder.path}/report.html", (Path(place) / "report.html").read_bytes())


def _funnel(page: Page, outcome: Outcome, keep: Keep) -> None:
    hours = lambda seconds: round(seconds / 3600, 4)  # noqa: E731
    page.figures({"clips found": outcome.rows, "hours found": hours(outcome.seconds), "clips kept": outcome.kept,
                  "hours kept": hours(outcome.kept_seconds)}
                 | ({"clips written": outcome.written} if outcome.written else {}))  # fmt: skip
    left, seconds = outcome.rows, outcome.seconds
    table = [("all clips", left, hours(seconds), None, None)]
    for why, (count, length) in outcome.dropped.items():
        left, seconds = left - count, seconds - length
        table.append((why, left, hours(seconds), count, hours(length)))
    page.table(["after", "clips left", "hours left", "clips dropped", "hours dropped"], table, title="Funnel")
    if not keep.rules:
        page.text("There is no keep expression: every clip that can be used and is no duplicate is kept.")


def _histograms(page: Page, values: dict[str, Sample], keep: Keep, *, deciding: bool) -> None:
    """Of the columns that the keep expression names, with its thresholds; or of the others."""
    bounds: dict[str, list[float]] = {}
    for rule in keep.rules:
        for name, numbers in rule.bounds.items():
            bounds.setdefault(name, []).extend(numbers)
    for name in sorted(name for name in values if (name in keep.columns) == deciding):
        column = np.asarray(values[name].items)
        column = column[np.isfinite(column)]
        if not len(column):
            continue
        low, high = float(column.min()), float(column.max())
        low, high = min([low, *bounds.get(name, ())]), max([high, *bounds.get(name, ())])
        if low == high:
            low, high = low - 0.5, high + 0.5
        counts, edges = np.histogram(column, BINS, (low, high))
        lines = {f"threshold {number:g}": number for number in dict.fromkeys(bounds.get(name, ()))}
        page.histogram(counts, edges, name, lines=lines, x_label=_unit(name), y_label="clips")


def _unit(name: str) -> str:
    """What a column is, in a few words."""
    return COLUMNS.get(name, name).partition(";")[0].partition(" (")[0]


class _Pictures:
    """Small pictures of clips, kept in the work folder."""

    def __init__(self, folder: Folder):
        self._place = paths.path(folder.path) / "work" / "pictures"

    def __enter__(self) -> _Pictures:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="vdit-pictures")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def cards(self, rows: Sequence[Row], keep: Keep, fate: str = "") -> Iterator[tuple[np.ndarray, str]]:
        """A picture of the middle of each clip, with what it is called. fate: words before that."""
        rows = sorted(rows, key=lambda row: (row.clip.path, row.clip.start))
        for row, picture in zip(rows, self._pool.map(lambda row: self._picture(row, 0.5), rows)):
            yield picture, fate + _words(row, keep)

    def cuts(self, pairs: Sequence[tuple[Row, Row]]) -> Iterator[tuple[dict[str, np.ndarray], str]]:
        """The frames on both sides of cuts."""
        pairs = sorted(pairs, key=lambda pair: (pair[1].clip.path, pair[1].clip.start))
        sides = self._pool.map(lambda pair: (self._picture(pair[0], 1.0), self._picture(pair[1], 0.0)), pairs)
        for (_, after), (left, right) in zip(pairs, sides):
            kind = after.clip.measures["cut_before"]
            yield {"before": left, "after": right}, f"{after.name}, {float(after.clip.start):.2f} s: {kind}"

    def _picture(self, row: Row, place: float) -> np.ndarray:
        """uint8 [1 h w 3] of the frame at a share of the clip's time; grey where it cannot be read."""
        clip = row.clip
        file = self._place / f"{clip.id}-{round(place * 100):03d}.jpg"
        with contextlib.suppress(DataError, OSError, ValueError):
            if paths.is_file(file):
                data = paths.read_bytes(file, limit=paths.MIB, error=DataError)
                return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None]
        last = 1 / float(clip.measures.get("fps") or 25.0)
        time = float(clip.start) + min(place * clip.duration, max(0.0, clip.duration - 1.5 * last))
        height, width = clip.size
        scale = SIDE / max(height, width)
        size = max(2, round(height * scale)), max(2, round(width * scale))
        try:
            file_here = paths.local_copy(clip.path)
            frames = read_video(file_here, start=time, max_frames=1, size=size, on_error="keep").frames
        except VditError:
            return np.full((1, *size, 3), 128, np.uint8)
        out = io.BytesIO()
        Image.fromarray(frames[0]).save(out, format="jpeg", quality=88)
        with contextlib.suppress(VditError):  # a page can be made without keeping its pictures
            paths.write_atomic(file, out.getvalue())
        return frames


def _words(row: Row, keep: Keep) -> str:
    """A clip in one line: where it is from, and the columns that decide."""
    columns = row.columns
    told = []
    for name in keep.columns:
        value = columns.get(name)
        number = isinstance(value, float) and math.isfinite(value)
        told.append(f"{name} {value:.3g}" if number else f"{name} {value}")
    return f"{row.name} {float(row.clip.start):.1f}-{float(row.clip.end):.1f} s; {', '.join(told)}"
