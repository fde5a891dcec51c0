"""Captions and prompts files, right and wrong, read as `vdit train --data` and `vdit sample --prompts` read them.

    python -m tools.fuzz.captions                   # 1,000 cases: two minutes
    python -m tools.fuzz.captions --seed 17         # one of them, with what it was and what came of it

A seed makes one of: a file of any layout, encoding and naming, which must be read as it was meant; the same with bytes
or lines changed, which must be refused in one line or give captions without what no file may give (NULs, halves of
surrogate pairs, replacement characters that the file does not hold, one video twice); a file made to hurt.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from tools.fuzz.common import Wrong, main
from vdit.cli.batch import read_prompts
from vdit.data import tables
from vdit.data.captions import COLUMNS, PROMPT_LISTS, TABLE_NAMES, read_captions
from vdit.errors import VditError

PIECES = (
    "a dog", "runs", "狗", "é", "e\u0301", "\u2028", "\x85", "\x1c", '"', "'", ",", ";", "\t", "\\", "\\n", "😀", "{",
    "]", "\u200b", "=1+1", "#", "  ", "x" * 200, "null", "NaN", "<b>", "%s", "\ufeff", "--out", "\ufb01", "\u0130",
)  # fmt: skip
PLAIN = ("dog", "Cat", "été", "e\u0301te\u0301", "日本", "a b", "a,b", "it's", "UPPER", "x.y", "-v", "#1")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
NASTY = (
    b"\0", b"\xff", b"\xfe\xff", b"\r", b"\n", b'"', b'""', b",", b",,,,", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\\ud800",
    b"\\u0000", b"{", b"}", b"[" * 50, b"9" * 50, b"1e999", b"NaN", b"\xc3", b"file,", b"../", b"/etc/passwd",
    b"\x92", b"\x1a", b"null", b"true", b'"caption"', b"\xef\xbb\xbf",
)  # fmt: skip

Captions = dict[str, tuple[str, ...]]


def make(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    """The case of a seed: its kind, and the call that reads it."""
    rng = random.Random(seed)
    kinds = (right, right, changed, changed, changed, changed, prompts, prompts, changed_prompts, hostile)
    return kinds[seed % len(kinds)](rng, folder)


def right(rng: random.Random, folder: Path) -> tuple[str, Callable[[], object]]:
    layout, wanted, _ = write(rng, folder)

    def call() -> object:
        read = read_captions(folder)
        got = {entry.file: entry.captions for entry in read.entries}
        if got != wanted:
            raise Wrong(f"{layout}: wrote {wanted!r}, read {got!r}")
        return read

    return f"right: {layout}", lambda: refuse_refusal(call)


def changed(rng: random.Random, folder: Path) -> tuple[str, Callable[[], object]]:
    layout, _, files = write(rng, folder)
    file = rng.choice(files)
    file.write_bytes(mutated(rng, file.read_bytes()))
    return f"changed: {layout}", lambda: checked(folder)


def checked(folder: Path) -> object:
    """Reads a folder; Wrong if a caption has what no reading may give."""
    data = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    read = read_captions(folder)
    names = [entry.file for entry in read.entries]
    if len(set(names)) < len(names):
        raise Wrong(f"one video twice: {names}")
    for entry in read.entries:
        check_texts(list(entry.captions), data)
    return read


def check_texts(texts: list[str], data: bytes) -> None:
    lost = any("\ufffd".encode(encoding) in data for encoding in ("utf-8", "utf-16-le", "utf-16-be"))
    for text in texts:
        bad = [letter for letter in text if letter == "\0" or "\ud800" <= letter <= "\udfff"]
        if bad or ("\ufffd" in text and not lost and b"ufffd" not in data.lower()):
            raise Wrong(f"{text!r} has what no file may give")
        if len(text) > len(data):
            raise Wrong(f"{text!r} is longer than its file")


def prompts(rng: random.Random, folder: Path) -> tuple[str, Callable[[], object]]:
    name, wanted, file = write_prompts(rng, folder)

    def call() -> object:
        got = [(wish.prompt, wish.seed) for wish in read_prompts(file)]
        if got != wanted:
            raise Wrong(f"{name}: wrote {wanted!r}, read {got!r}")
        return got

    return f"prompts: {name}", lambda: refuse_refusal(call)


def changed_prompts(rng: random.Random, folder: Path) -> tuple[str, Callable[[], object]]:
    name, _, file = write_prompts(rng, folder)
    file.write_bytes(mutated(rng, file.read_bytes()))

    def call() -> object:
        wishes = read_prompts(file)
        check_texts([text for wish in wishes for text in (wish.prompt, wish.negative or "", wish.out or "")],
                    file.read_bytes())
        return wishes

    return f"changed prompts: {name}", call


def refuse_refusal(call: Callable[[], object]) -> object:
    try:
        return call()
    except VditError as error:
        raise Wrong(f"refused what is right: {error}") from None


def write(rng: random.Random, folder: Path) -> tuple[str, Captions, list[Path]]:
    """Videos and captions of some layout: its name, what must be read, the files that say it."""
    stems = rng.sample(PLAIN, rng.randint(1, 5))
    names = [f"{rng.choice(('', '', 'in/', 'in/deep er/'))}{stem}{rng.choice(('.mp4', '.webm', '.GIF'))}"
             for stem in stems]
    if len({name.casefold().rpartition("/")[2] for name in names}) < len(names):
        names = names[:1]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    layout = rng.choice((*TABLE_NAMES, "lists", "beside"))
    breaks = layout.endswith((".jsonl", ".csv", ".tsv"))
    texts = {name: sentence(rng, breaks) for name in names}
    encoding = rng.choice(ENCODINGS)
    if layout == "lists":
        lists = {"videos.txt": "\n".join(names), rng.choice(PROMPT_LISTS): "\n".join(texts.values())}
        files = [encoded(folder / name, text, encoding, rng) for name, text in lists.items()]
    elif layout == "beside":
        for name in rng.sample(names, rng.randint(0, len(names) - 1)):
            texts[name] = ""
        files = [encoded((folder / name).with_suffix(".txt"), text, rng.choice(ENCODINGS), rng)
                 for name, text in texts.items() if text]
    else:
        file, caption = (rng.choice(COLUMNS[column]) for column in ("file", "caption"))
        file, caption = other_case(rng, file), other_case(rng, caption)
        rows = [{file: name, caption: texts[name]} for name in names]
        text = as_table(rng, rows, layout)
        files = [encoded(folder / layout, text, encoding, rng)]
    wanted = {name: (text.strip(),) for name, text in texts.items()}
    return f"{layout}, {encoding}", wanted, files or [encoded(folder / "beside.txt", "x", "utf-8", rng)]


def write_prompts(rng: random.Random, folder: Path) -> tuple[str, list[tuple[str, int | None]], Path]:
    """A prompts file: its name, (prompt, seed) of each line, the file."""
    suffix = rng.choice((".txt", ".jsonl", ".csv", ".tsv", ".json"))
    texts = [sentence(rng, suffix != ".txt") for _ in range(rng.randint(1, 6))]
    seeds = [rng.choice((None, 0, 7, 2**64 - 1)) if suffix != ".txt" else None for _ in texts]
    if suffix == ".txt":
        text = "\n\n".join(texts)
    else:
        key = other_case(rng, rng.choice(("prompt", "caption", "text")))
        text = as_table(rng, [{key: prompt, "seed": seed} for prompt, seed in zip(texts, seeds)], f"x{suffix}")
    file = encoded(folder / f"prompts{suffix}", text, encoding := rng.choice(ENCODINGS), rng)
    return f"{suffix}, {encoding}", [(text.strip(), seed) for text, seed in zip(texts, seeds)], file


def sentence(rng: random.Random, breaks: bool) -> str:
    """A caption that says something; line breaks only where the layout can hold them."""
    pieces = [rng.choice(PIECES) for _ in range(rng.randint(1, 6))]
    text = "a" + "".join(rng.choice(("", " ", "\n" if breaks else " ")) + piece for piece in pieces)
    return text + "z" * (rng.random() < 0.5)


def other_case(rng: random.Random, name: str) -> str:
    name = rng.choice((name, name.upper(), name.title(), f" {name}"))
    return name.replace("_", rng.choice(("_", " ", "-")))


def as_table(rng: random.Random, rows: list[dict], name: str) -> str:
    suffix = Path(name).suffix
    if suffix == ".json":
        return json.dumps(rows, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    if suffix == ".jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows)
    separator = "\t" if suffix == ".tsv" else rng.choice(",,,;")
    cells = [list(rows[0]), *(["" if value is None else str(value) for value in row.values()] for row in rows)]
    lines = [separator.join(field(cell, separator, rng) for cell in row) for row in cells]
    return "\n".join(lines) + rng.choice(("", "\n", "\n\n"))


def field(text: str, separator: str, rng: random.Random) -> str:
    needs = any(letter in text for letter in (separator, '"', "\n", "\r")) or text != text.strip()
    return '"' + text.replace('"', '""') + '"' if needs or rng.random() < 0.3 else text


def encoded(file: Path, text: str, encoding: str, rng: random.Random) -> Path:
    file.write_bytes(text.replace("\n", rng.choice(("\n", "\n", "\r\n"))).encode(encoding))
    return file


def mutated(rng: random.Random, data: bytes) -> bytes:
    """One to six changes: bytes flipped, cut, doubled, moved, or nasty ones put in."""
    data = bytearray(data or b"x")
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randint(1, 30))
        change = rng.randrange(5)
        if change == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            del data[at:end]
        elif change == 2:
            data[at:at] = data[at:end] * rng.randint(1, 3)
        elif change == 3:
            data[at:at] = rng.choice(NASTY)
        else:
            data = data[rng.randrange(len(data) + 1):] + data if rng.random() < 0.2 else data
        data = data or bytearray(b"x")
    return bytes(data)


def hostile(rng: random.Random, folder: Path) -> tuple[str, Callable[[], object]]:
    """Files that are large, deep, or no files."""
    (folder / "a.mp4").write_bytes(b"")
    kind = rng.choice(sorted(HOSTILE))
    HOSTILE[kind](folder)
    file = next(path for path in folder.iterdir() if path.name != "a.mp4")
    if rng.random() < 0.5:
        return f"hostile: {kind}", lambda: read_captions(folder, file.name)
    return f"hostile prompts: {kind}", lambda: read_prompts(file)


def _large(name: str, size: int = tables.LIMIT - 1, start: bytes = b"", fill: bytes = b"\0") -> Callable[[Path], None]:
    def write_file(folder: Path) -> None:
        (folder / name).write_bytes(start + fill * ((size - len(start)) // len(fill)))

    return write_file


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a pipe": lambda folder: os.mkfifo(folder / "c.csv"),
    "a folder": lambda folder: (folder / "c.jsonl").mkdir(),
    "a link to itself": lambda folder: (folder / "c.txt").symlink_to("c.txt"),
    "a device": lambda folder: (folder / "c.txt").symlink_to("/dev/zero"),
    "beyond the limit": _large("c.csv", tables.LIMIT + 1),
    "zeros": _large("c.jsonl"),
    "commas": _large("c.csv", start=b"file,caption\n", fill=b","),
    "columns": _large("c.csv", 4 << 20, start=b"file", fill=b",caption"),
    "quotes": _large("c.csv", start=b"file,caption\n", fill=b'"'),
    "one field": _large("c.csv", start=b'file,caption\na.mp4,"', fill=b"x\n" * 400),
    "line breaks": _large("c.txt", fill=b"\n"),
    "brackets": _large("c.jsonl", fill=b"["),
    "lists": _large("c.json", start=b"[", fill=b"[],"),
    "lists in a line": _large("c.jsonl", start=b"[", fill=b"[],"),
    "digits": _large("c.jsonl", 1 << 20, start=b'{"file": ', fill=b"9"),
    "one letter a line": _large("c.txt", 400_000, fill=b"a\n"),
    "wide letters": _large("c.csv", 32 << 20, start="file,caption\na.mp4,😀".encode(), fill=b"x"),
    "records": _large("c.jsonl", 1 << 20, fill=b'{"file": "a.mp4", "caption": "a"}\n'),
}

if __name__ == "__main__":
    sys.exit(main(make, cases=1000, description=__doc__))
