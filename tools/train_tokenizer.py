"""Trains a sentencepiece tokenizer from a file of captions.

    python tools/train_tokenizer.py captions.jsonl captions.model --vocab-size 4096

captions.jsonl: an object a line; .csv: a header and a row a caption; .txt (or any other): a caption a line. Encodings
and names of columns are those of vdit.data.tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vdit.data.tables import TABLES, read_lines, read_table
from vdit.errors import TextError, VditError
from vdit.models.text.tokenizer import load_tokenizer, train_tokenizer

FIELDS = ("caption", "text", "prompt", "long", "short")  # the first goes before the others


def read_captions(path: Path, field: str | None = None) -> list[str]:
    """The captions of a table (vdit.data.tables) or text file, in its order."""
    if path.suffix.lower() not in TABLES:
        return [line for _, line in read_lines(path, error=TextError)]
    columns = {"caption": (field.strip().casefold(),) if field else FIELDS}
    captions = []
    for record in read_table(path, columns=columns, needs="caption", error=TextError):
        caption = record.fields.get("caption")
        if not isinstance(caption, str):
            there = ", ".join(record.fields)
            raise TextError(f"{record.where}: has no text under {columns['caption']}; choose with --field ({there})")
        captions.append(caption)
    if not captions:
        raise TextError(f"{path}: holds no captions")
    return captions


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
