"""Datasets of videos for `vdit.data.clips.Clips`: a folder of files, the scenes of a world, a TFDS data set."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vdit import paths
from vdit.data.captions import Entry, plain_name, read_captions
from vdit.data.clips import DecodedClip, resize_video
from vdit.data.data_source import DataSummary
from vdit.errors import DataError, VideoError, install_command
from vdit.reprs import short_repr
from vdit.video import read as video_io
from vdit.video.cache import FrameCache

if TYPE_CHECKING:
    from vdit.worlds import World

# Worlds are drawn at the size asked for; this only stands for an aspect ratio.
NOMINAL = 720


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileHandle:
    """One video file."""

    path: paths.AnyPath
    id: str
    captions: tuple[str, ...]
    synthetic: int
    label: int
    height: int
    width: int
    fps: float
    seconds: float
    elastic: bool = False
    cache: FrameCache | None = dataclasses.field(default=None, repr=False, compare=False)

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> DecodedClip:
        file = paths.local_copy(self.path, error=VideoError)
        read = video_io.read_video if self.cache is None else self.cache.read_video
        clip = read(file, start=start, fps=fps, max_frames=frames, size=size)
        return DecodedClip(video=clip.frames, captions=self.captions, synthetic=self.synthetic)


class FolderDataset:
    """The video files of a folder that can be opened; the others are in `broken`, with the reason.

    path: the folder. captions: see DataConfig.captions. exclude: ids (files, as the captions file names
    them, else relative to the folder) that are left out, for instance to test on. cache_bytes: bound of the decoded
    frames that are kept in memory; 0 decodes each clip when it is read.
    """

    def __init__(self, path: str | Path, captions: str | Path | None = None, *,
                 exclude: Collection[str] = (), only: Collection[str] | None = None, threads: int = 4,
                 cache_bytes: int = 0):
        self.path = paths.path(path)
        self._cache = FrameCache(cache_bytes) if cache_bytes else None
        listing = read_captions(self.path, captions)
        excluded = {plain_name(name, self.path) for name in exclude}
        wanted = None if only is None else {plain_name(name, self.path) for name in only}
        unknown = sorted((excluded | (wanted or set())) - {entry.file for entry in listing.entries})
        if unknown:
            raise DataError(f"{unknown[0]!r} is held out, but {self.path} has no such entry: check the "
                            "spelling, or nothing is held out")
        entries = [entry for entry in listing.entries
                   if entry.file not in excluded and (wanted is None or entry.file in wanted)]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            opened = list(pool.map(self._probe, entries))
        self.broken = {entry.file: reason for entry, reason in zip(entries, opened) if isinstance(reason, str)}
        self._videos = [footage for footage in opened if not isinstance(footage, str)]
        if not self._videos:
            example = next((f"; for one, {name}: {why}" for name, why in self.broken.items()), "")
            raise DataError(f"{self.path} has no video that can be read (tried {len(entries)}){example}")
        unnamed = {name: "the captions file does not name it" for name in listing.unnamed if name not in excluded}
        self.summary = DataSummary(
            place=str(self.path),
            found=len({*listing.found, *(entry.file for entry in listing.entries)}),
            used=len(self._videos),
            uncaptioned=tuple(video.id for video in self._videos if not any(video.captions)),
            held_out=len(listing.entries) - len(entries),
            skipped=self.broken | unnamed,
            notes=tuple(listing.notes),
        )

    def _probe(self, entry: Entry) -> FileHandle | str:
        """The video, or why it cannot be read."""
        path = self.path / entry.file
        try:
            if not isinstance(path, Path):
                path = paths.local_copy(path, error=VideoError)
            if not os.path.isfile(path):
                return "is no regular file" if os.path.lexists(path) else "is missing, though a captions file names it"
            info = video_io.probe(path)
            fps, seconds = _timing(path, info)
        except VideoError as error:
            return str(error).removeprefix(f"{path}: ")
        return FileHandle(path=self.path / entry.file, id=entry.file, captions=entry.captions,
                          synthetic=entry.synthetic, label=entry.label,
                           height=info.height, width=info.width, fps=fps, seconds=seconds, cache=self._cache)

    def __len__(self) -> int:
        return len(self._videos)

    def name(self, item: int) -> str:
        return self._videos[item].id

    def open(self, item: int, rng: np.random.Generator) -> FileHandle:
        return self._videos[item]


def _timing(path: Path, info: video_io.VideoInfo) -> tuple[float, float]:
    """(fps, seconds); decodes the file, small, where its container does not say."""
    if info.fps and info.duration:
        return info.fps, info.duration
    if info.fps and info.frames:
        return info.fps, info.frames / info.fps
    times = [time for time, _ in video_io.iter_frames(path, size=16)]
    if len(times) < 2:
        return info.fps or 1.0, 1 / (info.fps or 1.0)
    fps = (len(times) - 1) / times[-1]
    return fps, len(times) / fps


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldHandle:
    """One scene, rendered when it is read."""

    world: World
    item: int
    id: str
    height: int
    width: int
    fps: float
    label: int = 0
    seconds: float = math.inf
    elastic: bool = True

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> DecodedClip:
        scene = self.world.render(self.item, size=size, frames=frames, fps=fps)
        return DecodedClip(video=scene.video, captions=(scene.caption, scene.detailed), actions=scene.actions)


class WorldDataset:
    """The scenes of a world; each takes one of `aspects` (width / height)."""

    def __init__(self, world: World, *, aspects: tuple[float, ...] = (1.0,)):
        self.world = world
        self.aspects = aspects
        self.broken: dict[str, str] = {}
        self.summary = None

    def __len__(self) -> int:
        return len(self.world)

    def name(self, item: int) -> str:
        return f"{self.world.name}[{item}]"

    def open(self, item: int, rng: np.random.Generator) -> WorldHandle:
        aspect = float(rng.choice(self.aspects))
        return WorldHandle(world=self.world, item=item, id=self.name(item), fps=self.world.fps,
                            height=round(NOMINAL / math.sqrt(aspect)),
                            width=round(NOMINAL * math.sqrt(aspect)))


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayHandle:
    """A video that is in memory. video: uint8 [t h w 3]."""

    video: np.ndarray
    captions: tuple[str, ...]
    id: str
    fps: float
    label: int = 0
    elastic: bool = False

    @property
    def height(self) -> int:
        return self.video.shape[1]

    @property
    def width(self) -> int:
        return self.video.shape[2]

    @property
    def seconds(self) -> float:
        return len(self.video) / self.fps

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> DecodedClip:
        """Frame k is the one on screen at start + k / fps."""
        index = np.floor((start + np.arange(frames) / fps) * self.fps + 1e-3).astype(int)
        return DecodedClip(video=resize_video(self.video[index[index < len(self.video)]], size),
                    captions=self.captions)


class TfdsDataset:
    """Videos of a prepared TFDS data set: a directory of one version, or a name as tfds.load takes it."""

    def __init__(self, path: str, *, split: str = "train", video: str = "video", caption: str = "caption",
                 label: str = "label", fps: str = "", default_fps: float = 8.0):
        self.path, self.split = path, split
        self._video, self._caption, self._label, self._fps = video, caption, label, fps
        self._default_fps = default_fps
        self.broken: dict[str, str] = {}
        self.summary = None
        self._source = _open_tfds(path, split)
        if not len(self._source):
            raise DataError(f"TFDS data set {path!r} has no examples in split {split!r}")
        example = self._example(0)
        for feature in filter(None, (video, caption, label, fps)):
            if feature not in example:
                raise DataError(f"TFDS data set {path!r} has no feature {feature!r}, it has "
                                f"{', '.join(sorted(example))}: set video_feature, caption_feature, label_feature "
                                "and fps_feature of data.source (an empty name means none)")

    def __len__(self) -> int:
        return len(self._source)

    def name(self, item: int) -> str:
        return f"{self.split}[{item}]"

    def open(self, item: int, rng: np.random.Generator) -> ArrayHandle:
        example = self._example(item)
        video = np.asarray(example[self._video])
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or not len(video):
            raise DataError(f"TFDS data set {self.path!r}, {self.name(item)}: {self._video!r} is "
                            f"{video.dtype} {video.shape}, expected uint8 [t h w 3]")
        return ArrayHandle(
            video=video, id=self.name(item),
            captions=_texts(example[self._caption]) if self._caption else ("",),
            fps=float(example[self._fps]) if self._fps else self._default_fps,
            label=int(example[self._label]) if self._label else 0)

    def _example(self, item: int) -> dict[str, Any]:
        try:
            return self._source[item]
        except Exception as error:  # whatever the data set's own decoding raises
            if "tensorflow" in str(error).lower():
                raise DataError(f"TFDS data set {self.path!r} needs TensorFlow to decode its features "
                                f"({str(error).splitlines()[0]}): store frames as Tensor features, or "
                                "install tensorflow") from error
            raise DataError(f"TFDS data set {self.path!r}, {self.name(item)} cannot be read "
                            f"({type(error).__name__}: {str(error)[:120]})") from error


def _open_tfds(path: str, split: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise DataError(f"data.source='tfds' needs tensorflow-datasets: {install_command('data')}") from None
    try:
        if Path(path).is_dir():
            builder = tfds.builder_from_directory(path)
        else:
            builder = tfds.builder(path)
        return builder.as_data_source(split=split)
    except Exception as error:  # TFDS raises many types: not found, wrong format, unknown split
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"TFDS data set {path!r}, split {split!r}, cannot be opened as array_record "
                        f"({reason[:200]}): prepare it with file_format='array_record'") from error


def _texts(value: Any) -> tuple[str, ...]:
    """A text feature, or a sequence of them."""
    values = np.asarray(value, dtype=object).reshape(-1).tolist()
    return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values) or ("",)
