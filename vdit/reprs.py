"""Short representations: what a person sees who types the name of an object, in a terminal or a notebook.

    @short_repr
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Clip: ...

    Clip(frames=uint8 [17 64 96 3], times=float64 [17], fps=8.0)

Arrays are shown by type and shape, trees of arrays by their keys and sizes, configs by what differs from the default.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

LONGEST = 400  # characters of a representation
_FIELD = 90  # of one field in it
_TEXT = 40  # of a text

T = TypeVar("T", bound=type)


def short_repr(cls: T) -> T:
    """Gives a dataclass a `repr` of at most LONGEST characters, and a small table for notebooks."""
    cls.__repr__ = lambda self: _object(self, LONGEST)
    cls._repr_html_ = _table
    return cls


def shown(value: Any, longest: int = _FIELD) -> str:
    """A value in few words."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= _TEXT else f"{value[:_TEXT]!r}... ({len(value):,})"
    if isinstance(value, PurePath):
        return f"'{value}'"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} [{' '.join(map(str, value.shape))}]"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__name__")):
        return value.__name__
    if dataclasses.is_dataclass(value):
        return _object(value, longest)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _several(value, longest)
    return type(value).__name__


def cut(text: str, longest: int = 80) -> str:
    """A text of at most `longest` characters; what is longer ends in "..."."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def literal(value: Any, longest: int = 80) -> str:
    """A value from outside as one line of a message: texts in quotes, other values in ASCII."""
    return cut(repr(value) if isinstance(value, str) else ascii(value), longest)


def listed(items: Iterable[str], most: int = 4) -> str:
    """The first of many names, and how many more there are; "none" for no names."""
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more if items else "none"


def shown_bytes(count: float) -> str:
    """4294967296 -> "4 GiB"."""
    units = ["TiB", "GiB", "MiB", "KiB", "bytes"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop()
    unit = units[-1]
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


def _object(value: Any, longest: int) -> str:
    """Name(field=..., ...): as many of the fields as fit."""
    name = type(value).__name__
    parts, room = [], longest - len(name) - len("(, ...)")
    for field, default in _fields(value):
        try:
            held = getattr(value, field)
        except AttributeError:  # an object that is being made, or half loaded
            continue
        if default is not dataclasses.MISSING and _same(held, default):
            continue
        part = f"{field}={shown(held, min(_FIELD, room))}"
        room -= len(part) + 2
        if room < 0:
            return f"{name}({', '.join([*parts, '...'])})"
        parts.append(part)
    return f"{name}({', '.join(parts)})"


def _fields(value: Any) -> list[tuple[str, Any]]:
    """(name, default) of the fields that a repr shows."""

    def default(field: dataclasses.Field) -> Any:
        made = field.default_factory
        return field.default if made is dataclasses.MISSING else made()

    return [(field.name, default(field)) for field in dataclasses.fields(value) if field.repr]


def _same(value: Any, default: Any) -> bool:
    """Whether it is the default; arrays, which compare each number, are not."""
    same = value is default or (type(value) is type(default) and value == default)
    return same is True


def _several(value: Any, longest: int) -> str:
    count, numbers = _arrays(value)
    keys = ", ".join(map(str, list(value)[:4])) + (", ..." if len(value) > 4 else "")
    if count:
        of = f" under {keys}" if isinstance(value, Mapping) else ""
        return f"<{count:,} arrays of {_count(numbers)} numbers{of}>"
    if isinstance(value, Mapping):
        return f"<{len(value):,} under {keys}>"[:longest] if value else "{}"
    items = [shown(item, longest // 2) for item in list(value)[:3]]
    open_, close = {list: "[]", tuple: "()"}.get(type(value), "{}")
    more = ["..."] if len(value) > 3 else [""] if isinstance(value, tuple) and len(value) == 1 else []
    text = open_ + ", ".join(items + more).rstrip() + close
    return text if len(text) <= longest else f"<{len(value):,} of {type(value).__name__}>"


def _arrays(value: Any) -> tuple[int, int]:
    """(how many arrays are in a tree, how many numbers in them)."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        size = 1
        for side in value.shape:
            size *= side
        return 1, size
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    found = [_arrays(item) for item in inside]
    return sum(count for count, _ in found), sum(size for _, size in found)


def _count(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _table(self: Any) -> str:
    rows = []
    for field, _ in _fields(self):
        value = html.escape(shown(getattr(self, field, None)))
        rows.append(f"<tr><td style='text-align:left'>{field}</td><td style='text-align:left'>{value}</td></tr>")
    return f"<b>{type(self).__name__}</b><table>{''.join(rows)}</table>"
