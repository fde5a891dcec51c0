"""Reading a sentencepiece .model file: what its own library does not tell of it."""

from __future__ import annotations

import dataclasses
import math
import struct
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdit.errors import TextError
from vdit.paths import MIB, read_bytes
from vdit.reprs import short_repr

UNIGRAM = 1
CONTROL, USER_DEFINED = 3, 4  # types of pieces, as in sentencepiece_model.proto
MODEL_LIMIT = 32 * MIB  # bytes of a .model file; umT5's has 4.5 MB for 256,000 pieces
_MOST_PIECES = 1 << 20


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PieceModel:
    """What a .model file holds: for each id its piece, its score (a log-probability) and its type.

    charsmap: the table of its normaliser, empty where it changes nothing. algorithm: UNIGRAM, or another.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    charsmap: bytes
    algorithm: int


def read_model_file(path: str | Path) -> bytes:
    """The bytes of a .model file; TextError if it is no regular file, or too large for one."""
    return read_bytes(path, limit=MODEL_LIMIT, error=TextError, fix="give the model's sentencepiece file")


def count_pieces(data: bytes) -> int:
    """How many pieces a .model file has; TextError unless it parses as one and has from 1 to about a million."""
    try:
        count = 0
        for field, value in _fields(data):
            count += field == 1 and isinstance(value, bytes)
            if count > _MOST_PIECES:
                raise TextError(f"a sentencepiece model of more than {_MOST_PIECES} pieces: give the right file")
    except (IndexError, ValueError):
        raise TextError("not a sentencepiece model: it does not parse as one") from None
    if not count:
        raise TextError("not a sentencepiece model: it has no pieces")
    return count


def read_piece_model(data: bytes) -> PieceModel:
    """The ModelProto of a .model file, decoded by hand: protobuf's wire format is simple, its versions are not."""
    count_pieces(data)
    pieces, scores, types = [], [], []
    charsmap, algorithm = b"", UNIGRAM
    try:
        for field, value in _fields(data):
            if field == 1:
                piece = dict(_fields(value))
                pieces.append(piece.get(1, b"").decode("utf-8"))
                scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
                types.append(piece.get(3, 1))
            elif field == 2:
                algorithm = dict(_fields(value)).get(3, UNIGRAM)
            elif field == 3:
                charsmap = dict(_fields(value)).get(2, b"")
    except (IndexError, ValueError, struct.error, AttributeError, TypeError):
        raise TextError("not a sentencepiece model: it does not parse as one") from None
    if not all(map(math.isfinite, scores)):
        raise TextError("not a sentencepiece model: the score of a piece is not a number")
    if not all(isinstance(kind, int) for kind in (*types, algorithm)) or not isinstance(charsmap, bytes):
        raise TextError("not a sentencepiece model: it does not parse as one")
    return PieceModel(
        pieces=tuple(pieces), scores=tuple(scores), types=tuple(types), charsmap=charsmap, algorithm=algorithm
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message; fixed-size and nested values as bytes."""
    i = 0
    while i < len(data):
        tag, i = _varint(data, i)
        kind = tag & 7
        if kind == 0:
            value, i = _varint(data, i)
        elif kind in (1, 2, 5):
            size, i = _varint(data, i) if kind == 2 else (8 if kind == 1 else 4, i)
            if i + size > len(data):
                raise ValueError("cut short")
            value, i = data[i : i + size], i + size
        else:
            raise ValueError("no such wire type")
        yield tag >> 3, value


def _varint(data: bytes, i: int) -> tuple[int, int]:
    byte = data[i]
    if byte < 128:
        return byte, i + 1
    value, shift = byte & 127, 7
    while byte >= 128:
        i += 1
        byte = data[i]
        value |= (byte & 127) << shift
        shift += 7
    return value, i + 1


class Charsmap:
    """A sentencepiece normaliser (NFKC and the like), as Hugging Face's `tokenizers` library applies it.

    It differs from sentencepiece's own: a grapheme cluster of fewer than 6 bytes becomes what the shortest of
    its beginnings in the table stands for, and the rest of the cluster is lost; in all else each character is
    looked up alone. (sentencepiece takes the longest match, wherever it ends.)
    """

    def __init__(self, table: bytes):
        size = int.from_bytes(table[:4], "little")
        if len(table) < 4 or size % 4 or 4 + size > len(table):
            raise TextError("not a sentencepiece model: the table of its normaliser is cut short")
        # A double-array trie (Darts-clone), then the replacements, each ended by a zero byte.
        self._units = np.frombuffer(table, "<u4", size // 4, 4).tolist()
        self._replacements = table[4 + size :]
        self._known: dict[str, str | None] = {}

    def __call__(self, text: str) -> str:
        return "".join(map(self._cluster, clusters(text)))

    def _cluster(self, cluster: str) -> str:
        if len(cluster) > 1 and len(cluster.encode("utf-8")) < 6:
            whole = self._find(cluster)
            if whole is not None:
                return whole
        found = ((char, self._find(char)) for char in cluster)
        return "".join(char if new is None else new for char, new in found)

    def _find(self, text: str) -> str | None:
        if text not in self._known:
            self._known[text] = self._search(text.encode("utf-8"))
        return self._known[text]

    def _search(self, key: bytes) -> str | None:
        """What the shortest beginning of `key` in the trie stands for."""
        units, node = self._units, _offset(self._units[0])
        for byte in key:
            node ^= byte
            if not byte or node >= len(units) or units[node] & 0x800000FF != byte:
                return None
            leaf = units[node] >> 8 & 1
            node ^= _offset(units[node])
            if leaf:
                start = units[node] & 0x7FFFFFFF
                return self._replacements[start : self._replacements.index(0, start)].decode("utf-8")
        return None


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)


# Grapheme clusters (Unicode Standard Annex 29), as far as clusters of fewer than 6 bytes go: conjoining jamo,
# flags and joined emoji are longer.
_EXTEND = frozenset(
    "\u200c\u200d\u09be\u09d7\u0b3e\u0b57\u0bbe\u0bd7\u0cc2\u0cd5\u0cd6\u0d3e\u0d57\u0dcf\u0ddf\u1b35\u302e\u302f"
    "\uff9e\uff9f\u0e33\u0eb3\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
)
# Spacing marks that stand alone all the same.
_ALONE = frozenset(
    "\u102b\u102c\u1038\u1062\u1063\u1064\u1067\u1068\u1069\u106a\u106b\u106c\u106d\u1083\u1087\u1088\u1089\u108a"
    "\u108b\u108c\u108f\u109a\u109b\u109c\u1a61\u1a63\u1a64\uaa7b\uaa7d\U00011720\U00011721"
)
_PREPEND = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd\U000111c2"
    "\U000111c3\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89"
    "\U00011d46\U00011f02"
)


def clusters(text: str) -> list[str]:
    """Text in grapheme clusters: str -> list of str, which joined give it back."""
    if text.isascii() and "\r" not in text:
        return list(text)
    found: list[str] = []
    before = None
    for char in text:
        kind = _kind(char)
        joined = before not in (None, "control") and (kind == "extend" or (before == "prepend" and kind != "control"))
        if joined or (char == "\n" and found and found[-1] == "\r"):
            found[-1] += char
        else:
            found.append(char)
        before = kind
    return found


def _kind(char: str) -> str:
    if char < "\x7f" and char >= " ":
        return "other"
    if char in _PREPEND:
        return "prepend"
    category = unicodedata.category(char)
    if char in _EXTEND or category in ("Mn", "Me") or (category == "Mc" and char not in _ALONE):
        return "extend"
    if "\U000e0020" <= char <= "\U000e007f":  # tags, of flags
        return "extend"
    return "control" if category in ("Cc", "Cf", "Zl", "Zp") else "other"
