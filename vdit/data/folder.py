"""A folder of ordinary video files with captions, as a library of videos."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vdit import video_io
from vdit.data.cuts import Shot
from vdit.errors import DataError, VideoError

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".flv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of a captions file. file: relative to the folder; captions: the first is the short one."""

    file: str
    captions: tuple[str, ...]
    label: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFootage:
    """One video file."""

    path: Path
    id: str
    captions: tuple[str, ...]
    label: int
    height: int
    width: int
    fps: float
    seconds: float
    elastic: bool = False

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> Shot:
        clip = video_io.read_video(self.path, start=start, fps=fps, max_frames=frames, size=size)
        return Shot(video=clip.frames, captions=self.captions)


class FolderLibrary:
    """The video files of a folder that can be opened; the others are in `broken`, with the reason.

    path: the folder. captions: see DataConfig.captions. exclude: ids (files, as the captions file names
    them, else relative to the folder) that are left out, for instance to test on.
    """

    def __init__(self, path: str | Path, captions: str | Path | None = None, *,
                 exclude: Collection[str] = (), threads: int = 4):
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder: data.path must name a folder of video files")
        entries = read_entries(self.path, captions)
        unknown = sorted(set(exclude) - {entry.file for entry in entries})
        if unknown:
            raise DataError(f"{unknown[0]!r} is to be excluded, but {self.path} has no such entry: check the "
                            "spelling, or nothing is held out")
        entries = [entry for entry in entries if entry.file not in exclude]
        self.broken: dict[str, str] = {}
        with ThreadPoolExecutor(max(1, threads)) as pool:
            opened = list(pool.map(self._probe, entries))
        self._videos = [footage for footage in opened if footage is not None]
        if not self._videos:
            example = next((f"; for one, {name}: {why}" for name, why in self.broken.items()), "")
            raise DataError(f"{self.path} has no video that can be read (tried {len(entries)}){example}")

    def _probe(self, entry: Entry) -> FileFootage | None:
        path = self.path / entry.file
        try:
            if not path.exists():
                raise VideoError(f"{path} is missing, though the captions file names it")
            info = video_io.probe(path)
            fps, seconds = _timing(path, info)
        except VideoError as error:
            self.broken[entry.file] = str(error)
            return None
        return FileFootage(path=path, id=entry.file, captions=entry.captions, label=entry.label,
                           height=info.height, width=info.width, fps=fps, seconds=seconds)

    def __len__(self) -> int:
        return len(self._videos)

    def name(self, item: int) -> str:
        return self._videos[item].id

    def open(self, item: int, rng: np.random.Generator) -> FileFootage:
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


def read_entries(folder: Path, captions: str | Path | None = None) -> list[Entry]:
    """What to read of a folder, in a fixed order."""
    if captions is None:
        found = [folder / name for name in ("captions.jsonl", "captions.csv") if (folder / name).exists()]
        if not found:
            return _beside(folder)
        file = found[0]
    else:
        file = Path(captions) if Path(captions).exists() else folder / captions
        if not file.exists():
            raise DataError(f"captions file {str(captions)!r} is neither here nor in {folder}: check "
                            "data.captions")
    parse = _PARSERS.get(file.suffix.lower())
    if parse is None:
        raise DataError(f"captions file {file} ends in {file.suffix!r}: write .jsonl or .csv")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"captions file {file} cannot be read as UTF-8 text ({error})") from None
    entries = [_entry(record, f"{file}, line {line}") for line, record in parse(text, file)]
    seen: set[str] = set()
    for entry in entries:
        if entry.file in seen:
            raise DataError(f"captions file {file} names {entry.file!r} twice: keep one line, with several "
                            "captions as a list under 'captions'")
        seen.add(entry.file)
    return entries


def _jsonl(text: str, file: Path) -> Iterable[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number} is not JSON ({error})") from None


def _csv(text: str, file: Path) -> Iterable[tuple[int, Any]]:
    reader = csv.DictReader(text.splitlines())
    for record in reader:
        yield reader.line_num, record


_PARSERS: dict[str, Callable[[str, Path], Iterable[tuple[int, Any]]]] = {".jsonl": _jsonl, ".csv": _csv}


def _entry(record: Any, where: str) -> Entry:
    """{"file", "caption" and/or "captions", "detailed", "label"} -> Entry."""
    if not isinstance(record, dict) or not isinstance(record.get("file"), str) or not record["file"]:
        raise DataError(f'{where}: give "file" and "caption" (or "captions", a list)')
    listed = record.get("captions") or ()
    if isinstance(listed, str):
        listed = (listed,)
    captions = [record.get("caption"), *listed, record.get("detailed")]
    captions = [caption for caption in captions if caption]
    if not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{where}: captions must be text, got {captions!r}")
    try:
        label = int(record.get("label") or 0)
    except (TypeError, ValueError):
        raise DataError(f"{where}: label is {record['label']!r}, give a whole number") from None
    return Entry(file=record["file"], captions=tuple(captions) or ("",), label=label)


def _beside(folder: Path) -> list[Entry]:
    """Every video of the folder, with the caption in the .txt beside it where there is one."""
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        text = path.with_suffix(".txt")
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines() if text.exists() else []
        captions = tuple(line.strip() for line in lines if line.strip())
        entries.append(Entry(file=path.relative_to(folder).as_posix(), captions=captions or ("",)))
    if not entries:
        raise DataError(f"{folder} has no video files ({', '.join(SUFFIXES)}) and no captions file")
    return entries
