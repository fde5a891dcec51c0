"""captions.jsonl while it is written: one record a video, appended whole; a killed run loses none and doubles none.

A record has "file", and either "caption", "detailed" and "camera", or "problem" where a model gave no caption. Under
"provenance" stands where it is from: model, prompt, date, frames, tries, tokens_in, tokens_out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vdit import paths
from vdit.errors import DataError, OutputError

PROVENANCE = "provenance"
SIDECAR = "synthetic_captions.jsonl"  # beside captions that were there before; vdit.data.captions reads both
_LIMIT = 1 << 30  # bytes of a file
_DEPTH = 8
_EVERY = 50  # records between two uploads to a bucket


def is_written_here(path: paths.AnyPath) -> bool:
    """Whether every record of a captions file is one of this module: then it may be added to."""
    try:
        records = _records(path)[0]
    except DataError:
        return False
    return all(PROVENANCE in record for record in records)


class CaptionFile:
    """The records of a file, old and new. Use `opened`.

    Attributes:
        records: file name -> record, in their order.
    """

    def __init__(self, path: paths.AnyPath, records: Mapping[str, dict[str, Any]]):
        self.path, self.records = path, dict(records)
        self._unsent = 0

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str | Path, *, again: bool = False) -> Iterator[CaptionFile]:
        """Opens a file to add records to; makes it where it is missing.

        Args:
            path: the file, on a disk or in a bucket.
            again: forget records with a "problem", so that those videos are captioned again.

        Raises:
            OutputError: another process is writing it, or it holds records of somebody else.
            DataError: it cannot be read.
        """
        path = paths.path(path)
        with _locked(path):
            records, whole = _records(path) if paths.exists(path) else ([], 0)
            foreign = [record for record in records if PROVENANCE not in record]
            if foreign:
                raise OutputError(f"{path}: holds captions of another origin and is not changed; name another file: "
                                  "--out FILE")  # fmt: skip
            kept = {record["file"]: record for record in records if not (again and "problem" in record)}
            file = cls(path, kept)
            if isinstance(path, Path) and path.exists():
                if len(kept) < len(records):
                    file._rewrite()
                elif whole < path.stat().st_size:
                    os.truncate(path, whole)  # a record that a killed run had begun
            try:
                yield file
            finally:
                if file._unsent:
                    file._rewrite()

    def add(self, record: Mapping[str, Any]) -> None:
        """Writes a record; it is on the disk when this returns."""
        name = record["file"]
        if name in self.records:
            raise OutputError(f"{self.path}: already has a record of {name!r}")
        self.records[name] = dict(record)
        if not isinstance(self.path, Path):
            self._unsent += 1
            if self._unsent >= _EVERY:
                self._rewrite()
            return
        with open(self.path, "ab") as out:
            out.write(_line(record))
            out.flush()
            os.fsync(out.fileno())

    def _rewrite(self) -> None:
        paths.write_atomic(self.path, b"".join(map(_line, self.records.values())))
        self._unsent = 0


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _records(path: paths.AnyPath) -> tuple[list[dict[str, Any]], int]:
    """(records, bytes up to the end of the last whole one). Only the last line may be broken: it was being written."""
    data = paths.read_bytes(path, limit=_LIMIT, error=DataError)
    whole = data.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(data[:whole].split(b"\n"), start=1):
        if line.strip():
            record = paths.parse_json(line, name=f"{path}, line {number}", depth=_DEPTH, error=DataError)
            if not isinstance(record, dict) or not isinstance(record.get("file"), str):
                raise DataError(f'{path}, line {number}: is no record of a video: must have "file"')
            records.append(record)
    return records, whole


@contextlib.contextmanager
def _locked(path: paths.AnyPath) -> Iterator[None]:
    """One process at a time writes a file of this disk."""
    if not isinstance(path, Path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the file itself: it is replaced by another one where records are forgotten.
    with open(path.with_name(f".{path.name}.lock"), "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{path}: is being written by another process; wait for it, or end it") from None
        except OSError:
            pass  # a filesystem without locks
        yield
