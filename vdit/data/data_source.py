"""Where the samples of an experiment come from: registered choices of kind "data_source".

A source of one's own is a frozen dataclass with `open`; videos of any origin become samples by `clips_of`:

    @register("data_source", "my_videos")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyVideos(DataSource):
        path: str

        def open(self, data, *, seed, holdout=()):
            return clips_of(MyDataset(self.path, exclude=holdout), data, seed=seed)
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

from vdit.errors import ConfigError
from vdit.registry import name_of, register
from vdit.reprs import short_repr

if TYPE_CHECKING:  # DataConfig holds a source
    from vdit.data.clips import VideoDataset
    from vdit.data.config import DataConfig
    from vdit.data.sources import Source


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
    """

    path: str = ""
    captions: str | None = None

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        from vdit.data.folder import FolderDataset

        _check_path(self)
        dataset = FolderDataset(self.path, self.captions, exclude=holdout, threads=data.threads)
        return clips_of(dataset, data, seed=seed)

    def open_held_out(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source | None:
        from vdit.data.folder import FolderDataset

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
        from vdit.data.worlds import WorldDataset

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
    """Clips that `vdit curate` wrote. path: their folder, local or in a bucket."""

    path: str = ""

    def open(self, data: DataConfig, *, seed: int, holdout: Collection[str] = ()) -> Source:
        from vdit.data.curated import CuratedDataset

        _check_path(self)
        _refuse_holdout(self, holdout)
        return clips_of(CuratedDataset(self.path), data, seed=seed)


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
        from vdit.data.tfds_library import TfdsDataset

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
