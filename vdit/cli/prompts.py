"""Prompts from a file, each with options of its own."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from vdit import paths
from vdit.cli.parser import Duration, UsageError, length, nearest, size
from vdit.data import captions
from vdit.data.tables import TABLES, read_lines, read_table
from vdit.errors import ConfigError, TextError
from vdit.seeds import check_seed

OTHERS = ("negative", "seed", "frames", "size", "out")
# As of captions files, so that one of them is a prompts file too; what it says of videos is left aside.
COLUMNS = {name: (name,) for name in OTHERS} | {
    "prompt": ("prompt", "caption", "text", "description"),
    "negative": ("negative", "negative_prompt"),
    "file": captions.COLUMNS["file"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """A prompt, and what it wants; None is as the command says. size: (height, width). out: a name in its folder."""

    prompt: str
    negative: str | None = None
    seed: int | None = None
    frames: Duration | None = None
    size: tuple[int, int] | None = None
    out: str | None = None


def read_wishes(path: str | Path) -> list[PromptSpec]:
    """The videos that a prompts file describes.

    Args:
        path: a .txt (a prompt a line; empty lines are skipped), or a table (vdit.data.tables) with the fields of
            `Wish`. The prompt's may be called by any name of COLUMNS["prompt"]; unknown fields are refused.

    Raises:
        TextError: it cannot be read, has no prompt, or a line is ambiguous.
    """
    path = paths.path(path)
    if path.suffix.lower() not in (".txt", *TABLES):
        raise TextError(f"prompts file {path} ends in {path.suffix!r}: write .txt, .jsonl or .csv")
    if path.suffix.lower() == ".txt":
        wishes = [PromptSpec(prompt=line) for _, line in read_lines(path, error=TextError)]
    else:
        records = read_table(path, columns=COLUMNS, needs="prompt", error=TextError, alone="prompt")
        wishes = [_wish(record.fields, record.where) for record in records]
    if not wishes:
        raise TextError(f"prompts file {path} holds no prompt: write one a line")
    return wishes


def _wish(record: dict[str, Any], where: str) -> PromptSpec:
    prompt = record.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise TextError(f'{where}: has no text under "prompt", "caption" or "text"')
    for name in record:
        if name in COLUMNS["prompt"][1:]:
            raise TextError(f"{where}: has both \"prompt\" and {name!r}, which mean the same: keep one")
        if name not in COLUMNS:
            hint = nearest(name, OTHERS)
            raise TextError(f"{where}: field {name!r} is unknown{hint} (fields: prompt, {', '.join(OTHERS)})")
    return PromptSpec(
        prompt=prompt.strip(),
        negative=_text(record, "negative", where),
        seed=_seed(record, where),
        frames=_frames(record, where),
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
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 32:
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


def _frames(record: dict, where: str) -> Duration | None:
    """33, or "2s"."""
    value = record.get("frames")
    if value is None:
        return None
    try:
        return length(str(value) if type(value) is int else value if isinstance(value, str) else repr(value))
    except argparse.ArgumentTypeError as error:
        raise TextError(f"{where}: frames: {error}") from None


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
    if name is None:
        return None
    path = Path(name)
    if not path.name or "\0" in name or path.is_absolute() or ".." in path.parts:
        raise TextError(f"{where}: out is {name!r}, must be the name of a file in the folder of --out")
    return name
