"""Episodes of an emulator in ArrayRecord shards, as `vdit record` writes them: frames, actions, rewards, states.

A folder holds `index.json`, written last, and the shards that it names. A record is the bytes of a safetensors file:
"video" uint8 [t h w 3]; "actions" float32 [t a], where actions[i] leads from frame i - 1 to frame i; "rewards" float32
[t], of the same steps; "facts" float64 [t n], what the emulator knows of each frame; "states" uint8 [n], what
it goes on from, k states one after the other, which end at "state_ends" int64 [k] and are of the frames "state_at"
int32 [k]. Its metadata is a JSON object: id, captions, fps, seed, policy.

    source = EpisodesSource(path="episodes")     # of vdit.data.data_source
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from array_record.python import array_record_module

from vdit import paths
from vdit.data.clips import DecodedClip, resize_video
from vdit.data.data_source import DataSummary
from vdit.data.datasets import ArrayHandle
from vdit.data.latents import INDEX, MOST_INDEX, ShardReader
from vdit.errors import DataError, VditError, reason
from vdit.reprs import short_repr

FORMAT = "vdit-episodes-1"
# Name -> (type, axes) of the tensors of a record.
_TENSORS = {
    "video": ("uint8", 4), "actions": ("float32", 2), "rewards": ("float32", 1), "facts": ("float64", 2),
    "states": ("uint8", 1), "state_ends": ("int64", 1), "state_at": ("int32", 1),
}  # fmt: skip
_SLACK = 0.02  # of a frame: how far a time may be from one


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode(ArrayHandle):
    """What happened in one stretch of play; the arrays are as this module's docstring has them."""

    seed: int
    policy: str
    actions: np.ndarray
    rewards: np.ndarray
    facts: np.ndarray
    states: np.ndarray
    state_ends: np.ndarray
    state_at: np.ndarray

    def __post_init__(self):
        wrong = [
            f"{name} {value.dtype} {value.shape}" for name, (dtype, axes) in _TENSORS.items()
            for value in [getattr(self, name)] if value.ndim != axes or value.dtype != dtype
        ]  # fmt: skip
        t = len(self.video)
        lengths = {len(self.actions), len(self.rewards), len(self.facts)}
        whole = lengths == {t} and t >= 2 and self.video.shape[-1:] == (3,)
        if wrong or not whole or len(self.state_ends) != len(self.state_at):
            raise DataError(f"episode {self.id!r} has {wrong or sorted(lengths)} for {t} frames: record it again")
        if not (np.isfinite(self.actions).all() and np.isfinite(self.rewards).all()):
            raise DataError(f"episode {self.id!r} has actions or rewards that are not finite: record it again")
        if not len(self.state_at) or self.state_at[0] != 0 or (self.state_at >= t).any() or (self.state_at < 0).any():
            raise DataError(f"episode {self.id!r} has states at {self.state_at.tolist()}: record it again")
        if (np.diff(self.state_ends, prepend=0) < 0).any() or self.state_ends[-1] != len(self.states):
            raise DataError(f"episode {self.id!r} has states that end at {self.state_ends.tolist()}: record it again")

    def state(self, number: int) -> bytes:
        """A saved state, that of frame state_at[number]."""
        return self.states[self.state_ends[number - 1] if number else 0 : self.state_ends[number]].tobytes()

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> DecodedClip:
        """`frames` frames from `start` seconds on, at the rate at which they were recorded, resized to size (h, w).

        The first action is 0: nothing leads to the first frame of a clip.
        """
        if abs(fps - self.fps) > 1e-6 * self.fps:
            raise DataError(f"episode {self.id!r} has {self.fps:g} frames a second, each with its action: set "
                            f"data.fps={self.fps:g}")  # fmt: skip
        first = int(start * self.fps + _SLACK)
        video = resize_video(self.video[first : first + frames], size)
        actions = self.actions[first : first + frames].copy()
        actions[:1] = 0
        return DecodedClip(video=video, captions=self.captions, actions=actions)


def write_episodes(file: Path, episodes: Iterable[Episode]) -> dict[str, Any]:
    """Writes one shard, which appears when it is complete.

    Args:
        file: its name, in a folder that exists on this disk.
        episodes: to write, at least one.

    Returns:
        {"file", "records", "bytes", "ids", "frames", "actions"}, for the index; actions is their width.
    """
    part = file.parent / f".{file.name}.{uuid.uuid4().hex[:8]}.part"
    ids, frames, widths = [], 0, set()
    try:
        writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
        try:
            for episode in episodes:
                meta = {name: getattr(episode, name) for name in ("id", "captions", "fps", "seed", "policy")}
                tensors = {name: np.ascontiguousarray(getattr(episode, name)) for name in _TENSORS}
                writer.write(safetensors.numpy.save(tensors, metadata={"meta": json.dumps(meta, sort_keys=True)}))
                ids.append(episode.id)
                frames += len(episode.video)
                widths.add(episode.actions.shape[1])
        finally:
            writer.close()
        os.replace(part, file)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{file}: cannot be written: {reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)
    return {"file": file.name, "records": len(ids), "bytes": file.stat().st_size, "ids": ids, "frames": frames,
            "actions": max(widths)}  # fmt: skip


class EpisodesDataset:
    """The episodes of a folder that `vdit record` wrote, a VideoDataset.

    Args:
        path: the folder.
        exclude: ids of episodes that are left out.
        only: such ids: the dataset has these episodes alone.

    Raises:
        DataError: it is not such a folder, its index is damaged, or an id is of no episode in it.
    """

    def __init__(self, path: str | Path, *, exclude: Collection[str] = (), only: Collection[str] | None = None):
        self.path = paths.path(path)
        self.index = read_index(self.path)
        self.broken: dict[str, str] = {}
        self._shards = [ShardReader(self.path, shard) for shard in self.index["shards"]]
        every = [(shard, at, name) for shard, entry in enumerate(self.index["shards"])
                 for at, name in enumerate(entry["ids"])]  # fmt: skip
        unknown = sorted((set(exclude) | set(only or ())) - {name for *_, name in every})
        if unknown:
            raise DataError(f"{unknown[0]!r} is held out, but {self.path} has no episode of this id (they are "
                            f"{every[0][2]!r} to {every[-1][2]!r}): check the spelling")  # fmt: skip
        self._items = [item for item in every if item[2] not in exclude and (only is None or item[2] in only)]
        if not self._items:
            raise DataError(f"{self.path}: all of its {len(every)} episodes are held out: hold out fewer")
        self.summary = DataSummary(place=str(self.path), found=len(every), used=len(self._items),
                                   held_out=len(every) - len(self._items))  # fmt: skip

    def __len__(self) -> int:
        return len(self._items)

    def name(self, item: int) -> str:
        return self._items[item][2]

    def open(self, item: int, rng: np.random.Generator | None = None) -> Episode:
        """An episode; DataError where its record is damaged."""
        shard, at, name = self._items[item]
        try:
            return _read_record(self._shards[shard].read([at])[0])
        except VditError:
            raise
        except Exception as error:  # array_record raises many types
            why = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise DataError(f"{self.path}: episode {name!r} is damaged ({why}): record it again") from error


def _read_record(data: bytes) -> Episode:
    tensors = safetensors.numpy.load(data)
    size = int.from_bytes(data[:8], "little")
    meta = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["meta"])
    return Episode(
        id=str(meta["id"]), captions=tuple(map(str, meta["captions"])), fps=float(meta["fps"]), seed=int(meta["seed"]),
        policy=str(meta["policy"]), **{name: tensors[name] for name in _TENSORS},
    )  # fmt: skip


def read_index(path: paths.AnyPath) -> dict[str, Any]:
    """A folder's index.json; DataError where the folder is none of `vdit record`."""
    if not paths.exists(path / INDEX):
        raise DataError(f"{path} has no {INDEX}: give a folder that vdit record has finished")
    text = paths.read_bytes(path / INDEX, limit=MOST_INDEX, error=DataError).decode("utf-8", "replace")
    index = paths.parse_json(text, name=str(path / INDEX))
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path / INDEX}: is not of episodes ({FORMAT}): give a folder of vdit record")
    try:
        whole = all(len(shard["ids"]) == shard["records"] > 0 and Path(shard["file"]).name == shard["file"]
                    for shard in index["shards"])  # fmt: skip
        whole &= bool(index["shards"]) and isinstance(index["env"], str)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(f"{path / INDEX} is damaged: record the episodes again")
    return index
