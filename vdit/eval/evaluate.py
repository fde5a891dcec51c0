"""Measuring videos: what is known of each, what a metric is, and figures with their intervals.

A metric is a registered frozen dataclass. One that looks at each video by itself has `measure`:

    @register("metric", "brightness")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Brightness(Metric):
        better = "real"

        def measure(self, case):
            return {"brightness": case.video.mean((1, 2, 3))}     # one value a frame: a curve, whose mean is the figure

One that compares sets of videos has `compare` (`SetMetric`). `evaluate` runs them on a `VideoSet`.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from vdit.errors import ConfigError, ShapeError, VditError, VditWarning
from vdit.eval.motion import Flow
from vdit.eval.statistics import Interval, mean_interval, set_intervals
from vdit.registry import get, name_of, names
from vdit.reprs import short_repr

# What a metric may need to know: "truth", "scene", "caption", "take" of a video; "real" videos, "features", "texts" of
# features, "group": several videos of one prompt.
Need = Literal["truth", "scene", "caption", "take", "real", "features", "texts", "group"]
# "real": the nearer to the figure of real videos, the better.
Better = Literal["higher", "lower", "real"]


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One video to measure, and what is known of it.

    Attributes:
        name: of the video.
        video: uint8 [t h w 3].
        fps: frames a second.
        caption: what it should show, or None.
        truth: uint8 [t h w 3], what it should be, frame by frame, or None.
        take: uint8 [t h w 3], another real recording of what `truth` shows, or None (Physics-IQ).
        given: frames at its start that the model was given. What is measured begins behind them.
        scene: meta of the rendered world that `truth` shows (vdit.worlds), or None.
        group: videos of one group answer one prompt with different seeds. None: it stands alone.
    """

    name: str
    video: np.ndarray
    fps: float
    caption: str | None = None
    truth: np.ndarray | None = None
    take: np.ndarray | None = None
    given: int = 0
    scene: Mapping[str, Any] | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for label in ("video", "truth", "take"):
            frames = getattr(self, label)
            if frames is None and label != "video":
                continue
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
                found = f"{frames.dtype} {list(frames.shape)}"
                raise ShapeError(f"{self.name}: {label} of {found} must be uint8 [t h w 3]")
            if label != "video" and frames.shape != self.video.shape:
                shapes = f"{label} has shape {frames.shape}, the video {self.video.shape}"
                raise ShapeError(f"{self.name}: {shapes}: cut and resize both to the same")
        if not 0 <= self.given < len(self.video):
            raise ShapeError(f"{self.name}: given={self.given} of {len(self.video)} frames leaves nothing to measure")

    @property
    def made(self) -> np.ndarray:
        """uint8 [t-given h w 3]: the video without the frames that were given."""
        return self.video[self.given :]

    @property
    def made_truth(self) -> np.ndarray:
        """uint8 [t-given h w 3]: the truth of `made`."""
        return self.truth[self.given :]

    @functools.cached_property
    def flow(self) -> Flow:
        """Optical flow of `made`, computed once."""
        return Flow.of(self.made)

    def knows(self, need: Need) -> bool:
        """Whether this of "truth", "take", "scene", "caption", "group" is known of the video."""
        return bool(self.caption) if need == "caption" else getattr(self, need) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSet:
    """Videos by one model, or of one folder; each is read when it is measured.

    Attributes:
        name: as tables call it.
        cases: a function for each video. One that cannot be read raises a VditError, and is reported.
    """

    name: str
    cases: Sequence[Callable[[], Case]]

    def __len__(self) -> int:
        return len(self.cases)

    def read(self) -> Iterator[Case | VditError]:
        """Each case in its order, or why it cannot be read."""
        for case in self.cases:
            try:
                yield case()
            except VditError as error:
                yield error


Values = Mapping[str, float | np.ndarray]


class Metric(Protocol):
    """Measures one video. Implementations are registered frozen dataclasses of kind "metric".

    needs: what must be known. better: which direction is better; a mapping where the figures of one metric differ.
    worlds: names of the rendered worlds that it is for; () for any video.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    better: ClassVar[Better | Mapping[str, Better]] = "higher"
    worlds: ClassVar[tuple[str, ...]] = ()

    def measure(self, case: Case) -> Values:
        """Figures of one video by name.

        Args:
            case: the video, and what is known of it.

        Returns:
            name -> a number, or an array [t] with a value for each frame: a curve, whose mean is the figure. NaN where
            there is nothing to measure.

        Raises:
            ShapeError: the video is too small or too short for this metric; it is left out, and the report says so.
        """
        ...


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """What a feature net says of a set of videos.

    Attributes:
        videos: float32 [n d], one row a video.
        texts: float32 [n d], of the captions in the same space, or None.
        groups: the group of each video, or None where all stand alone.
        truths: float32 [n d], of the true videos, or None.
    """

    videos: np.ndarray
    texts: np.ndarray | None = None
    groups: tuple[str | None, ...] | None = None
    truths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.videos)

    def take(self, index: np.ndarray) -> Features:
        """Those of some videos, by index [m]."""
        part = lambda x: None if x is None else x[index]  # noqa: E731
        groups = None if self.groups is None else tuple(self.groups[i] for i in index)
        return Features(videos=self.videos[index], texts=part(self.texts), groups=groups, truths=part(self.truths))


class SetMetric(Protocol):
    """Compares sets of videos by their features. Implementations are registered frozen dataclasses of kind "metric".

    shares: names of figures that are shares, so that their intervals end at 0 and 1.
    """

    needs: ClassVar[tuple[Need, ...]] = ("features", "real")
    better: ClassVar[Better | Mapping[str, Better]] = "lower"
    shares: ClassVar[tuple[str, ...]] = ()

    def compare(self, made: Features, real: Features | None) -> Mapping[str, float]:
        """Figures of a set by name.

        Args:
            made: the videos to measure.
            real: the real ones; None only where `needs` has no "real".

        Raises:
            ShapeError: there are too few videos.
        """
        ...


class FeatureNet(Protocol):
    """Turns videos into vectors; see vdit.pretrained.features for public ones.

    name: as reports call it. reads_text: whether `embed_texts` gives vectors in the space of the videos' (else it
    raises ConfigError).
    """

    name: str
    reads_text: bool

    def embed(self, video: np.ndarray, fps: float) -> np.ndarray:
        """uint8 [t h w 3] of any size and length -> float32 [d]."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 [n d]."""
        ...


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of one set of videos.

    Attributes:
        metric: the metric's registered name.
        name: of the figure; a metric may have several.
        interval: its value, 95% interval and number of videos.
        better: which direction is better.
        curve: float64 [t], the mean over videos for each frame, or None. The first value is that of the first frame
            (or step) that was not given.
        spread: float64 [t], the standard error of that mean, or None.
        by_video: name of the video -> its value; empty for figures of whole sets.
    """

    metric: str
    name: str
    interval: Interval
    better: Better
    curve: np.ndarray | None = None
    spread: np.ndarray | None = None
    by_video: Mapping[str, float] = dataclasses.field(default_factory=dict)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that was measured of one set of videos.

    Attributes:
        name: of the set.
        figures: in the order of the metrics.
        skipped: video -> why it could not be read.
        notes: metric -> why it gave no figure, or not for all videos.
        features: by the feature net, or None.
    """

    name: str
    figures: tuple[Figure, ...]
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    features: Features | None = None

    def figure(self, name: str) -> Figure | None:
        """The figure of that name, or None."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps; what is not finite is None."""
        return {
            "name": self.name,
            "figures": {figure.name: _figure_json(figure) for figure in self.figures},
            "skipped": dict(self.skipped),
            "notes": dict(self.notes),
        }


def evaluate(
    videos: VideoSet,
    metrics: Sequence[Metric | SetMetric],
    *,
    net: FeatureNet | None = None,
    real: Features | None = None,
    seed: int = 0,
    progress: Callable[[Case], None] = lambda case: None,
) -> Evaluation:
    """Measure a set of videos.

    Every video is read once, and one is in memory at a time.

    Args:
        videos: the set.
        metrics: what to measure; see `metrics_of`. One whose needs nothing here meets is named in the notes.
        net: for metrics of sets. None: they give no figure.
        real: features of real videos by the same net.
        seed: of resampling.
        progress: called after each video.

    Raises:
        ConfigError: not one video can be read.
    """
    alone = [metric for metric in metrics if hasattr(metric, "measure")]
    together = [metric for metric in metrics if hasattr(metric, "compare")]
    found: dict[str, dict[str, dict[str, float | np.ndarray]]] = {_name(metric): {} for metric in alone}
    notes: dict[str, str] = {}
    skipped: dict[str, str] = {}
    rows = _Rows(net) if net is not None and together else None
    read = 0
    for case in videos.read():
        if isinstance(case, VditError):
            skipped[f"video {len(skipped) + read + 1}"] = str(case)
            continue
        read += 1
        for metric in alone:
            _measure(metric, case, found[_name(metric)], notes)
        if rows is not None:
            rows.add(case)
        progress(case)
    if not read:
        why = next(iter(skipped.values()), "the set is empty")
        raise ConfigError(f"{videos.name}: no video can be measured: {why}")
    figures = [figure for metric in alone for figure in _figures(metric, found[_name(metric)], seed)]
    features = None if rows is None else rows.features()
    for metric in together:
        figures += _compare(metric, features, real, notes, seed)
    return Evaluation(
        name=videos.name, figures=tuple(figures), skipped=skipped, notes=notes, features=features
    )  # fmt: skip


def embed(videos: VideoSet, net: FeatureNet, *, progress: Callable[[Case], None] = lambda case: None) -> Features:
    """Features of a set of videos; those that cannot be read are left out with a VditWarning."""
    rows = _Rows(net)
    for case in videos.read():
        if isinstance(case, VditError):
            warnings.warn(f"{videos.name}: left out: {case}", VditWarning, stacklevel=2)
            continue
        rows.add(case)
        progress(case)
    return rows.features()


def metrics_of(wanted: Sequence[str] | None, known: Sequence[Need]) -> list[Metric | SetMetric]:
    """Metrics by name.

    Args:
        wanted: registered names. None: all whose needs are known.
        known: what is known of the videos.

    Raises:
        ConfigError: a name is unknown, or a metric that was named needs what is not known.
    """
    if wanted is None:
        every = [get("metric", name)() for name in names("metric")]
        return [metric for metric in every if set(metric.needs) <= set(known)]
    chosen = [get("metric", name)() for name in dict.fromkeys(wanted)]
    for metric in chosen:
        lacks = [need for need in metric.needs if need not in known]
        if lacks:
            raise ConfigError(f"metric {_name(metric)!r} needs {', '.join(map(_NEEDS.get, lacks))}")
    return chosen


_NEEDS = {
    "truth": "the true video of each (videos of the same names in --real, or a run with --given)",
    "scene": "rendered scenes (a run that was trained on worlds)",
    "caption": "captions (a captions file in the folder of the videos)",
    "take": "a second take of each real video (--physics-iq)",
    "real": "real videos (--real)",
    "features": "a feature net (--features)",
    "texts": "a feature net that reads texts, as CLIP does, and captions",
    "group": "several videos of each prompt (--seeds, or names that end in -0, -1, ...)",
}


class _Rows:
    """Features of videos, gathered one after the other."""

    def __init__(self, net: FeatureNet):
        self.net = net
        self._videos: list[np.ndarray] = []
        self._truths: list[np.ndarray] = []
        self._captions: list[str | None] = []
        self._groups: list[str | None] = []

    def add(self, case: Case) -> None:
        self._videos.append(self.net.embed(case.made, case.fps))
        if case.truth is not None:
            self._truths.append(self.net.embed(case.made_truth, case.fps))
        self._captions.append(case.caption)
        self._groups.append(case.group)

    def features(self) -> Features:
        texts = None
        if self.net.reads_text and self._captions and all(self._captions):
            texts = self.net.embed_texts(self._captions)
        whole = len(self._truths) == len(self._videos)
        return Features(
            videos=np.stack(self._videos),
            texts=texts,
            groups=tuple(self._groups) if any(self._groups) else None,
            truths=np.stack(self._truths) if whole else None,
        )


def _name(metric: Metric | SetMetric) -> str:
    return name_of("metric", metric)


def _better(metric: Metric | SetMetric, name: str) -> Better:
    return metric.better if isinstance(metric.better, str) else metric.better[name]


def _measure(metric: Metric, case: Case, found: dict[str, dict], notes: dict[str, str]) -> None:
    """Adds a metric's figures of one video: figure -> video -> value."""
    if metric.worlds and case.scene is not None and case.scene["world"] not in metric.worlds:
        return
    lacks = next((need for need in metric.needs if not case.knows(need)), None)
    try:
        if lacks is not None:
            raise ShapeError(f"{case.name}: no {lacks} is known")
        values = metric.measure(case)
    except ShapeError as error:
        notes.setdefault(_name(metric), str(error))
        return
    for name, value in values.items():
        found.setdefault(name, {})[case.name] = value


def _figures(metric: Metric, found: Mapping[str, Mapping[str, float | np.ndarray]], seed: int) -> Iterator[Figure]:
    for name, values in found.items():
        means = {video: _mean(value) for video, value in values.items()}
        curves = [np.asarray(value, np.float64) for value in values.values() if np.ndim(value)]
        curve, spread = _curve(curves) if curves else (None, None)
        yield Figure(
            metric=_name(metric), name=name, interval=mean_interval(np.array(list(means.values())), seed=seed),
            better=_better(metric, name), curve=curve, spread=spread, by_video=means,
        )  # fmt: skip


def _mean(value: float | np.ndarray) -> float:
    """The mean of what is not NaN; NaN where all is. inf (equal frames' PSNR) stays."""
    value = np.asarray(value, np.float64)
    value = value[~np.isnan(value)]
    return float(value.mean()) if value.size else float("nan")


def _curve(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and its standard error at each frame, over the videos that are as long."""
    longest = max(map(len, curves))
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves):
        row[: len(curve)] = curve
    table[~np.isfinite(table)] = np.nan
    known = np.isfinite(table).sum(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a frame that no video has is NaN
        return np.nanmean(table, 0), np.nanstd(table, 0) / np.sqrt(np.maximum(known, 1))


def _compare(
    metric: SetMetric, made: Features | None, real: Features | None, notes: dict[str, str], seed: int
) -> list[Figure]:
    """The figures of a metric of sets, each with its interval."""
    lacks = [
        need for need in metric.needs
        if (need == "features" and made is None) or (need == "real" and real is None)
        or (need == "texts" and (made is None or made.texts is None))
        or (need == "truth" and (made is None or made.truths is None))
        or (need == "group" and (made is None or made.groups is None))
    ]  # fmt: skip
    if lacks:
        notes[_name(metric)] = f"needs {', '.join(map(_NEEDS.get, lacks))}"
        return []

    def measure(of_made: np.ndarray, of_real: np.ndarray) -> Mapping[str, float]:
        return metric.compare(made.take(of_made), None if real is None else real.take(of_real))

    try:
        found = set_intervals(measure, (len(made), len(made) if real is None else len(real)), seed=seed)
    except ShapeError as error:
        notes[_name(metric)] = str(error)
        return []
    for name in found.keys() & set(metric.shares):
        low, high = (float(np.clip(end, 0, 1)) for end in (found[name].low, found[name].high))
        found[name] = dataclasses.replace(found[name], low=low, high=high)
    return [
        Figure(metric=_name(metric), name=name, interval=interval, better=_better(metric, name))
        for name, interval in found.items()
    ]


def _figure_json(figure: Figure) -> dict[str, Any]:
    interval = {name: _plain(value) for name, value in dataclasses.asdict(figure.interval).items()}
    more: dict[str, Any] = {"metric": figure.metric, "better": figure.better}
    if figure.curve is not None:
        more |= {"curve": [_plain(x) for x in figure.curve], "spread": [_plain(x) for x in figure.spread]}
    if figure.by_video:
        more["by_video"] = {video: _plain(value) for video, value in figure.by_video.items()}
    return interval | more


def _plain(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(value) if np.isfinite(value) else None
