"""Trains a sentencepiece tokenizer from a file of captions.

    python tools/train_tokenizer.py captions.jsonl captions.model --vocab-size 4096

captions.jsonl: an object a line; .csv: a header and a row a caption; .txt (or any other): a caption a line.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from pathlib import Path

from vdit.errors import TextError, VditError
from vdit.text.tokenizer import load_tokenizer, train_tokenizer

FIELDS = ("caption", "text", "prompt", "long", "short")  # tried in this order unless --field is given


def read_captions(path: Path, field: str | None = None) -> list[str]:
    """The captions of a .jsonl, .csv or text file, in its order."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"{path}: cannot read the captions: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None
    # Not splitlines: it also cuts at marks that JSON allows inside a string.
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    elif path.suffix == ".jsonl":
        rows = [_parse(path, i, line) for i, line in lines]
    else:
        return [line for _, line in lines]
    return _column(path, rows, field)


def _parse(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise TextError(f"{path}: line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise TextError(f"{path}: line {number} is not a JSON object")
    return row


def _column(path: Path, rows: list[dict], field: str | None) -> list[str]:
    if not rows:
        raise TextError(f"{path}: holds no captions")
    there = [name for name in rows[0] if name is not None]
    wanted = [field] if field else FIELDS
    name = next((name for name in wanted if name in there), None)
    if name is None:
        raise TextError(f"{path}: has none of the fields {', '.join(wanted)}; choose one with --field "
                        f"({', '.join(there)})")
    return [value for row in rows if isinstance(value := row.get(name), str)]


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("captions", type=Path, help="a .jsonl, .csv or .txt file of captions")
    parser.add_argument("model", type=Path, help="the .model file to write")
    parser.add_argument("--vocab-size", type=int, default=4096, help="most pieces (default: %(default)s)")
    parser.add_argument("--field", help=f"field of the caption (default: the first of {', '.join(FIELDS)})")
    options = parser.parse_args(arguments)
    try:
        captions = read_captions(options.captions, options.field)
        train_tokenizer(captions, options.model, vocab_size=options.vocab_size)
        # Uncut lengths, from the file as written: what text.max_length should be able to hold.
        tokenizer = load_tokenizer(options.model, max_length=1 << 20)
        lengths = sorted(len(tokenizer.encode(caption)) for caption in captions)
    except VditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    longest, usual = lengths[-1], lengths[int(0.99 * (len(lengths) - 1))]
    print(f"{options.model}: {tokenizer.vocab_size} pieces from {len(captions)} captions; "
          f"99% have at most {usual} tokens, the longest {longest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
