"""Actions for a simulated world, as a user gives them: keys, and files of numbers."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

from vdit import paths
from vdit.cli.parser import UsageError
from vdit.data.tables import read_lines
from vdit.errors import DataError

Action = tuple[float, ...]
NOTHING = "."
MOST_BYTES = 64 * paths.MIB  # of a file of actions
# The worlds that can be played (vdit.worlds), and what their actions mean.
_STEER = {"w": (0, -1), "a": (-1, 0), "s": (0, 1), "d": (1, 0), "q": (-1, -1), "e": (1, -1), "z": (-1, 1), "c": (1, 1)}
_ORBIT = {"a": -30.0, "d": 30.0, "A": -45.0, "D": 45.0}  # degrees a second


def world_keys(world: str, width: int, fps: float) -> dict[str, Action]:
    """The keys of a world's actions of `width` numbers at `fps` frames a second; of one that has none, only NOTHING."""
    keys: dict[str, Action] = {NOTHING: (0.0,) * width}
    if world == "steer" and width == 2:
        keys |= {key: tuple(map(float, way)) for key, way in _STEER.items()}
    elif world == "orbit" and width == 1:
        keys |= {key: (speed / fps / 10,) for key, speed in _ORBIT.items()}
    return keys


def read_key_map(text: str, width: int) -> dict[str, Action]:
    """"w=0,-1 d=1,0": a character and its numbers; NOTHING means zeros unless the map has it."""
    keys: dict[str, Action] = {NOTHING: (0.0,) * width}
    for part in text.split():
        key, action = part[:1], _numbers(part[2:].split(","))
        if part[1:2] != "=" or action is None:
            raise UsageError(f"--key-map {part!r}: write KEY=NUMBER,NUMBER,... as in w=0,-1")
        if len(action) != width:
            raise UsageError(f"--key-map {part!r}: has {len(action)} numbers, this model is told {width}")
        keys[key] = action
    return keys


def of_keys(text: str, keys: Mapping[str, Action]) -> list[Action]:
    """An action for each character but spaces; UsageError for one that is not in `keys`."""
    pressed = "".join(text.split())
    for key in pressed:
        if key not in keys:
            fix = "" if len(keys) > 1 else "; give --key-map, this model's world has none of its own"
            raise UsageError(f"key {key!r} means nothing here (keys: {' '.join(keys)}){fix}")
    return [keys[key] for key in pressed]


def read_actions(path: str | Path, width: int) -> list[Action]:
    """Rows of `width` numbers: of a .csv, .jsonl (lists) or .npy file.

    A first line of a .csv that holds no number names the columns, and is skipped. Raises DataError, which names the
    row, for anything else. Nothing in a file is executed.
    """
    path = paths.local_copy(path)
    read = {".csv": _csv, ".jsonl": _jsonl, ".npy": _npy}.get(path.suffix.lower())
    if read is None:
        raise DataError(f"actions file {path} ends in {path.suffix!r}: write .csv, .jsonl or .npy")
    actions = []
    for where, row in read(path):
        action = _numbers(row)
        if action is None:
            raise DataError(f"{path}, {where}: {row!r} must be finite numbers")
        if len(action) != width:
            raise DataError(f"{path}, {where}: has {len(action)} numbers, this model is told {width}")
        actions.append(action)
    if not actions:
        raise DataError(f"actions file {path} holds none: write a row for each frame")
    return actions


def _csv(path: Path) -> list[tuple[str, list[str]]]:
    lines = read_lines(path, error=DataError)
    rows = [(f"line {number}", [part.strip(' "') for part in line.split(",")]) for number, line in lines]
    names = bool(rows) and not any(_numbers([part]) for part in rows[0][1])
    return rows[1:] if names else rows


def _jsonl(path: Path) -> list[tuple[str, object]]:
    lines = read_lines(path, error=DataError)
    return [(f"line {number}", paths.parse_json(line, name=f"{path}, line {number}")) for number, line in lines]


def _npy(path: Path) -> list[tuple[str, object]]:
    import numpy as np

    data = paths.read_bytes(path, limit=MOST_BYTES, error=DataError)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is no array of numbers ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
        shape = getattr(array, "shape", "several arrays")
        raise DataError(f"{path}: holds {shape}, give numbers [t a], a row for each frame")
    return [(f"row {number}", row) for number, row in enumerate(array.tolist())]


def _numbers(row: object) -> Action | None:
    """Finite numbers, or None."""
    if not isinstance(row, list) or any(isinstance(value, bool) for value in row):
        return None
    try:
        numbers = tuple(float(value) for value in row)
    except (TypeError, ValueError):
        return None
    return numbers if numbers and all(map(math.isfinite, numbers)) else None
