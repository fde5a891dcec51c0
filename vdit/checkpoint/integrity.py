"""The checksums of a step: a sha256 of every file, written after the save and compared before every use.

Orbax itself silently reads a flipped bit back. Each host reads its part of the files, in several threads; the first
one writes all checksums into the step's last file, which finalizes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vdit import buckets, paths
from vdit.checkpoint.files import FINAL, PARTIAL
from vdit.checkpoint.hosts import Exchange
from vdit.errors import CheckpointError, DataError
from vdit.paths import MIB, AnyPath, open_regular, parse_json, read_text

MANIFEST = FINAL
_LARGEST = 64 * MIB  # bytes of a manifest
_THREADS = 8  # hashing lets go of the interpreter: as many files at a time as a disk array likes
# Folder -> sizes and times of its files when they were last found whole by this process: the way from a folder to a
# model asks several times, and hashing terabytes once is enough.
_whole: dict[AnyPath, tuple] = {}


def files_in(folder: AnyPath) -> dict[str, int]:
    """Name -> bytes of each file of a step but its manifest."""
    own = (MANIFEST, MANIFEST + PARTIAL)
    return {name: size for name, size in paths.files_below(folder).items() if name.rpartition("/")[2] not in own}


def process_shard(files: dict[str, int], index: int, count: int) -> list[str]:
    """The files that host `index` of `count` reads: every name is in one share, and bytes are spread evenly."""
    loads, mine = [0] * count, []
    for name in sorted(files, key=lambda name: (-files[name], name)):
        host = min(range(count), key=loads.__getitem__)
        loads[host] += files[name] + 4096  # opening counts, too
        if host == index:
            mine.append(name)
    return mine


def checksums(folder: AnyPath, names: Iterable[str], *, flush: bool = False) -> dict[str, str | None]:
    """Name -> sha256 of the file, None if it cannot be read. flush: sees it on the disk before."""

    def one(name: str) -> str | None:
        try:
            if not isinstance(folder, Path):
                return buckets.digest(str(folder / name))
            with open_regular(folder / name, error=CheckpointError) as file:
                if flush:
                    os.fsync(file.fileno())
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, CheckpointError):
            return None

    names = list(names)
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(one, names)))


def my_checksums(folder: AnyPath, exchange: Exchange) -> dict[str, str | None]:
    """The sums of this host's share of a step just written, with its files seen on the disk."""
    return checksums(folder, process_shard(files_in(folder), exchange.index, exchange.count), flush=True)


def write_manifest(folder: AnyPath, found: Iterable[dict[str, str | None]] = ()) -> None:
    """Finalizes a step. found: sums that hosts have computed; those that lack are computed here."""
    known = {name: digest for part in found for name, digest in part.items() if digest is not None}
    names = sorted(files_in(folder))
    known |= checksums(folder, [name for name in names if name not in known], flush=True)
    lost = [name for name in names if known[name] is None]
    if lost:
        raise OSError(f"{lost[0]} cannot be read back")
    if isinstance(folder, Path):
        for entry in (*(entry for entry in folder.rglob("*") if entry.is_dir()), folder, folder.parent):
            paths.sync_folder(entry)
    listed = {name: known[name] for name in names}
    paths.write_atomic(folder / MANIFEST, json.dumps(listed | {MANIFEST: _own(listed)}, indent=1), sync=True)


def is_finalized(folder: AnyPath) -> bool:
    """Whether the step has a manifest; whether the manifest is right is another question."""
    return paths.is_file(folder / MANIFEST)


def damage(folder: AnyPath, *, all_hosts: bool = False) -> list[str]:
    """What is wrong with a finalized step, a line for each file: [] if nothing.

    all_hosts: all hosts ask at once; each reads its share, and all get the same answer.
    """
    stamp = _stamp(folder)
    if Exchange(alone=not all_hosts).agree(_whole.get(folder) == stamp, all):
        return []
    exchange, expected, mine = Exchange(alone=not all_hosts), _expected(folder), {}
    if expected is not None:
        sizes = {name: _bytes(folder / name) for name in expected}
        mine = checksums(folder, process_shard(sizes, exchange.index, exchange.count))
    problems = exchange.agree(mine, lambda parts: _compare(folder, parts))
    if not problems:
        _whole[folder] = stamp
    return problems


def _compare(folder: AnyPath, parts: list[dict[str, str | None]]) -> list[str]:
    expected = _expected(folder)
    if expected is None:
        return [f"{MANIFEST} is damaged"]
    now = {name: digest for part in parts for name, digest in part.items()}
    now |= checksums(folder, [name for name in expected if now.get(name) is None])
    wrong = [name for name, digest in expected.items() if now[name] != digest]
    return [f"{name} is {'damaged' if paths.is_file(folder / name) else 'missing'}" for name in wrong]


def _expected(folder: AnyPath) -> dict[str, str] | None:
    """What the manifest says, or None if it is not, to the byte, a manifest as it is written."""
    try:
        text = read_text(folder / MANIFEST, limit=_LARGEST, error=CheckpointError)
        expected = parse_json(text, name=MANIFEST, error=CheckpointError)
    except CheckpointError:
        return None
    if not isinstance(expected, dict) or not expected or json.dumps(expected, indent=1) != text:
        return None
    if not all(isinstance(digest, str) for digest in expected.values()):
        return None
    own = expected.pop(MANIFEST, None)  # manifests of old have none
    return expected if own in (None, _own(expected)) else None


def _own(listed: dict[str, str | None]) -> str:
    """The sum of the manifest's own words, so that harm to it is not taken for harm to a file."""
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _bytes(file: AnyPath) -> int:
    try:
        return paths.file_size(file)
    except (OSError, DataError):
        return 0


def _stamp(folder: AnyPath) -> tuple:
    if not isinstance(folder, Path):
        return buckets.versions(str(folder))
    return tuple((str(file), *_times(file)) for file in sorted(folder.rglob("*")) if not file.is_dir())


def _times(file: Path) -> tuple[int, ...]:
    try:
        stat = file.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
