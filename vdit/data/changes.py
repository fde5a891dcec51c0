"""What the videos and captions of a folder were when they were encoded, and what has changed since.

A record says, for each video: its size and times as the file system has them, a digest of its content, and one of its
captions and label. Content is read again only where size or times differ, so that looking is quick.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vdit import paths
from vdit.data.captions import Entry, plain_name, read_captions
from vdit.data.config import DataConfig
from vdit.data.curated import read_curated_index
from vdit.data.data_source import CuratedSource, FolderSource
from vdit.errors import DataError

RECORD = "videos.json"  # beside the latents
_LIMIT = paths.GIB
_BLOCK = 1 << 20

Record = dict[str, Any]  # {"videos": how many could be read, "files": {name: {"file", "content", "captions"}}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """Names of videos: new ones, those that are gone, those with other captions, those with other content."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    content: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(dataclasses.astuple(self))

    @property
    def names(self) -> frozenset[str]:
        return frozenset().union(*dataclasses.astuple(self))

    def __str__(self) -> str:
        words = {"added": "new", "removed": "gone", "captions": "with other captions", "content": "with other content"}
        told = []
        for field, word in words.items():
            names = getattr(self, field)
            if names:
                more = ", ..." if len(names) > 5 else ""
                told.append(f"{len(names)} {word} ({', '.join(map(ascii, names[:5]))}{more})")
        return ", ".join(told)


def look_at_videos(config: DataConfig, exclude: Collection[str], before: Record | None = None) -> Record | None:
    """The record of the videos that a config names; None where they are not files, or not there any more.

    Args:
        config: of the data. exclude: names of videos that are left out.
        before: an earlier record, whose digests are taken over for files that look the same.
    """
    source = config.source
    if isinstance(source, CuratedSource):
        shards = read_curated_index(paths.path(source.path))["shards"]
        return {"files": {s["file"]: {"file": None, "content": s["sha256"], "captions": ""} for s in shards}}
    if not isinstance(source, FolderSource) or not Path(source.path).is_dir():
        return None
    folder = paths.path(source.path)
    known = {} if before is None else before["files"]
    excluded = {plain_name(name, folder) for name in exclude}
    entries = [entry for entry in read_captions(folder, source.captions).entries if entry.file not in excluded]
    with ThreadPoolExecutor(max(1, config.threads)) as pool:
        files = list(pool.map(lambda entry: _look(folder, entry, known.get(entry.file)), entries))
    return {"files": {entry.file: file for entry, file in zip(entries, files)}}


def find_changes(before: Record, now: Record) -> Changes:
    """What differs between two records."""
    old, new = before["files"], now["files"]
    both = [name for name in new if name in old]
    return Changes(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        captions=tuple(name for name in both if new[name]["captions"] != old[name]["captions"]),
        content=tuple(name for name in both if new[name]["content"] != old[name]["content"]),
    )


def digest_of(record: Record | None) -> str | None:
    """Changes with the content and the captions of the videos, and with nothing else."""
    if record is None:
        return None
    said = [[name, file["content"], file["captions"]] for name, file in record["files"].items()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def read_record(latents: str | Path) -> Record | None:
    """The record beside latents; None where there is none (latents of an older vdit, or of rendered worlds)."""
    path = paths.path(latents) / RECORD
    if not paths.is_file(path):
        return None
    fix = "remove the folder of latents to encode them again"
    record = paths.read_json(path, limit=_LIMIT, error=DataError, fix=fix)
    try:
        whole = type(record["videos"]) is int and all(
            {"file", "content", "captions"} <= file.keys() for file in record["files"].values()
        )
    except (TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise DataError(f"{path}: is damaged; {fix}")
    return record


def _look(folder: paths.AnyPath, entry: Entry, before: Mapping[str, Any] | None) -> dict[str, Any]:
    said = json.dumps([entry.captions, entry.label])
    captions = hashlib.sha256(said.encode()).hexdigest()[:16]
    path = folder / entry.file
    try:
        if not isinstance(path, Path):  # a bucket knows the digest of what it holds
            file = list(map(str, paths.version_of(path) or ()))
            content = hashlib.sha256(json.dumps(file).encode()).hexdigest()[:32] if file else None
            return {"file": file or None, "content": content, "captions": captions}
        status = os.stat(path)
        file = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        content = before["content"] if before is not None and before["file"] == file else _digest(path)
    except (OSError, ValueError, DataError):  # such a video is skipped when it is opened, with the reason
        file, content = None, None
    return {"file": file, "content": content, "captions": captions}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with paths.open_regular(path, error=DataError) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:32]
