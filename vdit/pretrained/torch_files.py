"""Files of torch.save (.pt .pth .bin), without torch and without running anything that they say.

Such a file is a zip archive: data.pkl, a pickle that describes the tensors, and data/0, data/1, ..., the bytes of
their storages. Python's unpickler would call whatever the pickle names. Here a small machine walks over its opcodes,
knows those that torch writes for tensors in dicts, and refuses every other.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdit.errors import WeightsError
from vdit.paths import open_regular
from vdit.pretrained.safetensors_files import read_array
from vdit.pretrained.tensors import FIX, TensorFiles, TensorInfo, listed, refuse_no_weights
from vdit.pretrained.torch_pickle import Refused, Tensor, read_pickle

PICKLE_LIMIT = 64_000_000
DIRECTORY_LIMIT = 16_000_000  # of a zip archive: 100,000 tensors have 10 MB
_DEEPEST = 8
_MOST_VALUES = 2_000_000
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What zipfile raises on broken archives, found by breaking them
_BROKEN = (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError, KeyError, IndexError,
           RuntimeError, OverflowError, UnicodeError)  # fmt: skip


class _Member(NamedTuple):
    """A file of the archive, stored as it is."""

    offset: int
    size: int
    crc: int


def open_torch(path: str | Path, *, key: str | None = None) -> TensorFiles:
    """The tensors of a file that torch.save wrote (since torch 1.6): a dict of names to tensors, perhaps nested.

    key: where the tensors lie in nested dicts ("ema"; "a.b" for deeper); None: the only place there is.
    """
    path = Path(path)
    try:
        with open_regular(path, error=WeightsError, fix=FIX) as file:
            size = os.fstat(file.fileno()).st_size
            _refuse_other_formats(path, file.read(64))
            members = _members(path, file, size)
            root = _unpickle(path, file, members)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    tensors = _choose(path, root, key)
    for name, tensor in tensors.items():
        _check_bounds(path, name, tensor, members)
    checked: set[_Member] = set()
    return TensorFiles(
        path=path,
        info={name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in tensors.items()},
        largest_file=size,
        reader=lambda name: _read(path, name, tensors[name], members, checked),
    )


def _refuse_other_formats(path: Path, start: bytes) -> None:
    refuse_no_weights(path, start)
    if start.startswith(_LEGACY):
        raise WeightsError(
            f"{path}: is in torch's format from before 1.6; convert it once, with torch: "
            "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
        )
    if not start.startswith(b"PK\x03\x04"):
        raise WeightsError(f"{path}: is no zip archive as torch.save writes; download it again")


def _members(path: Path, file, size: int) -> dict[str, _Member]:
    """Files of the archive by name without its top folder, each inside the file and uncompressed."""
    members = {}
    try:
        infos = zipfile.ZipFile(_Bounded(file)).infolist()
        for info in infos:
            name = info.filename.partition("/")[2]
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise WeightsError(f"{path}: {info.filename} is compressed, torch never does that; convert it")
            file.seek(info.header_offset)
            head = file.read(30)
            if len(head) < 30 or head[:4] != b"PK\x03\x04":
                raise zipfile.BadZipFile(f"{info.filename} does not start where the archive says")
            offset = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
            if info.file_size != info.compress_size or not 0 <= offset <= offset + info.file_size <= size:
                raise zipfile.BadZipFile(f"{info.filename} lies outside the file")
            if name in members:
                raise zipfile.BadZipFile(f"{info.filename} is there twice")
            members[name] = _Member(offset, info.file_size, info.CRC)
    except _BROKEN as error:
        raise _damaged(path, error) from None
    return members


def _unpickle(path: Path, file, members: dict[str, _Member]) -> Any:
    """What data.pkl holds: dicts, lists, plain values, and Tensors that are not read yet."""
    if "constants.pkl" in members:
        raise WeightsError(f"{path}: is a TorchScript program, not weights; save its state_dict() with torch.save")
    if "data.pkl" not in members:
        raise _damaged(path, "it has no data.pkl")
    member = members["data.pkl"]
    if member.size > PICKLE_LIMIT:
        raise WeightsError(f"{path}: its pickle has {member.size} bytes, more than {PICKLE_LIMIT}; use safetensors")
    if (order := members.get("byteorder")) is not None:
        file.seek(order.offset)
        if file.read(min(order.size, 16)) != b"little":
            raise WeightsError(f"{path}: its numbers are not little-endian; save it again on a usual machine")
    file.seek(member.offset)
    stream = file.read(member.size)
    if zlib.crc32(stream) != member.crc and member.crc:
        raise _damaged(path, "data.pkl does not have its checksum")
    try:
        return read_pickle(stream)
    except Refused as error:
        raise WeightsError(f"{path}: {error}; save the state_dict alone, with torch.save or as safetensors") from None


def _choose(path: Path, root: Any, key: str | None) -> dict[str, Tensor]:
    """The dict of tensors that is meant."""
    if key is not None:
        for step in key.split("."):
            if not isinstance(root, dict) or step not in root:
                there = listed(map(str, root)) if isinstance(root, dict) else type(root).__name__
                raise WeightsError(f"{path}: has no {key!r}; there is {there}")
            root = root[step]
    places = _places(path, root)
    if not places:
        there = listed(map(str, root)) if isinstance(root, dict) else type(root).__name__
        raise WeightsError(f"{path}: holds no dict of names to tensors, but {there}; give its state_dict")
    if len(places) > 1 and "" not in places:
        rule = "save one of them alone, or from Python name it by key"
        raise WeightsError(f"{path}: holds several dicts of tensors; {rule}: {listed(places)}")
    place, state = ("", places[""]) if "" in places else next(iter(places.items()))
    tensors = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and isinstance(name, str):
            tensors[name] = value
        elif not _is_plain(value):
            where = f"{place}.{name}" if place else str(name)
            raise WeightsError(f"{path}: {where} is neither tensor nor number; save the state_dict alone")
    return tensors


def _places(path: Path, root: Any) -> dict[str, dict]:
    """Dicts under names that hold tensors, by their dotted path; "" is the root itself."""
    found: dict[str, dict] = {}
    waiting, seen = [("", root, 0)], 0
    while waiting:
        place, value, depth = waiting.pop()
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            continue
        seen += len(value)
        if depth > _DEEPEST or seen > _MOST_VALUES:
            raise WeightsError(f"{path}: nests its dicts more than {_DEEPEST} deep; save the state_dict alone")
        if any(isinstance(item, Tensor) for item in value.values()):
            found[place] = value
        else:
            waiting += [(f"{place}.{n}" if place else n, item, depth + 1) for n, item in value.items()]
    return dict(sorted(found.items()))


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Numbers, strings, and short lists of them: what a state dict may hold beside tensors."""
    if isinstance(value, list | tuple):
        return depth < 2 and len(value) <= 64 and all(_is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, bool | int | float | str | bytes) or value == {}


def _check_bounds(path: Path, name: str, tensor: Tensor, members: dict[str, _Member]) -> None:
    """A view lies inside its storage, the storage inside its file, and no view is larger than its storage."""
    member = members.get(f"data/{tensor.storage.key}")
    if member is None:
        raise _damaged(path, f"the bytes of {name} are missing")
    size = tensor.storage.count * tensor.storage.itemsize
    if size > member.size:
        raise WeightsError(f"{path}: truncated: {name} needs {size} bytes, there are {member.size}; download it again")
    elements = math.prod(tensor.shape)
    end = (tensor.offset + _span(tensor)) * tensor.dtype.itemsize
    if len(tensor.shape) > 32 or math.prod(max(n, 1) for n in tensor.shape) > 2**62 or end > size:
        raise _damaged(path, f"{name} {str(tensor.shape)[:100]} lies outside its storage")
    if elements * tensor.dtype.itemsize > size:
        raise WeightsError(f"{path}: {name} is an expanded view of {size} bytes; save it with .contiguous()")


def _span(tensor: Tensor) -> int:
    """Elements from a view's first to its last."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride))


def _read(
    path: Path, name: str, tensor: Tensor, members: dict[str, _Member], checked: set[_Member]
) -> np.ndarray:
    """checked: storages whose checksum was right; this one joins them."""
    member, itemsize = members[f"data/{tensor.storage.key}"], tensor.dtype.itemsize
    span = _span(tensor)
    raw = read_array(path, member.offset + tensor.offset * itemsize, TensorInfo((span * itemsize,), np.dtype(np.uint8)))
    if member not in checked and _checksum(path, member, raw) != member.crc:
        raise _damaged(path, f"{name} does not have its checksum")
    checked.add(member)
    values = raw if tensor.dtype != np.bool_ else (raw != 0).view(np.uint8)  # other bytes are no numpy bools
    strides = tuple(stride * itemsize for stride in tensor.stride)
    plain = values.view(f"u{itemsize}")  # numpy takes strides of its own types only
    view = np.lib.stride_tricks.as_strided(plain, tensor.shape, strides, writeable=False)
    return np.ascontiguousarray(view).view(tensor.dtype).reshape(tensor.shape)


def _checksum(path: Path, member: _Member, raw: np.ndarray) -> int:
    """Of a storage: of `raw` if that is all of it, else of the file, block by block."""
    if member.crc == 0:  # torch was told to write none
        return 0
    if len(raw) == member.size:
        return zlib.crc32(raw)
    with open_regular(path, error=WeightsError, fix=FIX) as file:
        file.seek(member.offset)
        crc, left = 0, member.size
        while left and (block := file.read(min(left, 2**20))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    return crc


class _Bounded(io.RawIOBase):
    """A file from which nobody reads more at once than a directory may have: a broken one asks for anything."""

    def __init__(self, file):
        super().__init__()
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile("its directory is too large")
        return self._file.read(size)


def _damaged(path: Path, reason: object) -> WeightsError:
    text = (str(reason).strip() or type(reason).__name__).splitlines()[0][:200]
    return WeightsError(f"{path}: is no whole file of torch.save: {text}; download it again")
