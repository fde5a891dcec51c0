"""The folders and small files of a run's checkpoints: what is written at once, set aside, removed.

    20/                             a step: Orbax gives it this name as the last act of a save
    20/sha256.json                  the checksums of all other files, written last (integrity.py)
    20/data/host_0_of_2.json        the state of a host's data iterator
    20.orbax-checkpoint-tmp/        a save under way, or cut short
    15.deleting/                    an old step that is being deleted
    20.damaged/                     a step that was not as it was written; kept, and never read
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdit import buckets, errors, paths
from vdit.checkpoint.hosts import Exchange, Warn, say  # noqa: F401
from vdit.errors import CheckpointError
from vdit.paths import AnyPath
from vdit.reprs import shown_bytes

META = "meta.json"
DELETING = ".deleting"
DAMAGED = ".damaged"
PARTIAL = ".partial"  # ends the names of small files that older versions wrote
FINAL = "sha256.json"  # the checksums of a step, its last file; see integrity.py
COMMITTED = "commit_success.txt"  # Orbax's last file of a step
_MOMENT = 0.1  # seconds
_LARGEST, _DEEPEST = 256 * paths.MIB, 200  # bytes and depth of a file of JSON: Orbax notes every array in one
_TMP = ".orbax-checkpoint-tmp"

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
        """Part of Orbax's protocol; `load_meta` and `read_iterator_state` read the files themselves."""
        raise NotImplementedError


def absolute_path(directory: str | Path) -> AnyPath:
    """The absolute path of a run's checkpoints, on a disk or in a bucket."""
    path = paths.path(directory)
    return path.absolute() if isinstance(path, Path) else path


def prepare(folder: AnyPath) -> None:
    """Clears the way for a step; OSError if it cannot even be begun, before hosts part for their shares of it."""
    clear_left_overs(folder.parent)
    if paths.exists(folder):
        raise FileExistsError(f"there is such a step already: save another, or move {folder} away")
    if not isinstance(folder, Path):
        probe = folder.parent / f"{folder.name}{_TMP}-probe"
        paths.write_atomic(probe / "bytes", bytes(64))
        paths.remove_folder(probe)
        return
    trial = folder.with_name(folder.name + _TMP + "-probe")
    trial.mkdir(exist_ok=True)
    try:
        (trial / "bytes").write_bytes(bytes(4096))
    finally:
        shutil.rmtree(trial)


def clear_left_overs(directory: AnyPath) -> None:
    """Removes what a killed process left half-written or half-deleted; only the host that writes may."""
    if not isinstance(directory, Path):
        kept = set(map(str, steps_in(directory)))
        for name in paths.names_in(directory):
            if _TMP in name or name.endswith(DELETING) or (name.isdigit() and name not in kept):
                paths.remove_folder(directory / name)
        return
    for pattern in (f"*{_TMP}*", f"*{DELETING}"):
        for folder in directory.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    for partial in (*directory.glob(f"*/*{PARTIAL}"), *directory.glob("*/.*.part")):
        partial.unlink()


def remove_step(folder: AnyPath) -> None:
    """Deletes a step: it stops being one at once, however long its files take to go."""
    if not isinstance(folder, Path):
        paths.remove_folder(folder, first=(FINAL, COMMITTED))
        return
    going = folder.with_name(folder.name + DELETING)
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    shutil.rmtree(going)


def remove_failed(folder: AnyPath, *, begun: bool = True) -> None:
    """Removes what a failed save left of a step, as far as it goes: the next start clears the rest.

    begun: whether the step is this save's own, if there is one.
    """
    if not isinstance(folder, Path):
        with contextlib.suppress(OSError):
            remove_step(folder)
        return
    for _ in range(3):  # of several writers, the others may be at it still
        for path in (*([folder] if begun else []), *folder.parent.glob(f"{folder.name}{_TMP}*")):
            with contextlib.suppress(OSError):
                remove_step(path)
        time.sleep(_MOMENT)


def set_aside(folder: AnyPath) -> str:
    """Renames a damaged step so that it is not taken for one; returns its new name."""
    names = (folder.name + DAMAGED + end for end in ("", *(f"-{number}" for number in range(2, 1000))))
    name = next(name for name in names if not paths.exists(folder.parent / name))
    paths.move_folder(folder, folder.parent / name)
    if isinstance(folder, Path):
        paths.sync_folder(folder.parent)
    return name


def steps_in(directory: AnyPath) -> list[int]:
    """The steps of a run in order.

    On a disk Orbax gives a folder its final name as the last act of a save; in a bucket it writes a file last.
    """
    if not isinstance(directory, Path):
        found = (name for name in paths.names_in(directory) if name.isdigit())
        ends = (FINAL, COMMITTED)
        return sorted(int(name) for name in found if any(paths.is_file(directory / name / end) for end in ends))
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit() and entry.is_dir())


def no_room(error: BaseException, directory: AnyPath, needed: int | None = None) -> str | None:
    """What to say of an error if it is that there is no room, with the fix; else None. needed: bytes, at most."""
    known = errors.no_room(error)
    if known is None:
        return None
    words, fix = known
    disk = directory if isinstance(directory, Path) else buckets.home()
    free = f"{shown_bytes(shutil.disk_usage(disk).free)} are free"
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


_STREAMS = "streams"
_NAME = re.compile(r"host_(\d+)_of_(\d+)\.json")


class IteratorState:
    """The part of a step that holds the data's places. They travel to the first host, which writes them all.

    So they are in a step whenever Orbax commits it: of several writers, Orbax would wait for its own only.
    """

    def __init__(self, state: dict | bytes | None, exchange: Exchange):
        self._exchange = exchange
        exchange.put("iterator_state", _to_json(state))  # now: the iterator moves on while the save runs

    async def save(self, directory):
        """What Orbax calls: returns what it is to run in the background."""

        async def write():
            folder = await directory.await_creation()
            if self._exchange.index == 0:
                values = await asyncio.to_thread(self._exchange.collect, "iterator_state")
                for host, value in enumerate(values):
                    (folder / _name(host, len(values))).write_text(json.dumps(value, indent=1))

        return write()

    async def load(self, directory):
        """Part of Orbax's protocol; `read_iterator_state` reads the files itself."""
        raise NotImplementedError


def check_iterator_state(folder: AnyPath) -> None:
    """Refuses a step without the places of all hosts that saved it."""
    _read_all(folder)


def read_iterator_state(folder: AnyPath) -> dict | bytes:
    """This host's place in the data, for `set_state`.

    A place of streams is that of all hosts together: {"streams": {number: state, ...}, ...}, so that any number of
    hosts goes on from it. Any other belongs to the host of the same number, and to as many hosts as there were.
    """
    values = _read_all(folder)
    if any(value is None for value in values):
        raise CheckpointError(f"{folder}: holds no place in the data; start the data from the beginning")
    states = [base64.b64decode(value["bytes"]) if "bytes" in value else value["dict"] for value in values]
    if all(isinstance(state, dict) and _STREAMS in state for state in states):
        return _merged(folder, states)
    if len(states) != jax.process_count():
        raise CheckpointError(
            f"{folder}: the place in the data is of {len(states)} hosts, this run has {jax.process_count()}: "
            f"resume on {len(states)}, or start the data from the beginning"
        )
    return states[jax.process_index()]


def _merged(folder: Path, states: list[dict]) -> dict:
    merged: dict[str, Any] = {}
    for host, host_state in enumerate(states):
        for number, state in host_state[_STREAMS].items():
            if merged.setdefault(number, state) != state:
                raise CheckpointError(f"{folder}: host {host} is elsewhere in stream {number} than the hosts before")
    return states[0] | {_STREAMS: merged}


def _read_all(folder: AnyPath) -> list[Any]:
    names = [_NAME.fullmatch(name) for name in paths.names_in(folder / "data")]
    count = max((int(name[2]) for name in names if name), default=1)
    values = [read_json(folder / "data" / _name(host, count)) for host in range(count)]
    if any(value is not None and not (isinstance(value, dict) and {"bytes", "dict"} & set(value)) for value in values):
        raise CheckpointError(f"{folder / 'data'}: holds no places in the data; take another step")
    return values


def _name(host: int, count: int) -> str:
    return f"host_{host}_of_{count}.json"


def _to_json(state: dict | bytes | None) -> Any:
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    plain = jax.tree.map(lambda leaf: leaf.item() if isinstance(leaf, np.generic) else leaf, state)
    return None if state is None else {"dict": plain}
