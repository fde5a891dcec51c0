"""Which videos of a folder are finished, so that the same command, started again, makes only the others."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from vdit import buckets, paths
from vdit.errors import DataError, writing
from vdit.paths import MIB

NAME = "vdit-manifest.jsonl"
MOST_BYTES = 256 * MIB
_OF_RUN = ("vae", "dit", "experiment.json", "statistics.json", "tokenizer.model")  # what sampling reads of a run
_OF_MODEL = (".json", ".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".model", ".txt")


class Manifest:
    """The file vdit-manifest.jsonl of a folder of outputs: a line of JSON for each finished video.

    A line holds "id" (a digest of all that the video depends on), "file", "bytes", and what the video was made of.
    Lines are only added. A line counts while its file is there with as many bytes; lines that cannot be read, such as
    half of one that was being written when a machine went down, do not count.
    """

    def __init__(self, folder: Path):
        self.path = paths.path(folder) / NAME
        self._files = {id: file for id, file, size in self._read() if _size(file) == size}

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
    path = Path(path)
    if not path.is_dir():
        files = [path]
    elif (path / "experiment.json").is_file():
        files = [file for name in ("vae", "dit") for file in (path / name).rglob("*")]
        files += [path / name for name in _OF_RUN[2:]]
    else:
        files = [file for file in (*path.glob("*"), *path.glob("*/*")) if file.suffix.lower() in _OF_MODEL]
    there = ((file, _status(file)) for file in files)
    return sorted((str(file.absolute()), s.st_size, s.st_mtime_ns) for file, s in there if s is not None)


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except (OSError, ValueError):
        return None


def _size(file: paths.AnyPath) -> int | None:
    if not isinstance(file, Path):
        return paths.file_size(file) if paths.is_file(file) else None
    status = _status(file)
    return None if status is None else status.st_size
