"""What was measured, as a table, as JSON and as a page; several sets of videos side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vdit.eval.evaluate import Case, Evaluation, Figure
from vdit.eval.page import Page
from vdit.eval.statistics import Interval, mean_interval
from vdit.reprs import short_repr

ARROWS = {"higher": "↑", "lower": "↓", "real": "≈"}
_LEGEND = (
    "↑ higher is better, ↓ lower is better, ≈ nearer to the figure of the real videos is better. Brackets are 95% "
    "intervals: of means by bootstrap over the videos, of distances between sets by halves of them."
)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """One video of several sets beside the truth, for the page.

    videos: name of the set, or "real" -> uint8 [t h w 3]. caption: under them.
    """

    videos: Mapping[str, np.ndarray]
    caption: str


def differences(evaluations: Sequence[Evaluation], *, seed: int = 0) -> dict[str, dict[str, Interval]]:
    """How the sets differ from the first one, on the videos that both have: set -> figure -> interval.

    Videos are matched by name, and the bootstrap resamples their differences. So a difference shows although both
    means have wide intervals. Figures of whole sets are not in it.
    """
    if not evaluations:
        return {}
    first, *others = evaluations
    found: dict[str, dict[str, Interval]] = {}
    for other in others:
        found[other.name] = {}
        for figure in first.figures:
            theirs = other.figure(figure.name)
            both = [] if theirs is None else [name for name in figure.by_video if name in theirs.by_video]
            if both:
                gaps = np.array([theirs.by_video[name] - figure.by_video[name] for name in both])
                found[other.name][figure.name] = mean_interval(gaps, seed=seed)
    return found


def table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: a row for each figure, a column for each set."""
    names = list(dict.fromkeys(figure.name for one in evaluations for figure in one.figures))
    rows = []
    for name in names:
        figures = [one.figure(name) for one in evaluations]
        better = next(figure.better for figure in figures if figure is not None)
        rows.append([f"{name} {ARROWS[better]}", *map(_cell, figures)])
    return ["figure", *(one.name for one in evaluations)], rows


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of text."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (headers, *rows)]
    return "\n".join(lines) + "\n"


def to_json(evaluations: Sequence[Evaluation], about: Mapping[str, Any]) -> dict[str, Any]:
    """All figures as plain values. about: how they were made."""
    gaps = {
        name: {figure: dataclasses.asdict(interval) for figure, interval in found.items()}
        for name, found in differences(evaluations).items()
    }
    return {"about": dict(about), "sets": [one.to_json() for one in evaluations], "differences_from_first": gaps}


def page(
    evaluations: Sequence[Evaluation], shown: Sequence[Shown], *, title: str, about: Mapping[str, Any], fps: float
) -> Page:
    """The page: what was measured, the table, error over time, videos side by side.

    Args:
        evaluations: of the sets; the real videos may be one of them.
        shown: videos to play.
        title: heading.
        about: how it was made; a line each.
        fps: of the videos.
    """
    made = Page(title, " · ".join(one.name for one in evaluations))
    made.text("\n".join(f"- **{name}**: {value}" for name, value in about.items()))
    headers, rows = table(evaluations)
    made.table(headers, rows, title="Figures").text(_LEGEND)
    gaps = differences(evaluations)
    if any(gaps.values()):
        names = [name for name, found in gaps.items() if found]
        every = list(dict.fromkeys(figure for name in names for figure in gaps[name]))
        cells = [[figure, *(_interval(gaps[name].get(figure)) for name in names)] for figure in every]
        what = f"Difference from {evaluations[0].name}, on the same videos"
        made.table(["figure", *names], cells, title=what)
    for name in dict.fromkeys(figure.name for one in evaluations for figure in one.figures):
        figures = {one.name: one.figure(name) for one in evaluations}
        curves = {
            key: (np.arange(len(figure.curve)), figure.curve)
            for key, figure in figures.items() if figure is not None and figure.curve is not None
        }  # fmt: skip
        if any(len(x) > 1 for x, _ in curves.values()):
            made.curves(curves, title=f"{name} over time", x_label="frame that was not given, or step", y_label=name)
    if shown:
        made.compare([(one.videos, one.caption) for one in shown], fps, title="Side by side")
    notes = [f"- **{one.name}, {metric}**: {why}" for one in evaluations for metric, why in one.notes.items()]
    notes += [f"- **{one.name}, {video} left out**: {why}" for one in evaluations for video, why in one.skipped.items()]
    if notes:
        made.text("## What was not measured\n\n" + "\n".join(notes))
    return made


def side_by_side(cases: Mapping[str, Case]) -> Shown:
    """One video of each set, and the truth where it is known, all as long as the longest.

    Args:
        cases: name of the set -> its video; of one caption.
    """
    videos: dict[str, np.ndarray] = {}
    for name, case in cases.items():
        if case.truth is not None and "real" not in videos:
            videos["real"] = case.truth
        videos[name] = case.video
    first = next(iter(cases.values()))
    return Shown(videos=videos, caption=first.caption or first.name)


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else f"{_interval(figure.interval)} n={figure.interval.n}"


def _interval(interval: Interval | None) -> str:
    if interval is None or not np.isfinite(interval.value):
        return ""
    if not np.isfinite(interval.low):
        return f"{interval.value:.4g}"
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
