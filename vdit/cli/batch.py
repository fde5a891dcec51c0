"""Many videos by one command: the prompts of a file, each with options of its own, and which videos are finished."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdit import buckets, paths
from vdit.cli.parser import Duration, UsageError, length, nearest, size
from vdit.data import captions
from vdit.data.tables import TABLES, read_lines, read_table
from vdit.errors import ConfigError, DataError, TextError, writing
from vdit.paths import MIB
from vdit.seeds import check_seed

if TYPE_CHECKING:
    from vdit.language.expansion import Expansion

OTHERS = ("negative", "seed", "frames", "size", "out")
# As of captions files, so that one of them is a prompts file too; what it says of videos is left aside.
COLUMNS = {name: (name,) for name in OTHERS} | {
    "prompt": ("prompt", "caption", "text", "description"),
    "negative": ("negative", "negative_prompt"),
    "file": captions.COLUMNS["file"],
}
MANIFEST = "vdit-manifest.jsonl"
MOST_BYTES = 256 * MIB
_OF_RUN = ("vae", "dit", "experiment.json", "statistics.json", "tokenizer.model")  # what sampling reads of a run
_OF_MODEL = (".json", ".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".model", ".txt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """A prompt, and what it wants; None is as the command says.

    size: (height, width). out: a name in its folder. expansion: what the prompt was made of (--expand).
    """

    prompt: str
    negative: str | None = None
    seed: int | None = None
    frames: Duration | None = None
    size: tuple[int, int] | None = None
    out: str | None = None
    expansion: Expansion | None = None


def read_prompts(path: str | Path) -> list[PromptSpec]:
    """The videos that a prompts file describes.

    Args:
        path: a .txt (a prompt a line; empty lines are skipped), or a table (vdit.data.tables) with the fields of
            PromptSpec. The prompt's may be called by any name of COLUMNS["prompt"]; unknown fields are refused.

    Raises:
        TextError: it cannot be read, has no prompt, or a line is ambiguous.
    """
    path = paths.path(path)
    if path.suffix.lower() not in (".txt", *TABLES):
        raise TextError(f"prompts file {path} ends in {path.suffix!r}: write .txt, .jsonl or .csv")
    if path.suffix.lower() == ".txt":
        specs = [PromptSpec(prompt=line) for _, line in read_lines(path, error=TextError)]
    else:
        records = read_table(path, columns=COLUMNS, needs="prompt", error=TextError, alone="prompt")
        specs = [_spec(record.fields, record.where) for record in records]
    if not specs:
        raise TextError(f"prompts file {path} holds no prompt: write one a line")
    return specs


def _spec(record: dict[str, Any], where: str) -> PromptSpec:
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


class Manifest:
    """The file vdit-manifest.jsonl of a folder of outputs: a line of JSON for each finished video.

    A line holds "id" (a digest of all that the video depends on), "file", "bytes", and what the video was made of.
    Lines are only added. A line counts while its file is there with as many bytes; lines that cannot be read, such as
    half of one that was being written when a machine went down, do not count.
    """

    def __init__(self, folder: Path):
        self.path = paths.path(folder) / MANIFEST
        self._files = {id: file for id, file, size in self._read() if _bytes_of(file) == size}

    def file(self, id: str) -> Path | None:
        """The finished video of this digest; None where there is none."""
        return self._files.get(id)

    def add(self, id: str, file: Path, about: dict[str, Any]) -> None:
        """Adds a finished video. about: what it was made of, for people."""
        name = os.path.relpath(file, self.path.parent)
        line = json.dumps({"id": id, "file": name, "bytes": paths.file_size(file)} | about, ensure_ascii=False) + "\n"
        if not isinstance(self.path, Path):  # a key of a bucket cannot grow: it is written again
            before = paths.read_bytes(self.path, limit=MOST_BYTES) if paths.is_file(self.path) else b""
            paths.write_atomic(self.path, before + line.encode("utf-8", errors="replace"))
            self._files[id] = file
            return
        with writing(self.path), self.path.open("ab+") as lines:
            if lines.tell() and not self._ends_a_line(lines):
                line = "\n" + line
            lines.write(line.encode("utf-8", errors="replace"))
        self._files[id] = file

    def _read(self) -> list[tuple[str, Path, int]]:
        try:
            if isinstance(self.path, Path):
                with self.path.open("rb") as file:
                    lines = file.read(MOST_BYTES).splitlines()
            else:
                lines = paths.read_bytes(self.path, limit=MOST_BYTES).splitlines()
        except (OSError, DataError):
            return []
        found = []
        for line in lines:
            try:
                entry = json.loads(line)
                found.append((str(entry["id"]), self.path.parent / str(entry["file"]), int(entry["bytes"])))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return found

    @staticmethod
    def _ends_a_line(file) -> bool:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def digests(items: list[dict[str, Any]]) -> list[str]:
    """A digest of each item, which holds all that a video depends on; of equal items each its own."""
    texts = [json.dumps(item, sort_keys=True, default=str) for item in items]
    seen: Counter[str] = Counter()
    found = []
    for text in texts:
        found.append(hashlib.sha256(f"{seen[text]} {text}".encode("utf-8", errors="replace")).hexdigest()[:32])
        seen[text] += 1
    return found


def state_of(path: str | Path) -> list[tuple]:
    """(name, bytes, time of change) of the files that a model, a LoRA or an image is read from, not their contents.

    Of a run only what sampling reads counts: training writes logs and latents beside it. Of a folder of public weights
    only files of the kinds that models consist of: what is made may be written into the folder itself (--model .).
    """
    if paths.is_hub(path):
        path = paths.local_folder(path)
    if paths.is_remote(path):
        url, below = paths.url_of(path), len(paths.url_of(path).partition("://")[2].rstrip("/")) + 1
        run = paths.is_file(paths.path(url) / "experiment.json")
        found = buckets.versions(url)
        return [(key, *map(str, version)) for key, version in found if not run or key[below:].split("/")[0] in _OF_RUN]
    path = Path(paths.shipped(path))
    if not path.is_dir():
        files = [path]
    elif (path / "experiment.json").is_file():
        files = [file for name in ("vae", "dit") for file in (path / name).rglob("*")]
        files += [path / name for name in _OF_RUN[2:]]
    else:
        files = [file for file in (*path.glob("*"), *path.glob("*/*")) if file.suffix.lower() in _OF_MODEL]
    there = ((file, _stat(file)) for file in files)
    return sorted((str(file.absolute()), s.st_size, s.st_mtime_ns) for file, s in there if s is not None)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except (OSError, ValueError):
        return None


def _bytes_of(file: paths.AnyPath) -> int | None:
    if not isinstance(file, Path):
        return paths.file_size(file) if paths.is_file(file) else None
    status = _stat(file)
    return None if status is None else status.st_size
