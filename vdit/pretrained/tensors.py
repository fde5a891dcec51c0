"""What the tensors of a public checkpoint look like to the rest of vdit, and the safetensors format.

A safetensors file is 8 bytes of length, a JSON header, then the tensors back to back. It is read and written here
without the safetensors library, which maps whole files into memory (pages that count as resident while it is open) and
writes only what is in memory at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vdit.errors import WeightsError
from vdit.finite import all_finite
from vdit.paths import MIB, open_regular, parse_json
from vdit.paths import read_json as read_any_json
from vdit.reprs import listed, short_repr

CONFIG_LIMIT = 2 * MIB  # of a config.json; one of a thousand class names has 50 kB
INDEX_LIMIT = 8 * MIB  # of the index of shards: a line for each of up to 80,000 tensors
FIX = "download it again"
HEADER_LIMIT = 16 * MIB  # the format allows 100 MB; a model of 100,000 tensors has 15
_DEPTH = 4  # objects and lists of a header inside each other, and one more
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_ELEMENTS = 2**62  # numpy's shapes end there


class TensorInfo(NamedTuple):
    """What is known of a tensor without reading it.

    Attributes:
        shape: of the tensor.
        dtype: its type; may be one of ml_dtypes (bfloat16, float8).
    """

    shape: tuple[int, ...]
    dtype: np.dtype


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorFiles:
    """Named tensors in one file or several.

    Attributes:
        path: what was opened, for messages.
        info: name -> shape and type.
        largest_file: bytes of the largest of the files.
        reader: name -> the tensor, read from disk.
        metadata: texts that a safetensors header holds beside the tensors.
    """

    path: Path
    info: Mapping[str, TensorInfo]
    largest_file: int
    reader: Callable[[str], np.ndarray]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor, in memory of its own.

        Raises:
            WeightsError: there is no such tensor, its bytes are damaged, or it holds NaN or infinity.
        """
        if name not in self.info:
            raise WeightsError(f"{self.path}: has no tensor {name!r}; there are {listed(self.info)}")
        values = self.reader(name)
        if not all_finite(values):
            raise WeightsError(f"{self.path}: {name} holds NaN or infinity: it would spoil every video; {FIX}")
        return values


def read_json(path: str | Path, *, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """Read a JSON object from a file such as config.json.

    Args:
        path: the file.
        limit: the most bytes that it may have.

    Raises:
        WeightsError: the file is missing, too large, or no JSON object.
    """
    value = read_any_json(path, limit=limit, error=WeightsError, fix=FIX)
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: is {type(value).__name__}, must be a JSON object; take the right file")
    return value


def refuse_no_weights(path: Path, start: bytes) -> None:
    """Refuse a file that holds a download's stand-in for the weights, and say what it is.

    Args:
        path: the file, for the message.
        start: its first bytes.

    Raises:
        WeightsError: it is a pointer of Git LFS, or a web page.
    """
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is a pointer of Git LFS, not the weights; run `git lfs pull` in its repository")
    if start[:64].lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise WeightsError(f"{path}: is a web page, not the weights; download the file itself")


class _Entry(NamedTuple):
    info: TensorInfo
    start: int
    end: int


def open_safetensors(path: str | Path) -> TensorFiles:
    """Open one .safetensors file; its whole header is checked against its length.

    Raises:
        WeightsError: the file is missing, truncated or damaged, or holds a type that is not supported.
    """
    path = Path(path)
    try:
        with open_regular(path, error=WeightsError, fix=FIX) as file:
            size = os.fstat(file.fileno()).st_size
            entries, begin, metadata = _header(path, file, size)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    return TensorFiles(
        path=path,
        info={name: entry.info for name, entry in entries.items()},
        largest_file=size,
        reader=lambda name: read_array(path, begin + entries[name].start, entries[name].info),
        metadata=metadata,
    )


def read_array(path: Path, offset: int, info: TensorInfo) -> np.ndarray:
    """Read one array from a file, in memory of its own.

    Args:
        path: the file.
        offset: where the array's bytes start.
        info: its shape and type.

    Raises:
        WeightsError: the file cannot be read, or ends too early.
    """
    data = np.empty(math.prod(info.shape) * info.dtype.itemsize, np.uint8)
    try:
        with open_regular(path, error=WeightsError, fix=FIX) as file:
            file.seek(offset)
            view, got = memoryview(data), 0
            while got < len(view) and (count := file.readinto(view[got:])):
                got += count
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    if got < len(data):
        raise WeightsError(f"{path}: ends at a tensor that goes on for {len(data) - got} bytes; download it again")
    if info.dtype == np.bool_:
        return (data != 0).reshape(info.shape)  # a byte that is neither 0 nor 1 is no numpy bool
    return data.view(info.dtype).reshape(info.shape)


def write_safetensors(path: Path, info: Mapping[str, TensorInfo], read: Callable[[str], np.ndarray]) -> None:
    """Write a new safetensors file, one tensor after the other.

    Args:
        path: the file; it must not exist.
        info: name -> shape and type, in the order of writing.
        read: name -> the tensor's values.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files that do not say so
    end = 0
    for name, (shape, dtype) in info.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype) in info.items():
            values = read(name)
            if values.shape != tuple(shape) or values.dtype != dtype:
                raise WeightsError(f"{name}: is {values.dtype}{list(values.shape)}, was to be {dtype}{list(shape)}")
            file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _header(path: Path, file, size: int) -> tuple[dict[str, _Entry], int, dict[str, str]]:
    """Name -> entry, where the tensors begin, and the texts beside them."""
    start = file.read(8)
    refuse_no_weights(path, start + file.read(56))
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(HEADER_LIMIT, size - 8):
        raise _damaged(path, f"{size} bytes cannot hold a header of {length}")
    file.seek(8)
    text = file.read(length)
    try:
        header = parse_json(text, name="its header", depth=_DEPTH, error=WeightsError)
    except WeightsError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(header, dict):
        raise _damaged(path, "the header is no JSON object")
    texts = header.pop("__metadata__", None)
    metadata = {name: text for name, text in texts.items() if isinstance(text, str)} if isinstance(texts, dict) else {}
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise _damaged(path, f"{name} starts at byte {entry.start}, the tensor before it ends at {end}")
        end = entry.end
    there = size - 8 - length
    if there < end:
        raise WeightsError(f"{path}: truncated: it has {there} of its {end} bytes of tensors; download it again")
    if there > end:
        raise _damaged(path, f"{there - end} bytes follow its last tensor")
    return entries, 8 + length, metadata


def _entry(path: Path, name: str, value: Any) -> _Entry:
    if len(name) > 1000 or not name.isprintable():
        raise _damaged(path, "a name is no printable line")
    value = value if isinstance(value, dict) else {}
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or not isinstance(dtype, str):
        raise _damaged(path, f"the header's entry of {name!r} is {str(value)[:100]}")
    if dtype not in DTYPES:
        raise WeightsError(f"{path}: {name} is of type {dtype}, must be one of {', '.join(DTYPES)}; convert it")
    elements = math.prod(shape)
    if len(shape) > 32 or math.prod(max(size, 1) for size in shape) > _MOST_ELEMENTS:
        raise _damaged(path, f"{name} has the shape {str(shape)[:100]}")
    if offsets[1] - offsets[0] != elements * DTYPES[dtype].itemsize:
        raise _damaged(path, f"{name} ({dtype} {shape}) has {offsets[1] - offsets[0]} bytes")
    return _Entry(TensorInfo(tuple(shape), DTYPES[dtype]), *offsets)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _damaged(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: is no whole safetensors file: {reason}; download it again")
