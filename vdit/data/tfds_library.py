"""Any TFDS video data set, stored as array_record, as a library of videos. Needs no TensorFlow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vdit.data.clips import DecodedClip, resize_video
from vdit.errors import DataError, install_command
from vdit.reprs import short_repr


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
        self._source = _open(path, split)
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


def _open(path: str, split: str) -> Any:
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
