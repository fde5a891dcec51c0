"""A folder of ordinary video files with captions, as a library of videos."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vdit import paths
from vdit.data.captions import Entry, plain_name, read_captions
from vdit.data.clips import DecodedClip
from vdit.data.sources import DataSummary
from vdit.errors import DataError, VideoError
from vdit.video import read as video_io


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

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> DecodedClip:
        file = paths.local_copy(self.path, error=VideoError)
        clip = video_io.read_video(file, start=start, fps=fps, max_frames=frames, size=size)
        return DecodedClip(video=clip.frames, captions=self.captions, synthetic=self.synthetic)


class FolderDataset:
    """The video files of a folder that can be opened; the others are in `broken`, with the reason.

    path: the folder. captions: see DataConfig.captions. exclude: ids (files, as the captions file names
    them, else relative to the folder) that are left out, for instance to test on.
    """

    def __init__(self, path: str | Path, captions: str | Path | None = None, *,
                 exclude: Collection[str] = (), only: Collection[str] | None = None, threads: int = 4):
        self.path = paths.path(path)
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
                           height=info.height, width=info.width, fps=fps, seconds=seconds)

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
