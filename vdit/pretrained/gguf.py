"""GGUF files: the header here, within bounds; the numbers by the `gguf` library, one tensor at a time.

    file = open_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    file.values["general.architecture"]                 # "llama"
    file.tensors.read("blk.0.attn_q.weight")            # float32, whatever it is stored as

A GGUF file is a magic number, counts, typed values by name, the names, shapes and types of the tensors, and their bytes
(the format of llama.cpp, versions 2 and 3). The library's reader believes every count that a file states; here each is
held against the file's size first. Quantised tensors are read as the numbers that they stand for.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from vdit.errors import WeightsError, install_command
from vdit.paths import MIB, open_regular
from vdit.pretrained.tensors import FIX, TensorFiles, TensorInfo, read_array, refuse_no_weights
from vdit.reprs import listed, short_repr

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Types that are read. The quantised ones are blocks of numbers with scales; see the library's GGML_QUANT_SIZES.
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
_HEADER_LIMIT = 64 * MIB  # of a header; vocabularies of 150,000 tokens with their merges have 6
_MOST = 1 << 20  # of tensors, values, and items of a list
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    kind: str
    start: int
    size: int


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class GGUF:
    """A GGUF file.

    Attributes:
        values: what it says of the model, by name: numbers, texts, and lists of them.
        tensors: its tensors, in numpy's order of axes.
        kinds: name of a tensor -> how it is stored, such as "Q4_1".
    """

    values: Mapping[str, Any]
    tensors: TensorFiles
    kinds: Mapping[str, str]


def open_gguf(path: str | Path) -> GGUF:
    """Open a GGUF file; its whole header is checked against its size.

    Args:
        path: the file.

    Returns:
        Its values, and its tensors; none is read yet.

    Raises:
        WeightsError: the file is missing, truncated, damaged, of another version, or has tensors of a type that is not
            read; or the `gguf` library is missing.
    """
    path = Path(path)
    kinds = _kinds()
    try:
        with open_regular(path, error=WeightsError, fix=FIX) as file:
            size = os.fstat(file.fileno()).st_size
            values, entries = _header(_Reader(path, file, size), kinds)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None

    def read(name: str) -> np.ndarray:
        entry = entries[name]
        if entry.kind in _PLAIN:
            return read_array(path, entry.start, TensorInfo(entry.shape, _PLAIN[entry.kind]))
        import gguf

        data = read_array(path, entry.start, TensorInfo((entry.size,), np.dtype(np.uint8)))
        kind = gguf.GGMLQuantizationType[entry.kind]
        rows = data.reshape(*entry.shape[:-1], -1)
        return np.asarray(gguf.quants.dequantize(rows, kind), np.float32).reshape(entry.shape)

    float32 = np.dtype(np.float32)
    info = {name: TensorInfo(entry.shape, _PLAIN.get(entry.kind, float32)) for name, entry in entries.items()}
    return GGUF(
        values=values,
        tensors=TensorFiles(path=path, info=info, largest_file=size, reader=read),
        kinds={name: entry.kind for name, entry in entries.items()},
    )


def _kinds() -> dict[int, tuple[str, int, int]]:
    """Number of a type -> (name, numbers of a block, bytes of a block)."""
    try:
        import gguf
    except ImportError:
        raise WeightsError(f"GGUF files need the library gguf: {install_command('lm')}") from None
    return {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}


class _Reader:
    """Reads numbers and texts of a header, and refuses to read past the file's end or a sensible header's."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.size, self.place = path, size, 0
        self.data = file.read(min(size, _HEADER_LIMIT))

    def damaged(self, reason: str) -> WeightsError:
        return WeightsError(f"{self.path}: is no whole GGUF file: {reason}; download it again")

    def take(self, count: int) -> bytes:
        end = self.place + count
        if count < 0 or end > len(self.data):
            raise self.damaged(f"its header goes on for {count} bytes at byte {self.place} of {self.size}")
        found, self.place = self.data[self.place : end], end
        return found

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def count(self, what: str, most: int = _MOST) -> int:
        found = self.number("Q")
        if found > most:
            raise self.damaged(f"{found} {what}, more than {most}")
        return found

    def text(self) -> str:
        try:
            return self.take(self.count("bytes of a text", _HEADER_LIMIT)).decode()
        except UnicodeDecodeError:
            raise self.damaged(f"a text before byte {self.place} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise self.damaged(f"a value of type {kind}")
        inner, count = self.number("I"), self.count("items of a list")
        if inner in _NUMBERS:
            code = _NUMBERS[inner]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))
        if inner != _TEXT:
            raise self.damaged(f"a list of type {inner}")
        return [self.text() for _ in range(count)]


def _header(reader: _Reader, kinds: Mapping[int, tuple[str, int, int]]) -> tuple[dict[str, Any], dict[str, _Entry]]:
    refuse_no_weights(reader.path, reader.data[:64])
    if reader.take(4) != MAGIC:
        raise reader.damaged("it does not begin with GGUF")
    version = reader.number("I")
    if version not in VERSIONS:
        raise WeightsError(f"{reader.path}: GGUF version {version} must be one of {listed(map(str, VERSIONS))}")
    tensors, count = reader.count("tensors"), reader.count("values")
    values: dict[str, Any] = {}
    for _ in range(count):
        name = reader.text()
        if name in values:
            raise reader.damaged(f"the value {name!r} is there twice")
        values[name] = reader.value(reader.number("I"))
    found = [_tensor(reader, kinds) for _ in range(tensors)]
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MIB or alignment & (alignment - 1):
        raise reader.damaged(f"general.alignment={alignment!r} must be a power of 2")
    begin = -(-reader.place // alignment) * alignment
    entries: dict[str, _Entry] = {}
    for name, entry in found:
        start = begin + entry.start
        if name in entries or entry.start % alignment:
            raise reader.damaged(f"the tensor {name!r} is there twice, or starts at byte {entry.start}")
        if start + entry.size > reader.size:
            end = start + entry.size
            raise WeightsError(f"{reader.path}: truncated: {name} ends at byte {end} of {reader.size}; {FIX}")
        entries[name] = entry._replace(start=start)
    return values, entries


def _tensor(reader: _Reader, kinds: Mapping[int, tuple[str, int, int]]) -> tuple[str, _Entry]:
    name, dims = reader.text(), reader.number("I")
    if dims > 8 or not name.isprintable():
        raise reader.damaged(f"a tensor {name[:80]!r} of {dims} axes")
    shape = tuple(reversed([reader.count("rows of a tensor", 1 << 40) for _ in range(dims)]))
    number, start = reader.number("I"), reader.number("Q")
    kind, block, size = kinds.get(number, (str(number), 1, 1))
    if kind not in _PLAIN and kind not in QUANTISED:
        known = ", ".join([*_PLAIN, *QUANTISED])
        raise WeightsError(f"{reader.path}: {name} is of type {kind}, must be one of {known}; take another file")
    elements = math.prod(shape)
    if elements > 1 << 62 or (shape[-1] if shape else 1) % block:
        raise reader.damaged(f"{name} ({kind}) has the shape {list(shape)}")
    return name, _Entry(shape, kind, start, elements // block * size)
