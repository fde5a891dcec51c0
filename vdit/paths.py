"""The one module that opens a user's paths: local ones, and what lies in a bucket (gs://, s3://) or on a hub (hf://).

    folder = path("gs://bucket/run")             # pathlib.Path for a local path, etils.epath.Path for one in a bucket
    file = local_copy("s3://bucket/videos/a.mp4")  # a file on this disk, of the bounded cache (vdit.buckets)
    text = read_text("captions.txt", limit=MIB, error=DataError)
    config = read_json("config.json", limit=MIB, error=WeightsError, fix="download it again")

Every reading function raises the error class that it is given, with one line that names the path, the rule and the
fix. Only regular files are read, and never more bytes than a stated limit: a pipe, a socket, a device or a folder is
refused before anything is read from it, so nothing waits for a writer.
"""

from __future__ import annotations

import collections
import errno
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from vdit import buckets
from vdit.errors import DataError, VditError, writing

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
JSON_DEPTH = 64
DEMO = "demo"
INT_DIGITS = 64  # transformers writes 10**30 for "no limit"

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


AnyPath = Path | epath.Path  # what `path` returns


def path(name: str | os.PathLike) -> AnyPath:
    """The path that a name stands for.

    Args:
        name: a local path, gs://BUCKET/KEY or s3://BUCKET/KEY.

    Returns:
        A pathlib.Path for a local path, with everything that only a local file has (locks, times, links), and an
        `etils.epath.Path`, which has the methods that both share, for one in a bucket.

    Raises:
        DataError: the library that reads such buckets is not installed.
    """
    text = url_of(name)
    if text is None:
        return name if isinstance(name, Path) else Path(name)
    buckets.require(text)
    return epath.Path(text)


def shipped(name: str | os.PathLike) -> str | os.PathLike:
    """The folder of the model that ships with vdit for the name "demo", unless a folder of that name is there; any
    other name as it is.
    """
    return Path(__file__).parent / DEMO if str(name) == DEMO and not Path(DEMO).exists() else name


def url_of(name: str | os.PathLike) -> str | None:
    """"gs://bucket/key" or "s3://bucket/key" for a name in a bucket, else None.

    pathlib writes gs://bucket as gs:/bucket, which is understood too.
    """
    found = re.match(r"(gs|s3):/+", os.fspath(name))
    return None if found is None else f"{found[1]}://{os.fspath(name)[found.end() :]}"


def is_remote(name: str | os.PathLike) -> bool:
    """Whether a name is of a bucket: gs:// or s3://."""
    return url_of(name) is not None


def is_hub(name: str | os.PathLike) -> bool:
    """Whether a name is of a model hub: hf://org/name[@revision][/file]."""
    return re.match(r"hf:/+", os.fspath(name)) is not None


def is_file(name: str | os.PathLike) -> bool:
    """Whether there is a regular file, links followed."""
    place = path(name)
    return place.is_file() if isinstance(place, Path) else buckets.info(str(place)) is not None


def is_dir(name: str | os.PathLike) -> bool:
    """Whether there is a folder, or in a bucket any key below the name."""
    place = path(name)
    return place.is_dir() if isinstance(place, Path) else buckets.is_dir(str(place))


def exists(name: str | os.PathLike) -> bool:
    """Whether there is a file or a folder."""
    place = path(name)
    return place.exists() if isinstance(place, Path) else is_file(place) or is_dir(place)


def local_copy(name: str | os.PathLike, *, error: type[VditError] = DataError, fix: str = "") -> Path:
    """A file on this disk that holds what the named one holds.

    Args:
        name: a local file, which is returned as it is; or one in a bucket or on a hub, which is kept in a cache of
            bounded size (`VDIT_FILE_CACHE`, `VDIT_FILE_CACHE_GIB`). A copy is taken again where the original changed.
        error: the class that is raised. fix: what the user can do, added to the message.

    Raises:
        error: there is no such file or bucket, no right to read it, or the connection keeps failing.
    """
    if is_hub(name):
        from vdit import hub

        return hub.pull(os.fspath(name), error=error)
    url = url_of(name)
    if url is None:
        return name if isinstance(name, Path) else Path(name)
    with buckets.failures(url, error, fix):
        return buckets.fetch(url)


def local_folder(name: str | os.PathLike, *, error: type[VditError] = DataError, fix: str = "") -> Path:
    """A folder on this disk with all files of the named one; see `local_copy`. For weights and checkpoints."""
    if is_hub(name):
        from vdit import hub

        return hub.pull(os.fspath(name), error=error)
    url = url_of(name)
    if url is None:
        return name if isinstance(name, Path) else Path(name)
    with buckets.failures(url, error, fix):
        return buckets.fetch_folder(url)


def local_weights(name: str | os.PathLike, *, error: type[VditError] = DataError) -> Path:
    """The file or the folder of a name, on this disk; see `local_copy` and `local_folder`."""
    return (local_copy if is_remote(name) and is_file(name) else local_folder)(name, error=error)


def files_below(folder: str | os.PathLike) -> dict[str, int]:
    """Name relative to the folder -> bytes, of each regular file in it and in the folders inside it; sorted."""
    place = path(folder)
    if isinstance(place, Path):
        found = {file.relative_to(place).as_posix(): file for file in place.rglob("*")}
        return {name: found[name].stat().st_size for name in sorted(found) if found[name].is_file()}
    with buckets.failures(str(place), DataError):
        return buckets.sizes(str(place))


def version_of(name: str | os.PathLike) -> tuple | None:
    """Changes when the file does: size and times of a local file, size and generation of one in a bucket; None: none.
    """
    place = path(name)
    if not isinstance(place, Path):
        return buckets.version(str(place))
    try:
        status = place.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def write_atomic(name: str | os.PathLike, data: str | bytes, *, sync: bool = False) -> None:
    """Writes a file that appears whole or not at all, in a folder that is made where it is missing.

    Args:
        name: the file, which is replaced if it exists.
        data: all of it.
        sync: return only when the file and its name are on the disk, and would survive a loss of power.

    Raises:
        OutputError: the file cannot be written.
    """
    place, data = path(name), data.encode() if isinstance(data, str) else data
    if not isinstance(place, Path):
        with writing(place), buckets.failures(str(place), OSError):
            buckets.put(str(place), data)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.part")
    with writing(place):
        try:
            with part.open("wb") as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(part, place)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    if sync:
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Returns when the names in a local folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as reason:
        if reason.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network filesystems: no such call
            raise
    finally:
        os.close(handle)


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a file between a disk and a bucket in either direction, or within one; it appears whole."""
    target = path(target)
    if not isinstance(target, Path):
        with buckets.failures(str(target), OSError):
            buckets.send(local_copy(source), str(target))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        shutil.copyfile(local_copy(source), part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def copy_folder(source: str | os.PathLike, target: str | os.PathLike, *, last: tuple[str, ...] = ()) -> None:
    """Copies all files of a folder. last: names of files that are copied after all others, in this order."""
    for name in sorted(files_below(source), key=lambda name: (last.index(name) + 1 if name in last else 0, name)):
        copy_file(path(source) / name, path(target) / name)


def move_folder(source: str | os.PathLike, target: str | os.PathLike, *, last: tuple[str, ...] = ()) -> None:
    """Gives a folder another name. In a bucket every key is copied there, `last` at the end, then the old ones go."""
    source, target = path(source), path(target)
    if isinstance(source, Path):
        source.rename(target)
        return
    with buckets.failures(str(source), OSError):
        buckets.move(str(source), str(target), last)


def remove_folder(folder: str | os.PathLike, *, first: tuple[str, ...] = ()) -> None:
    """Removes a folder with all in it, if it is there. first: names of files that go before all others."""
    folder = path(folder)
    if isinstance(folder, Path):
        for name in first:
            (folder / name).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        return
    with buckets.failures(str(folder), OSError):
        buckets.remove(str(folder), first)


def names_in(folder: str | os.PathLike) -> list[str]:
    """Names of what is directly in a folder, sorted; [] where there is none."""
    place = path(folder)
    if isinstance(place, Path):
        return sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
    with buckets.failures(str(place), OSError):
        return buckets.names(str(place))


def open_regular(path: str | Path, *, error: type[VditError] = DataError, fix: str = "") -> BinaryIO:
    """Opens a file for reading bytes, if it is a regular file once links are followed.

    Args:
        path: the file.
        error: the class that is raised. fix: what the user can do, added to the message.

    Raises:
        error: the file is missing, cannot be read, or is not a regular file.
    """
    path = local_copy(path, error=error, fix=fix)
    try:
        _require_regular(path, os.stat(path), error, fix)
        # The file may have been replaced since: without O_NONBLOCK, opening a pipe waits for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _require_regular(path, os.fstat(handle), error, fix)
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except OSError as reason:
        raise _failure(path, reason, error, fix) from None
    except ValueError:  # a NUL in the name
        raise error(_message(path, "is not a possible file name", fix)) from None


def file_size(path: str | Path, *, error: type[VditError] = DataError, fix: str = "") -> int:
    """The number of bytes of a regular file; raises what `open_regular` raises."""
    url = url_of(path)
    if url is not None:
        with buckets.failures(url, error, fix):
            return buckets.size(url)
    with open_regular(path, error=error, fix=fix) as file:
        return os.fstat(file.fileno()).st_size


def read_bytes(path: str | Path, *, limit: int, error: type[VditError] = DataError, fix: str = "") -> bytes:
    """All bytes of a regular file.

    Args:
        path: the file.
        limit: the most bytes that such a file may have.
        error: the class that is raised. fix: what the user can do, added to the message.

    Raises:
        error: the file is missing, cannot be read, is not a regular file, or is larger than `limit`.
    """
    url = url_of(path)
    if url is not None:
        with buckets.failures(url, error, fix):
            size = buckets.size(url)
            data = b"" if size > limit else buckets.read(url)
    else:
        with open_regular(path, error=error, fix=fix) as file:
            try:
                size = os.fstat(file.fileno()).st_size
                data = b"" if size > limit else file.read(limit + 1)  # a file that grows is cut short too
            except OSError as reason:
                raise _failure(path, reason, error, fix) from None
    if max(size, len(data)) > limit:
        rule = f"has {max(size, len(data))} bytes, more than the limit of {limit} for such a file"
        raise error(_message(path, rule, fix or "give the right file"))
    return data


def read_text(
    path: str | Path, *, limit: int, encoding: str = "utf-8", error: type[VditError] = DataError, fix: str = ""
) -> str:
    """The text of a regular file; raises what `read_bytes` raises, and `error` where bytes are not of `encoding`."""
    data = read_bytes(path, limit=limit, error=error, fix=fix)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as reason:
        rule = f"is not {encoding} text (byte {reason.start} is 0x{data[reason.start]:02x})"
        raise error(_message(path, rule, fix or "save it in that encoding")) from None


def read_json(
    path: str | Path,
    *,
    limit: int,
    depth: int = JSON_DEPTH,
    error: type[VditError] = DataError,
    fix: str = "",
) -> Any:
    """The value in a JSON file; raises what `read_text` and `parse_json` raise."""
    text = read_text(path, limit=limit, encoding="utf-8-sig", error=error, fix=fix)
    return parse_json(text, name=path, depth=depth, error=error, fix=fix)


def parse_json(
    text: str | bytes,
    *,
    name: str | Path,
    depth: int = JSON_DEPTH,
    error: type[VditError] = DataError,
    fix: str = "",
) -> Any:
    """Parses JSON strictly.

    Infinity is read, since schedulers of public models hold it; whoever uses a number checks its range.

    Args:
        text: the JSON. name: where it comes from, for messages.
        depth: the most lists and objects inside each other.
        error: the class that is raised. fix: what the user can do, added to the message.

    Raises:
        error: `text` is not JSON, has one key twice in an object, nests deeper than `depth`, or holds NaN, an integer
            of more than 64 digits, or half of a surrogate pair.
    """

    def refuse(rule: str) -> None:
        raise error(_message(name, rule, fix))

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            counts = collections.Counter(key for key, _ in items)
            refuse(f"has the key {counts.most_common(1)[0][0]!r} twice in one object")
        return found

    def integer(digits: str) -> int:
        if len(digits) > INT_DIGITS:
            refuse(f"holds an integer of {len(digits.lstrip('-'))} digits, more than {INT_DIGITS}")
        return int(digits)

    def constant(word: str) -> float:
        if word == "NaN":
            refuse("holds NaN, which is not a number")
        return -math.inf if word.startswith("-") else math.inf

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=integer, parse_constant=constant)
    except RecursionError:
        refuse(f"nests lists and objects deeper than {depth}")
    except ValueError as reason:
        refuse(f"is not JSON ({reason})")
    _check_inside(value, depth, refuse)
    return value


def _check_inside(value: Any, depth: int, refuse: Callable[[str], None]) -> None:
    """Walks a JSON value level by level, without recursion."""
    level = [value]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item):
                refuse(f"holds half of a surrogate pair, in {item!r}")
        level = inner
        if not level:
            return
    refuse(f"nests lists and objects deeper than {depth}")


def _require_regular(path: str | Path, status: os.stat_result, error: type[VditError], fix: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise error(_message(path, f"is {kind}, must be a regular file", fix))


def _failure(path: str | Path, reason: OSError, error: type[VditError], fix: str) -> VditError:
    return error(_message(path, f"cannot be read ({reason.strerror or reason})", fix))


def _message(path: str | Path, rule: str, fix: str) -> str:
    return f"{path}: {rule}; {fix}" if fix else f"{path}: {rule}"
