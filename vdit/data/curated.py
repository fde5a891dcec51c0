"""Clips in ArrayRecord shards, as `vdit curate` writes them: random access, captions and measures beside each clip.

A folder holds `index.json`, written last, and shards with the names that it lists. A record is the bytes of a
safetensors file with the tensor "video" (uint8 [n], the bytes of a video file) and, as metadata, a JSON object: id,
captions, label, width, height, fps, seconds, and what the writer knew besides (source, start, end, measures).

    source = CuratedSource(path="curated")       # of vdit.data.data_source; vdit train --data curated
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from vdit import paths
from vdit.data.clip_records import FORMAT, INDEX, NUMBERS, read_record
from vdit.data.clips import DecodedClip
from vdit.data.data_source import DataSummary
from vdit.data.latents import MOST_INDEX, ShardReader
from vdit.errors import DataError, VditError
from vdit.paths import AnyPath
from vdit.reprs import short_repr
from vdit.video.read import read_video


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedHandle:
    """A video whose file is in memory. data: its bytes; the rest as VideoHandle has it."""

    data: bytes
    id: str
    captions: tuple[str, ...]
    height: int
    width: int
    fps: float
    seconds: float
    label: int = 0
    elastic: bool = False

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> DecodedClip:
        clip = read_video(self.data, start=start, fps=fps, max_frames=frames, size=size)
        return DecodedClip(video=clip.frames, captions=self.captions)


class CuratedDataset:
    """The clips of a folder that `vdit curate` wrote, a VideoDataset.

    Args:
        path: the folder, local or in a bucket.
        exclude: names of files of footage, as the rows have them, or ids of clips: these clips are left out.
        only: such names: the dataset has these clips alone.

    Raises:
        DataError: it is not such a folder, its index is damaged, or a name is of no clip in it.
    """

    def __init__(self, path: str | Path, *, exclude: Collection[str] = (), only: Collection[str] | None = None):
        self.path = paths.path(path)
        self.index = read_curated_index(self.path)
        self.broken: dict[str, str] = {}
        self._shards = [ShardReader(self.path, shard) for shard in self.index["shards"]]
        self._ends = np.cumsum([shard["records"] for shard in self.index["shards"]])
        chosen = np.ones(self.index["count"], bool)
        if exclude:
            chosen &= ~self._named(exclude)
        if only is not None:
            chosen &= self._named(only)
        self._items = np.flatnonzero(chosen)
        if not len(self._items):
            raise DataError(f"{self.path}: all of its {self.index['count']} clips are held out: hold out fewer")

    def __len__(self) -> int:
        return len(self._items)

    def name(self, item: int) -> str:
        try:
            return self.open(item).id
        except DataError:
            return f"{self.path.name}[{int(self._items[item])}]"

    @property
    def summary(self) -> DataSummary:
        places = [(shard["file"], place) for shard in self.index["shards"] for place in range(shard["records"])]
        bare = {(shard["file"], place) for shard in self.index["shards"] for place in shard["uncaptioned"]}
        used = [places[item] for item in self._items]
        return DataSummary(
            place=str(self.path), found=len(places), used=len(used), held_out=len(places) - len(used),
            uncaptioned=tuple(f"{file}[{place}]" for file, place in used if (file, place) in bare),
        )  # fmt: skip

    def _named(self, names: Collection[str]) -> np.ndarray:
        """bool [clips]: whether a clip has one of these names."""
        sources = [name for shard in self.index["shards"] for name, count in shard["sources"] for _ in range(count)]
        wanted, found = set(names), np.isin(np.array(sources, object), list(names))
        wanted -= set(sources)
        if wanted:  # ids of clips stand in the records alone
            ids = [self._record(item)[0]["id"] for item in range(len(sources))]
            found |= np.isin(np.array(ids, object), list(wanted))
            wanted -= set(ids)
        if wanted:
            raise DataError(f"{min(wanted)!r} is held out, but {self.path} has no file of footage and no clip of this "
                            "name: check the spelling, or nothing is held out")  # fmt: skip
        return found

    def open(self, item: int, rng: np.random.Generator | None = None) -> EncodedHandle:
        meta, data = self.record(item)
        return EncodedHandle(
            data=data, id=meta["id"], captions=tuple(meta["captions"]) or ("",), label=meta["label"],
            **{name: meta[name] for name in NUMBERS},
        )  # fmt: skip

    def record(self, item: int) -> tuple[dict[str, Any], bytes]:
        """A clip's metadata, and the bytes of its video file.

        Raises:
            DataError: the record is damaged, or its shard is.
        """
        return self._record(int(self._items[item]))

    def _record(self, item: int) -> tuple[dict[str, Any], bytes]:
        shard = int(np.searchsorted(self._ends, item, side="right"))
        at = item - (int(self._ends[shard - 1]) if shard else 0)
        try:
            return read_record(self._shards[shard].read([at])[0])
        except VditError:
            raise
        except Exception as error:  # array_record raises many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise DataError(f"{self.path / self.index['shards'][shard]['file']}: record {at} is damaged ({reason}): "
                            "run vdit curate again") from error  # fmt: skip


def is_curated(path: str | Path) -> bool:
    """Whether a folder is one that `vdit curate` wrote, or began to write."""
    folder = paths.path(path)
    if not paths.is_file(folder / INDEX):
        return False
    try:
        index = paths.read_json(folder / INDEX, limit=MOST_INDEX, error=DataError)
    except DataError:
        return False
    return isinstance(index, dict) and index.get("format") == FORMAT


def read_curated_index(path: AnyPath) -> dict[str, Any]:
    """The index of a folder of clips.

    Raises:
        DataError: there is none, or it is damaged; the message says what to do.
    """
    if not paths.is_file(path / INDEX):
        raise DataError(f"{path} holds no curated clips ({INDEX} is missing): run vdit curate FOOTAGE {path}, which "
                        "goes on where it was stopped")  # fmt: skip
    index = paths.read_json(path / INDEX, limit=MOST_INDEX, error=DataError, fix="run vdit curate again")
    found = index.get("format") if isinstance(index, dict) else type(index).__name__
    if found != FORMAT:
        raise DataError(f"{path / INDEX} has format {found!r}, clips have {FORMAT!r}: run vdit curate again")
    try:
        names = [shard["file"] for shard in index["shards"]]
        whole = all(Path(name).name == name for name in names)
        whole = whole and all(type(shard[key]) is int for shard in index["shards"] for key in ("records", "bytes"))
        whole = whole and index["count"] == sum(shard["records"] for shard in index["shards"])
        whole = whole and index["captioned"] == index["count"] - sum(len(s["uncaptioned"]) for s in index["shards"])
        whole = whole and all(isinstance(shard["sha256"], str) for shard in index["shards"])
        whole = whole and all(isinstance(name, str) for shard in index["shards"] for name, _ in shard["sources"])
        whole = whole and all(sum(count for _, count in s["sources"]) == s["records"] for s in index["shards"])
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise DataError(f"{path / INDEX} is damaged: run vdit curate again")
    if not index["count"]:
        raise DataError(f"{path} holds no clip: nothing was kept; look at report.html there, and "
                        "curate it with another keep expression")  # fmt: skip
    return index
