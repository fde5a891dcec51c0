"""Prompts from a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdit.errors import TextError

FIELDS = ("prompt", "caption", "text")


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a .txt (one a line), .jsonl or .csv (field "prompt", "caption" or "text"); empty lines are skipped."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise TextError(f"prompts file {path} cannot be read: {reason}") from None
    read = {".txt": _lines, ".jsonl": _jsonl, ".csv": _csv}.get(path.suffix.lower())
    if read is None:
        raise TextError(f"prompts file {path} ends in {path.suffix!r}: write .txt, .jsonl or .csv")
    prompts = list(read(text, path))
    if not prompts:
        raise TextError(f"prompts file {path} holds no prompt: write one a line")
    return prompts


def _lines(text: str, path: Path) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())


def _jsonl(text: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TextError(f"{path}, line {number} is not JSON ({error})") from None
        yield record if isinstance(record, str) else _field(record, f"{path}, line {number}")


def _csv(text: str, path: Path) -> Iterator[str]:
    reader = csv.DictReader(text.splitlines())
    for record in reader:
        yield _field(record, f"{path}, line {reader.line_num}")


def _field(record: Any, where: str) -> str:
    found = [record[name] for name in FIELDS if record.get(name)] if isinstance(record, dict) else []
    if not found or not isinstance(found[0], str):
        raise TextError(f'{where}: has no text under "prompt", "caption" or "text"')
    return found[0]
