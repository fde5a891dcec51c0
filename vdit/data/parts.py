"""Latents written in parts, by one host or several, and gone on with after an interruption.

The samples are cut into parts, runs of neighbours of equal length whose number depends on that of the samples only.
A part is one file of records; beside it a note, written last, says that it is complete. When all parts are, the first
host writes the index, and the folder takes its final name. Until then it is `.NAME.KEY.writing`: the key stands for
what is encoded, so that what is found there may be used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vdit import paths
from vdit.data.latents import INDEX, MOST_INDEX, ShardWriter, check_dtype, make_index, shard_file
from vdit.data.sources import Sample
from vdit.errors import DataError
from vdit.models.vae.statistics import Moments
from vdit.paths import AnyPath

MOST_PARTS, SMALLEST_PART = 512, 16
FORMAT = "parts-2"  # of the notes: parts of another format are not gone on with
PATIENCE = 120.0  # seconds until a file that another host has written is seen here


class LatentParts:
    """The parts of one folder of latents, and this host's share of them.

    path: the folder; must not exist, unless `replaces`: then what is there is replaced when all is written. samples:
    how many. key: anything that changes when the latents would.
    shard_index, shard_count: this host of how many; every host sees the same folders.
    """

    def __init__(self, path: str | Path, *, samples: int, vae: str, dtype: str, key: Any = None, shard_index: int = 0,
                 shard_count: int = 1, replaces: bool = False):
        check_dtype(dtype)
        self.path = paths.path(path)
        if paths.exists(self.path) and not replaces:
            raise DataError(f"{self.path} exists already: choose another folder for latents, or remove it")
        if samples < 1:
            raise DataError("there are no latents to write: the source of clips is empty")
        self.samples, self.vae, self.dtype = samples, vae, dtype
        self.shard_index, self.shard_count = shard_index, shard_count
        self.size = max(SMALLEST_PART, -(-samples // MOST_PARTS))
        self.count = -(-samples // self.size)
        key = [FORMAT, samples, self.size, vae, dtype, key]
        self.key = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        self.work = self.path.parent / f".{self.path.name}.{self.key}.writing"
        if isinstance(self.work, Path):
            self.work.mkdir(parents=True, exist_ok=True)

    def places(self, part: int) -> range:
        """Numbers of the samples of a part."""
        return range(part * self.size, min((part + 1) * self.size, self.samples))

    def own(self) -> range:
        """The parts of this host."""
        return range(self.shard_index, self.count, self.shard_count)

    def missing(self) -> list[int]:
        """The parts of this host that are still to be made."""
        return [part for part in self.own() if self._note(part) is None]

    def write(self, part: int, items: Iterator[Sample]) -> None:
        """Makes a part of the next items, as many as it has."""
        writer = ShardWriter(shard_file(self.work, part), self.dtype)
        try:
            for number in self.places(part):
                writer.write(next(items), number)
            note = writer.close()
        except BaseException:
            writer.abandon()
            raise
        write_json(_note_file(self.work, part), note)

    def finish(self, wait: Callable[[str], None] | None = None, more: Mapping[str, Any] | None = None
               ) -> dict[str, Any]:
        """The index, once all parts of all hosts are there; then the folder has its name.

        more: names of files to write beside the index, and what they hold (JSON). wait: called by each host with a
        name, returns when all hosts have called it; None for one host.
        """
        wait = wait or (lambda name: None)
        wait("latents written")
        if self.shard_index == 0:
            notes = [self._await_note(part) for part in range(self.count)]
            index = make_index(notes, vae=self.vae, dtype=self.dtype) | {"key": self.key}
            for name, value in (more or {}).items():
                write_json(self.work / name, value)
            write_json(self.work / INDEX, index)
            if isinstance(self.path, Path):
                if self.path.exists():
                    os.replace(self.path, self.work.with_suffix(".former"))
                os.replace(self.work, self.path)
            else:
                paths.remove_folder(self.path, first=(INDEX,))
                paths.move_folder(self.work, self.path, last=(INDEX,))
            self._clear()
        wait("latents complete")
        _await(lambda: self._index().get("key") == self.key, self.path / INDEX)
        return self._index()

    def _index(self) -> dict[str, Any]:
        """The index of the folder; empty where there is none."""
        try:
            return json.loads(paths.read_bytes(self.path / INDEX, limit=MOST_INDEX))
        except (OSError, ValueError, DataError):
            return {}

    def _note(self, part: int) -> dict[str, Any] | None:
        """What is known of a part that is complete."""
        try:
            note = json.loads(paths.read_bytes(_note_file(self.work, part), limit=paths.MIB))
            Moments.from_json(note["moments"])
            whole = paths.file_size(shard_file(self.work, part)) == note["bytes"]
        except (OSError, ValueError, KeyError, TypeError, DataError):
            return None
        return note if whole else None

    def _await_note(self, part: int) -> dict[str, Any]:
        _await(lambda: self._note(part) is not None, shard_file(self.work, part))
        return self._note(part)

    def _clear(self) -> None:
        """The notes have served; and what was cut short, or given up for other latents, is of no use."""
        if not isinstance(self.path, Path):
            for name in paths.names_in(self.path):
                if name.startswith("part-") and name.endswith(".json"):
                    (self.path / name).unlink(missing_ok=True)
            for name in paths.names_in(self.path.parent):
                if name.startswith(f".{self.path.name}.") and name.endswith(".writing"):
                    paths.remove_folder(self.path.parent / name)
            return
        for left in [*self.path.glob("part-*.json"), *self.path.glob(".*.part")]:
            left.unlink(missing_ok=True)
        for ending in ("writing", "former"):
            for left in self.path.parent.glob(f".{self.path.name}.*.{ending}"):
                shutil.rmtree(left, ignore_errors=True)


def _note_file(folder: AnyPath, part: int) -> AnyPath:
    return folder / f"part-{part:05d}.json"


def _await(seen: Callable[[], bool], file: AnyPath) -> None:
    """File systems over a network may show a file some time after another host has written it."""
    end = time.monotonic() + PATIENCE
    while not seen():
        if time.monotonic() > end:
            raise DataError(f"{file} of another host does not appear: the folder of a run must be one that all hosts "
                            "share")
        time.sleep(0.2)


def write_json(file: AnyPath, value: Any) -> None:
    """Writes a value as JSON: all of the file or nothing."""
    paths.write_atomic(file, json.dumps(value, indent=1))
