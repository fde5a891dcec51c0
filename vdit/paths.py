"""Reading files that come from outside: regular files only, never more bytes than a stated limit.

    text = read_text("captions.txt", limit=MIB, error=DataError)
    config = read_json("config.json", limit=MIB, error=WeightsError, fix="download it again")

Every function raises the error class that it is given, with one line that names the path, the rule and the fix.
A pipe, a socket, a device or a folder is refused before anything is read from it, so nothing waits for a writer.
"""

from __future__ import annotations

import collections
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from vdit.errors import DataError, VditError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
JSON_DEPTH = 64
INT_DIGITS = 64  # transformers writes 10**30 for "no limit"

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path, *, error: type[VditError] = DataError, fix: str = "") -> BinaryIO:
    """Opens a file for reading bytes, if it is a regular file once links are followed.

    Args:
        path: the file.
        error: the class that is raised. fix: what the user can do, added to the message.

    Raises:
        error: the file is missing, cannot be read, or is not a regular file.
    """
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
