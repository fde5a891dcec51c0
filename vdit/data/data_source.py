"""Where the samples of an experiment come from: registered choices of kind "data_source".

A source of one's own is a frozen dataclass with `open`; videos of any origin become samples by `clips_of`:

    @register("data_source", "my_videos")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyVideos(DataSource):
        path: str

        def open(self, data, *, seed, holdout=()):
            return clips_of(MyDataset(self.path, exclude=holdout), data, seed=seed)

An open source (`Source`) is random access to samples; broken items are skipped, counted and reported.
"""

from __future__ import annotations

import abc
import ast
import dataclasses
import math
import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vdit.errors import ConfigError, DataError, VideoError, one_line
from vdit.registry import name_of, register
from vdit.reprs import short_repr

if TYPE_CHECKING:  # DataConfig holds a source; a config alone does not wait for numpy
    import numpy as np

    from vdit.data.clips import VideoDataset
    from vdit.data.config import DataConfig

# A plain dict: "video" uint8 [t h w 3] or "latent" float [t h w c]; "captions" list of str, the first the
# short one; "fps" float; "id" str; "label" int (0 where there is none); where it is known what is done in each
# video frame, "actions" float32 [t a].
Sample = dict[str, Any]

# Items tried before a source is said to be broken as a whole.
MAX_TRIES = 256


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What was found where the data is, and what of it is used.

    place: the folder. found: videos, by the names of files or by the captions file. used: those that samples are
    taken of. uncaptioned: those of them that have no caption. held_out: left out as asked. skipped: name -> why it
    is not used. notes: what else there is to know.
    """

    place: str
    found: int
    used: int
    uncaptioned: tuple[str, ...] = ()
    held_out: int = 0
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self, most: int = 20) -> list[str]:
        """For a user to read: all in one line, then at most so many of each list."""
        captioned = self.used - len(self.uncaptioned)
        head = (f"data: {self.found} videos in {one_line(self.place)}, {self.used} used: {captioned} with captions, "
                f"{len(self.uncaptioned)} without")
        head += f"; {self.held_out} held out" if self.held_out else ""
        head += f"; {len(self.skipped)} not used" if self.skipped else ""
        skipped = [f"not used: {one_line(name)}: {one_line(reason)}" for name, reason in self.skipped.items()]
        bare = [f"no caption: {one_line(name)}" for name in self.uncaptioned] if captioned else []
        lines = [head, *(f"  {one_line(note)}" for note in self.notes)]
        for group in (skipped, bare):
            lines += [f"  {line}" for line in group[:most]]
            lines += [f"  ... and {len(group) - most} more"] if len(group) > most else []
        return lines


class Source(abc.ABC):
    """Random-access samples. `source[i + e * len(source)]` is item i as drawn in pass e.

    An item that cannot be read is skipped: its place is taken by the next one that can, always the same
    one, so the order stays deterministic. `report()` says which items were skipped, and why.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._broken: dict[str, str] = {}

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, item: int, epoch: int) -> Sample:
        """The sample of item 0 <= item < len(self); raises DataError or VideoError when it is broken."""

    def name(self, item: int) -> str:
        """The item's name in reports."""
        return str(item)

    def __getitem__(self, index: int) -> Sample:
        epoch, item = divmod(index, len(self))
        for step in range(min(len(self), MAX_TRIES)):
            candidate = (item + step) % len(self)
            try:
                return self.read(candidate, epoch)
            except (DataError, VideoError) as error:
                self.skip(self.name(candidate), str(error))
        raise DataError(f"none of {min(len(self), MAX_TRIES)} items in a row can be read, from "
                        f"{self.name(item)!r} on; for one, {self._example()}")

    def skip(self, name: str, reason: str) -> None:
        """Counts a broken item."""
        with self._lock:
            self._broken[name] = reason

    def report(self) -> dict[str, str]:
        """What was skipped so far: the item's name and the reason."""
        with self._lock:
            return dict(sorted(self._broken.items()))

    @property
    def summary(self) -> DataSummary | None:
        """What was found and what of it is used; None where every item is used as it is."""
        return None

    def _example(self) -> str:
        name, reason = next(iter(self.report().items()))
        return f"{name!r}: {reason}"


def draws(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random numbers of one sample, for one purpose: they depend on nothing else."""
    import numpy as np

    return np.random.default_rng((seed, index, purpose))


def check_actions(sample: Mapping[str, Any], width: int) -> None:
    """Raises DataError where a sample does not have `width` actions a frame (data.actions; 0: whatever it has)."""
    if not width:
        return
    actions, name = sample.get("actions"), str(sample.get("id", ""))
    if actions is None:
        raise DataError(f"clip {name!r} has no actions, data.actions={width} asks for {width} numbers a frame: use "
                        "data that has them, encode its latents again, or set data.actions=0")
    if actions.shape[-1] != width:
        raise DataError(f"clip {name!r} has {actions.shape[-1]} numbers a frame as its action, data.actions={width}: "
                        f"set data.actions={actions.shape[-1]}")


def check_action_values(sample: Mapping[str, Any], name: str) -> None:
    """Raises DataError where a sample has actions that are not [t a], or not finite."""
    import numpy as np

    actions = sample.get("actions")
    if actions is not None and (np.ndim(actions) != 2 or not np.isfinite(actions).all()):
        raise DataError(f"latent {name!r} has actions of shape {np.shape(actions)}: give [t a], all finite")


class DataSource(Protocol):
    """Where samples come from. Implementations are registered frozen dataclasses; subclass it for the defaults."""

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        """Samples of the source, with random access.

        Args:
            data: the sizes, durations and rates that clips are cut to.
            seed: of every random choice; the same seed gives the same samples.
            holdout: ids of videos to leave out.

        Returns:
            A `vdit.data.Source`: of latents (`LatentStore`), or of clips of videos (`clips_of`).

        Raises:
            ConfigError: the source is incompletely configured, or cannot leave out what `holdout` names.
            DataError: nothing can be read there.
        """
        ...

    def open_held_out(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source | None:
        """The videos that training does not see, for evaluators; None if the source has none."""
        return None

    @property
    def has_frame_rate(self) -> bool:
        """Whether samples are cut at the rates of `data.fps`."""
        return True


def open_source(data: DataConfig, *, seed: int = 0, exclude: Collection[str] = ()) -> Source:
    """Opens the samples of `data.source`.

    Args:
        data: the source, and how clips are cut from it.
        seed: of the choice of clips.
        exclude: ids of videos (files of a folder) that are left out.

    Returns:
        The source.
    """
    return data.source.open(data, seed=seed, holdout=exclude)


def clips_of(dataset: VideoDataset, data: DataConfig, *, seed: int) -> Source:
    """Cuts clips from a dataset of videos.

    Args:
        dataset: videos by number.
        data: the sizes, durations and rates of clips.
        seed: of the choice of clips.

    Returns:
        A source of clips.
    """
    from vdit.data.clips import Clips

    return Clips(dataset, data, seed=seed)


@register("data_source", "folder")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(DataSource):
    """A folder of video files.

    path: the folder. captions: its captions file (.jsonl, .csv, or prompt.txt with videos.txt beside it); None looks
        for the usual ones, then for a .txt beside each video (vdit.data.captions).
    cache_gib: GiB of decoded frames that are kept in memory at most. Of a small folder each file is then decoded once
        for each size it is trained at, and not again for each clip. The clips are the same.
    """

    path: str = ""
    captions: str | None = None
    cache_gib: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.cache_gib < math.inf:
            raise ConfigError(f"data.source.cache_gib={self.cache_gib}: must be 0 (none) or above")

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        from vdit.data.datasets import FolderDataset

        _check_path(self)
        dataset = FolderDataset(self.path, self.captions, exclude=holdout, threads=data.threads,
                                cache_bytes=int(self.cache_gib * 2**30))  # fmt: skip
        return clips_of(dataset, data, seed=seed)

    def open_held_out(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source | None:
        from vdit.data.datasets import FolderDataset

        if not holdout:
            return None
        dataset = FolderDataset(self.path, self.captions, only=holdout, threads=data.threads)
        return clips_of(dataset, data, seed=seed)


@register("data_source", "worlds")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldsSource(DataSource):
    """Rendered worlds (vdit.worlds).

    world: a name, or several: "moving+occluder" mixes worlds evenly. count: scenes.
    options: "key=value" each. An option is for each of the worlds that has it, "occluder.hiding=..." for one.
    """

    world: str = "moving"
    count: int = 4096
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"data.source.count={self.count}: must be at least 1")
        self.arguments()

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        return self._open(data, seed, holdout)

    def open_held_out(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source | None:
        from vdit.seeds import child_seed

        return self._open(data, child_seed(seed, 1), ())  # other scenes of the same world

    def _open(self, data: DataConfig, seed: int, holdout: Collection[str]) -> Source:
        from vdit import worlds
        from vdit.data.datasets import WorldDataset

        _refuse_holdout(self, holdout)
        world = worlds.make(self.world, seed=seed, count=self.count, **self.arguments())
        return clips_of(WorldDataset(world, aspects=data.aspects), data, seed=seed)

    def arguments(self) -> dict[str, Any]:
        """`options` as keyword arguments: "gravity=9.8" gives {"gravity": 9.8}."""
        arguments = {}
        for option in self.options:
            key, equals, value = option.partition("=")
            if not equals or not all(part.isidentifier() for part in key.split(".")):
                raise ConfigError(f"data.source.options has {option!r}: write key=value")
            try:
                arguments[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                arguments[key] = value
        return arguments


@register("data_source", "curated")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class CuratedSource(DataSource):
    """Clips that `vdit curate` wrote. path: their folder, local or in a bucket.

    Held out are all clips of a file of footage, by its name as the rows have it, or single clips by their ids.
    """

    path: str = ""

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        from vdit.data.curated import CuratedDataset

        _check_path(self)
        return clips_of(CuratedDataset(self.path, exclude=holdout), data, seed=seed)

    def open_held_out(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source | None:
        from vdit.data.curated import CuratedDataset

        return clips_of(CuratedDataset(self.path, only=holdout), data, seed=seed) if holdout else None


@register("data_source", "episodes")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodesSource(DataSource):
    """Episodes of an emulator that `vdit record` wrote, with what was done in each frame. path: their folder.

    Held out are episodes, by their ids. data.fps must be the rate of the recording.
    """

    path: str = ""
    # Names its keys (vdit.generate.simulator): the buttons of a game.
    world: ClassVar[str] = "buttons"

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        from vdit.data.episodes import EpisodesDataset

        _check_path(self)
        return clips_of(EpisodesDataset(self.path, exclude=holdout), data, seed=seed)

    def open_held_out(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source | None:
        from vdit.data.episodes import EpisodesDataset

        return clips_of(EpisodesDataset(self.path, only=holdout), data, seed=seed) if holdout else None


@register("data_source", "latents")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsSource(DataSource):
    """Latents on disk, as `vdit train` and `python -m data_pipelines.encode` write them. path: their folder."""

    path: str = ""

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        from vdit.data.latents import LatentStore

        _check_path(self)
        _refuse_holdout(self, holdout)
        return LatentStore(self.path)

    @property
    def has_frame_rate(self) -> bool:
        return False


@register("data_source", "tfds")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(DataSource):
    """A video data set of TensorFlow Datasets, stored as array_record. Needs no TensorFlow.

    path: the data set's directory or name. split: which part of it.
    video_feature, caption_feature, label_feature, fps_feature: names of features; "" where the data set has none.
    default_fps: the frame rate where there is no fps_feature.
    """

    path: str = ""
    split: str = "train"
    video_feature: str = "video"
    caption_feature: str = "caption"
    label_feature: str = "label"
    fps_feature: str = ""
    default_fps: float = 8.0

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        from vdit.data.datasets import TfdsDataset

        _check_path(self)
        _refuse_holdout(self, holdout)
        dataset = TfdsDataset(self.path, split=self.split, video=self.video_feature, caption=self.caption_feature,
                              label=self.label_feature, fps=self.fps_feature, default_fps=self.default_fps)  # fmt: skip
        return clips_of(dataset, data, seed=seed)


def _check_path(source: Any) -> None:
    if not source.path:
        raise ConfigError(f"data.source={name_of('data_source', source)!r} needs data.source.path")


def _refuse_holdout(source: Any, holdout: Collection[str]) -> None:
    if holdout:
        name = name_of("data_source", source)
        raise ConfigError(f"holdout={tuple(holdout)}: data.source={name!r} cannot leave out videos; set holdout=()")
