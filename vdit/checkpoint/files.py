"""The small files of a step beside Orbax's: JSON parts, and the sha256 of every file."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from vdit.errors import CheckpointError

MANIFEST = "sha256.json"
META = "meta.json"


class File:
    """A part of a checkpoint that is one small file of JSON, to be read without Orbax."""

    def __init__(self, name: str, value: Any, *, every_host: bool):
        self._name = name
        self._text = json.dumps(value, indent=1)  # now: the value may change while the save runs
        self._writes = every_host or jax.process_index() == 0

    async def save(self, directory):
        """What Orbax calls: returns what it is to run in the background."""

        async def write():
            folder = await directory.await_creation()
            if self._writes:
                (folder / self._name).write_text(self._text)

        return write()

    async def load(self, directory):
        """Part of Orbax's protocol; `load_meta` and `_read_place` read the files themselves."""
        raise NotImplementedError


def clear_cut_short(directory: Path) -> None:
    """Removes what a killed save left. (Orbax's own clearing runs on behind one's back.)"""
    if jax.process_index() == 0:
        for folder in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("vditclear_cut_short")


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    hashes = {}
    for file in files:
        with file.open("rb") as handle:
            hashes[str(file.relative_to(folder))] = hashlib.file_digest(handle, "sha256").hexdigest()
    return hashes


def write_manifest(folder: Path) -> None:
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps(_hashes(folder), indent=1))
    partial.rename(folder / MANIFEST)


def check_manifest(folder: Path) -> None:
    """Compares every file with its sha256; a run killed between a save and its manifest left none."""
    manifest = folder / MANIFEST
    if not manifest.exists() or jax.process_index() != 0:
        return
    now = _hashes(folder)
    wrong = [name for name, digest in json.loads(manifest.read_text()).items() if now.get(name) != digest]
    if wrong:
        count = f"{len(wrong)} file{'s' if len(wrong) > 1 else ''} in all"
        raise CheckpointError(f"{folder}: {wrong[0]} is damaged ({count}); take another step")
