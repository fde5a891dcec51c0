"""What is to be made, from a file: prompts, and what each of them wants otherwise."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdit.cli.parser import UsageError, nearest, size
from vdit.errors import ConfigError, TextError
from vdit.seeds import check_seed

PROMPT = ("prompt", "caption", "text")
OTHERS = ("negative", "seed", "frames", "size", "out")
IGNORED = ("file",)  # captions of videos name these


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """A prompt, and what it wants; None is as the command says. size: (height, width). out: a name in its folder."""

    prompt: str
    negative: str | None = None
    seed: int | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    out: str | None = None


def read_wishes(path: str | Path) -> list[Wish]:
    """Of a .txt (a prompt a line; empty lines are skipped), or of a .jsonl or .csv with the fields of `Wish`.

    The prompt's field may be called "prompt", "caption" or "text"; fields that are not known are refused.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise TextError(f"prompts file {path} cannot be read: {reason}") from None
    read = {".txt": _lines, ".jsonl": _jsonl, ".csv": _csv}.get(path.suffix.lower())
    if read is None:
        raise TextError(f"prompts file {path} ends in {path.suffix!r}: write .txt, .jsonl or .csv")
    wishes = list(read(text, path))
    if not wishes:
        raise TextError(f"prompts file {path} holds no prompt: write one a line")
    return wishes


def _lines(text: str, path: Path) -> Iterator[Wish]:
    return (Wish(prompt=line.strip()) for line in text.splitlines() if line.strip())


def _jsonl(text: str, path: Path) -> Iterator[Wish]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TextError(f"{path}, line {number} is not JSON ({error})") from None
        yield _wish({"prompt": record} if isinstance(record, str) else record, f"{path}, line {number}")


def _csv(text: str, path: Path) -> Iterator[Wish]:
    reader = csv.DictReader(text.splitlines())
    for record in reader:
        where = f"{path}, line {reader.line_num}"
        if None in record:
            raise TextError(f"{where}: has more fields than the first line names: quote texts with commas")
        yield _wish({name.strip(): value for name, value in record.items() if value}, where)


def _wish(record: Any, where: str) -> Wish:
    record = {k: v for k, v in record.items() if v is not None} if isinstance(record, dict) else {}
    prompts = [record.pop(name) for name in PROMPT if name in record]
    if not prompts or not isinstance(prompts[0], str) or not prompts[0]:
        raise TextError(f'{where}: has no text under "prompt", "caption" or "text"')
    for name in record:
        if name not in OTHERS + IGNORED:
            hint = nearest(name, OTHERS)
            raise TextError(f"{where}: field {name!r} is unknown{hint} (fields: prompt, {', '.join(OTHERS)})")
    return Wish(
        prompt=prompts[0],
        negative=_text(record, "negative", where),
        seed=_seed(record, where),
        frames=_number(record, "frames", 1, where),
        size=_size(record, where),
        out=_out(record, where),
    )


def _text(record: dict, name: str, where: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise TextError(f"{where}: {name} is {value!r}, must be a text")
    return value


def _number(record: dict, name: str, least: int, where: str) -> int | None:
    value = record.get(name)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if value is not None and (type(value) is not int or value < least):
        raise TextError(f"{where}: {name} is {value!r}, must be a whole number from {least} up")
    return value


def _seed(record: dict, where: str) -> int | None:
    value = _number(record, "seed", 0, where)
    try:
        return None if value is None else check_seed(value)
    except ConfigError as error:
        raise TextError(f"{where}: {error}") from None


def _size(record: dict, where: str) -> tuple[int, int] | None:
    """"64x96" or [64, 96]: height and width."""
    value = record.get("size")
    if value is None:
        return None
    try:
        return size("x".join(map(str, value)) if isinstance(value, list) else str(value))
    except UsageError as error:
        raise TextError(f"{where}: {error}") from None


def _out(record: dict, where: str) -> str | None:
    name = _text(record, "out", where)
    if name is not None and (not name or Path(name).is_absolute() or ".." in Path(name).parts):
        raise TextError(f"{where}: out is {name!r}, must be the name of a file in the folder of --out")
    return name
