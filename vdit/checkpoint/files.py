"""The folders and small files of a run's checkpoints: what is written at once, set aside, cleared away.

    20/                             a step: Orbax gives it this name as the last act of a save
    20/sha256.json                  its seal: the sums of all other files (sums.py)
    20.orbax-checkpoint-tmp/        a save under way, or cut short
    15.deleting/                    an old step on its way out
    20.damaged/                     a step that was not as it was written; kept, and never read
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vdit import errors, paths
from vdit.errors import CheckpointError
from vdit.reprs import shown_bytes

META = "meta.json"
DELETING = ".deleting"
DAMAGED = ".damaged"
PARTIAL = ".partial"
_MOMENT = 0.1  # seconds
_LARGEST, _DEEPEST = 256 * paths.MIB, 200  # bytes and depth of a file of JSON: Orbax notes every array in one
_TMP = ".orbax-checkpoint-tmp"

Warn = Callable[[str], None]


def say(message: str) -> None:
    """Where warnings go by default: one line on stderr."""
    print(f"vdit: warning: {message}", file=sys.stderr, flush=True)


class File:
    """A part of a checkpoint that is one small file of JSON written by the first host, to be read without Orbax."""

    def __init__(self, name: str, value: Any):
        self._name = name
        self._text = json.dumps(value, indent=1)  # now: the value may change while the save runs

    async def save(self, directory):
        """What Orbax calls: returns what it is to run in the background."""

        async def write():
            folder = await directory.await_creation()
            if jax.process_index() == 0:
                (folder / self._name).write_text(self._text)

        return write()

    async def load(self, directory):
        """Part of Orbax's protocol; `load_meta` and `read_place` read the files themselves."""
        raise NotImplementedError


def write_whole(path: Path, text: str) -> None:
    """Writes all of a file or nothing of it, and sees it on the disk."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Sees the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network filesystems: no such call
            raise
    finally:
        os.close(handle)


def prepare(folder: Path) -> None:
    """Clears the way for a step; OSError if it cannot even be begun, before hosts part for their shares of it."""
    clear_left_overs(folder.parent)
    if folder.exists():
        raise FileExistsError(f"there is such a step already: save another, or move {folder} away")
    trial = folder.with_name(folder.name + _TMP + "-probe")
    trial.mkdir(exist_ok=True)
    try:
        (trial / "bytes").write_bytes(bytes(4096))
    finally:
        shutil.rmtree(trial)


def clear_left_overs(directory: Path) -> None:
    """Removes what a killed process left half-written or half-deleted; only the host that writes may."""
    for pattern in (f"*{_TMP}*", f"*{DELETING}"):
        for folder in directory.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    for partial in directory.glob(f"*/*{PARTIAL}"):
        partial.unlink()


def remove_step(folder: Path) -> None:
    """Deletes a step: it stops being one at once, however long its files take to go."""
    going = folder.with_name(folder.name + DELETING)
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    shutil.rmtree(going)


def remove_failed(folder: Path, *, begun: bool = True) -> None:
    """Removes what a failed save left of a step, as far as it goes: the next start clears the rest.

    begun: whether the step is this save's own, if there is one.
    """
    for _ in range(3):  # of several writers, the others may be at it still
        for path in (*([folder] if begun else []), *folder.parent.glob(f"{folder.name}{_TMP}*")):
            with contextlib.suppress(OSError):
                remove_step(path)
        time.sleep(_MOMENT)


def set_aside(folder: Path) -> str:
    """Renames a damaged step so that it is not taken for one; returns its new name."""
    names = (folder.name + DAMAGED + end for end in ("", *(f"-{number}" for number in range(2, 1000))))
    name = next(name for name in names if not (folder.parent / name).exists())
    folder.rename(folder.with_name(name))
    flush_folder(folder.parent)
    return name


def steps_in(directory: Path) -> list[int]:
    """The steps of a run in order: Orbax gives a folder its final name as the last act of a save."""
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit() and entry.is_dir())


def no_room(error: BaseException, directory: Path, needed: int | None = None) -> str | None:
    """What to say of an error if it is that there is no room, with the fix; else None. needed: bytes, at most."""
    known = errors.no_room(error)
    if known is None:
        return None
    words, fix = known
    free = f"{shown_bytes(shutil.disk_usage(directory).free)} are free"
    need = "" if needed is None else f"about {shown_bytes(needed)} are needed, "
    return f"{words} ({need}{free}): {fix}" + (", or keep fewer steps" if fix.startswith("make") else "")


def quiet_orbax() -> None:
    """Keeps what Orbax logs off the terminal: pages for what it raises anyway, from threads that outlive a save."""
    logging.getLogger("absl").addFilter(_not_orbax)  # the same one twice is once


def _not_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname


def read_json(path: Path) -> Any:
    """The JSON in a file; CheckpointError if it cannot be read."""
    return paths.read_json(path, limit=_LARGEST, depth=_DEEPEST, error=CheckpointError, fix="take another step")
