"""Tables and texts that users write: captions of videos, prompts, scripts. The one place that reads them.

    for record in read_table("captions.csv", columns={"file": ("file", "file_name")}, needs="file", error=DataError):
        record.where, record.fields             # "captions.csv, line 2", {"file": "a.mp4", "caption": "a dog"}
    for number, line in read_lines("prompts.txt", error=TextError): ...

Encodings: UTF-8, with or without its mark; UTF-16 and UTF-32 with theirs. A file that is not UTF-8 is read as
Windows-1252 if its only bytes above 127 are the quotes, dashes and dots that are the same in all Windows code pages.
Everything else is refused. No caption ever holds a replacement character or a NUL that its file did not mean.

Lines end at a line feed, a carriage return or both, and nowhere else: U+2028 and U+0085 are part of a text.

Tables: .jsonl (.ndjson) has a JSON object a line, .json a list of objects, .csv and .tsv a first line that names the
columns. Names of columns are compared without case, without blanks around them, and with blank, "-" and "_" as one
letter. A .csv may be separated by ";" or tabs if its first line makes that certain. A quoted field may hold separators
and line breaks. A row with more or fewer fields than the first line names is refused, since a text may have been cut
at a comma.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import csv
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdit import paths
from vdit.errors import VditError
from vdit.reprs import literal, short_repr

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
LIMIT = 128 * paths.MIB  # of a file; less would do for most, more takes gigabytes to read
MOST_LINES = 1_000_000
MOST_FIELDS = 10_000  # of a row
LONGEST = 4 * paths.MIB  # letters of a record or a field
WHOLE = 16 * paths.MIB  # of a .json file, which is not read line by line
_DEPTH = 16  # of JSON in a record: fields that nobody reads may nest

_MARKS = (  # the longest first: UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
# Ellipsis, single and double quotes, bullet, dashes, trade mark: the same character in Windows-1250 to 1258.
_SAME_IN_ALL = bytes([0x85, *range(0x91, 0x98), 0x99])
_ENCODE = "save it as UTF-8"

Columns = Mapping[str, Sequence[str]]


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a table.

    where: the file and the line, for messages. fields: name -> value, as it is in the file; those without a value,
    and empty ones of .csv and .tsv, left out. Columns that were asked for stand under their own name, others under the
    name that the file gives them.
    """

    where: str
    fields: dict[str, Any]


def read_text(path: str | Path, *, error: type[VditError]) -> str:
    """The text of a file, its line ends as line feeds.

    Raises:
        error: the file cannot be read, is not a regular file, is larger than LIMIT, or its encoding is not certain.
    """
    text = _decode(paths.read_bytes(path, limit=LIMIT, error=error), path, error)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error(f"{path}, line {line}: holds a NUL, which is in no text (UTF-16 without its mark?): {_ENCODE}")
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    if text.count("\n") > MOST_LINES:
        raise error(f"{path}: has more than {MOST_LINES} lines: split it")
    return text


def read_lines(path: str | Path, *, error: type[VditError], empty: bool = False) -> list[tuple[int, str]]:
    """(number from 1 up, line without blanks around it) of each line that says something.

    Args:
        path: a text file.
        error: the class that is raised, as by `read_text`.
        empty: give empty lines too, except those at the end of the file.
    """
    lines = [line.strip() for line in read_text(path, error=error).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return [(number, line) for number, line in enumerate(lines, start=1) if line or empty]


def read_table(
    path: str | Path, *, columns: Columns, needs: str, error: type[VditError], alone: str | None = None
) -> Iterator[Record]:
    """The records of a table, one after the other.

    Args:
        path: a file that ends in one of TABLES.
        columns: name -> the names that it may have in the file. The first goes before the others, which are then
            columns that were not asked for; of the others only one may be there, or all must say the same.
        needs: the column of `columns` without which a table says nothing.
        error: the class that is raised, with the file and the line.
        alone: the column that a string in the place of a JSON object stands for; None refuses strings.

    Raises:
        error: as by `read_text`; and where a line cannot be understood for certain.
    """
    path = paths.path(path)
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise error(f"{path} ends in {path.suffix!r}: write {', '.join(TABLES[:-1])} or {TABLES[-1]}")
    names = _Names(columns, needs, error)
    text = read_text(path, error=error)
    if kind in (".csv", ".tsv"):
        records = _separated(text, path, names, "\t;," if kind == ".tsv" else ",\t;")
    else:
        records = _objects(text, path, names, alone, whole=kind == ".json")
    yield from records


@dataclasses.dataclass(frozen=True)
class _Names:
    """Which column a name stands for, and what is wrong where that is not certain."""

    columns: Columns
    needs: str
    error: type[VditError]

    @functools.cached_property
    def _meant(self) -> dict[str, str]:
        return {name: column for column, names in self.columns.items() for name in names}

    @functools.cached_property
    def _usual(self) -> dict[str, str]:
        return {column: names[0] for column, names in self.columns.items()}

    def column(self, name: str) -> str:
        return self._meant.get(_plain(name), name)

    def told(self) -> str:
        return ", ".join(f'"{name}"' for name in self.columns[self.needs])

    def record(self, items: Sequence[tuple[str, Any]], where: str) -> Record:
        """Checks the texts, and refuses two fields that mean the same and differ."""
        fields: dict[str, Any] = {}
        came: dict[str, str] = {}
        there = {_plain(name) for name, value in items if value}
        for name, value in items:
            column = self.column(name)
            usual = self._usual.get(column)
            column = name if usual in there and _plain(name) != usual else column
            if value is None or not name.strip() or (value == "" and column in fields):
                continue
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str) and "\0" in text:
                    raise self.error(f"{where}: {column!r} is {literal(text)}, which holds a NUL: leave it out")
            if fields.get(column, "") not in ("", value):
                raise self.error(f"{where}: has both {came[column]!r} and {name!r}, which mean the same: keep one")
            fields[column], came[column] = value, name
        return Record(where=where, fields=fields)


def _objects(text: str, path: Path, names: _Names, alone: str | None, *, whole: bool) -> Iterator[Record]:
    """The records of .json and .jsonl."""
    parse = {"depth": _DEPTH, "error": names.error, "fix": "write one JSON object a line"}
    if whole and text.lstrip().startswith("["):
        if len(text) > WHOLE:
            raise names.error(f"{path}: has {len(text)} letters, a .json at most {WHOLE}: write .jsonl")
        values = paths.parse_json(text, name=path, **parse | {"fix": "write a list of JSON objects"})
        located = ((f"{path}, record {number}", value) for number, value in enumerate(values, start=1))
    else:
        lines = ((f"{path}, line {number}", line) for number, line in enumerate(_lines(text), start=1) if line.strip())
        located = ((where, paths.parse_json(_short_enough(line, where, names.error), name=where, **parse))
                   for where, line in lines)
    for where, value in located:
        if alone is not None and isinstance(value, str):
            value = {alone: value}
        if not isinstance(value, dict):
            raise names.error(f'{where}: is {literal(value)}, give an object such as {{"{names.needs}": "..."}}')
        yield names.record(list(value.items()), where)


def _separated(text: str, path: Path, names: _Names, separators: str) -> Iterator[Record]:
    """The records of .csv and .tsv."""
    for separator in separators:
        rows = _rows(text, path, separator, names.error)
        with contextlib.suppress(names.error):  # quotes may pair up with another separator
            _, head = next(rows, ("", []))
            if names.needs in map(names.column, head):
                break
    else:
        line = literal(text.lstrip("\n").partition("\n")[0])
        raise names.error(f"{path}, line 1: is {line}, must name the columns, one of them {names.told()}")
    counts = collections.Counter(_plain(name) for name in head if name.strip())
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise names.error(f"{path}, line 1: has two columns called {twice!r}: keep one")
    for where, row in rows:
        if len(row) != len(head):
            amount = "more" if len(row) > len(head) else "fewer"
            raise names.error(
                f"{where}: has {amount} fields ({len(row)}) than the first line names ({len(head)}): put quotes around "
                f"a text with a {_SEPARATOR_NAMES[separator]}"
            )
        yield names.record([(name.strip(), text) for name, value in zip(head, row) if (text := value.strip())], where)


_SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def _rows(text: str, path: Path, separator: str, error: type[VditError]) -> Iterator[tuple[str, list[str]]]:
    """(file and line, fields) of each row that is not empty."""
    where = str(path)

    def lines() -> Iterator[str]:
        for line in _lines(text):
            if line.count(separator) > MOST_FIELDS:
                raise error(f"{where}: has more than {MOST_FIELDS} fields: it is no table of captions or prompts")
            yield f"{line}\n"

    reader = csv.reader(lines(), delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            with _long_fields():
                row = next(reader)
        except StopIteration:
            return
        except csv.Error as reason:
            fix = "write at most that" if "limit" in str(reason) else "write two quotes for one inside quotes"
            raise error(f"{where}: cannot be split into fields ({reason}): {fix}") from None
        if row and any(map(str.strip, row)):
            yield where, row


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Lets fields be longer than csv's own limit, 131,072 letters, which is one number for the whole process."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _decode(data: bytes, path: str | Path, error: type[VditError]) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as reason:
        if encoding == "utf-8" and not data.translate(None, delete=bytes(range(128)) + _SAME_IN_ALL):
            return data.decode("cp1252")
        line = data.count(b"\n", 0, reason.start) + 1 if encoding in ("utf-8", "utf-8-sig") else None
        place = f"byte {reason.start}" if line is None else f"line {line}, byte 0x{data[reason.start]:02x}"
        name = "UTF-8" if line is not None else encoding.upper()
        raise error(f"{path}: is not {name} text ({place}): {_ENCODE}") from None


@functools.lru_cache(maxsize=1024)
def _plain(name: str) -> str:
    return "_".join(name.strip().casefold().replace("-", " ").replace("_", " ").split())


def _lines(text: str) -> Iterator[str]:
    """As text.split("\n"), one at a time; an empty line at the end is none."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _short_enough(line: str, where: str, error: type[VditError]) -> str:
    if len(line) > LONGEST:
        raise error(f"{where}: has {len(line)} letters, a record at most {LONGEST}: shorten it")
    return line
