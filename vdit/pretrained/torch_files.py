"""Files of torch.save (.pt .pth .bin), without torch and without running anything that they say.

Such a file is a zip archive. data.pkl is a pickle that describes the tensors; data/0, data/1, ... are the bytes of
their storages. Python's unpickler would call whatever the pickle names. Here a small machine steps through its opcodes.
It knows those that torch writes for tensors in dicts, and refuses every other. Nothing is imported, constructed or
called: the names of a short list stand for records of this module (a storage, a tensor, an ordered dict).
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vdit.errors import WeightsError
from vdit.paths import open_regular
from vdit.pretrained.tensors import FIX, TensorFiles, TensorInfo, read_array, refuse_no_weights
from vdit.reprs import listed

PICKLE_LIMIT = 64_000_000
DIRECTORY_LIMIT = 16_000_000  # of a zip archive: 100,000 tensors have 10 MB
_DEEPEST = 8
_MOST_VALUES = 2_000_000
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What zipfile raises on broken archives, found by breaking them
_BROKEN = (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError, KeyError, IndexError,
           RuntimeError, OverflowError, UnicodeError)  # fmt: skip
_DTYPES = {
    "float64": ("Double", np.float64),
    "float32": ("Float", np.float32),
    "float16": ("Half", np.float16),
    "bfloat16": ("BFloat16", jnp.bfloat16),
    "int64": ("Long", np.int64),
    "int32": ("Int", np.int32),
    "int16": ("Short", np.int16),
    "int8": ("Char", np.int8),
    "uint8": ("Byte", np.uint8),
    "bool": ("Bool", np.bool_),
    "uint16": (None, np.uint16),
    "uint32": (None, np.uint32),
    "uint64": (None, np.uint64),
    "float8_e4m3fn": (None, jnp.float8_e4m3fn),
    "float8_e5m2": (None, jnp.float8_e5m2),
}
_STORAGES = {f"torch {old}Storage": np.dtype(dtype) for old, dtype in _DTYPES.values() if old}
_STORAGES |= {"torch.storage UntypedStorage": np.dtype(np.uint8), "torch UntypedStorage": np.dtype(np.uint8)}
_TORCH_DTYPES = {f"torch {name}": np.dtype(dtype) for name, (_, dtype) in _DTYPES.items()}
_CALLS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
}
_MARK = object()
_MOST_OPCODES = 500_000  # a model of 20,000 tensors


class _Member(NamedTuple):
    """A file of the archive, stored as it is."""

    offset: int
    size: int
    crc: int


def open_torch(path: str | Path, *, key: str | None = None) -> TensorFiles:
    """Open a file that torch.save wrote (since torch 1.6): a dict of names to tensors, perhaps nested.

    Args:
        path: the file.
        key: where the tensors are in nested dicts ("ema"; "a.b" for deeper). None: the only place there is.

    Returns:
        The tensors; none is read yet.

    Raises:
        WeightsError: the file is missing, damaged, in an older format, holds what is no tensor, or several dicts of
            them.
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
    if member.crc == 0:  # torch.save was asked for no checksums
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


class Refused(Exception):
    """The pickle asks for something that is not done here."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes of the archive: the member data/<key>.

    Attributes:
        key: name of the member.
        dtype: of an item.
        count: of items.
    """

    key: str
    dtype: np.dtype
    count: int

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage.

    Attributes:
        storage: what it is a view of.
        dtype: of an element.
        offset: of the first element, in elements.
        shape: of the tensor.
        stride: of each axis, in elements.
    """

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name of the lists above; never looked up."""

    name: str


def read_pickle(stream: bytes) -> Any:
    """Read what a pickle of tensors describes, without importing, constructing or calling anything.

    Args:
        stream: content of data.pkl.

    Returns:
        Dicts, lists, tuples, plain values and Tensors.

    Raises:
        Refused: the pickle is broken, or holds anything else.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MOST_OPCODES:
                raise Refused(f"its pickle has more than {_MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Refused(f"its pickle is broken ({(str(error) or type(error).__name__).splitlines()[0][:100]})") from None
    raise Refused("its pickle has no end")


class _Machine:
    """The stack, the stacks under marks are in place behind _MARK, and the memo."""

    def __init__(self):
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PLAIN:
            self._stack.append(argument)
        elif name in _VALUES:
            self._stack.append(_VALUES[name]())
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._global(argument if name == "GLOBAL" else self._two_strings())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            if (action := getattr(self, f"_{name.lower()}", None)) is None or name not in _ACTIONS:
                raise Refused(f"its pickle has the opcode {name}, which no tensors need")
            action()

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise ValueError("a mark where a value should be")
        return self._stack[-1]

    def _marked(self) -> list[Any]:
        """Everything above the last mark."""
        at = next(i for i in reversed(range(len(self._stack))) if self._stack[i] is _MARK)
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def _two_strings(self) -> str:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("its pickle names things by what are no strings")
        return f"{module} {name}"

    def _global(self, name: str) -> None:
        if name not in _CALLS and name not in _STORAGES and name not in _TORCH_DTYPES:
            raise Refused(f"holds {name.replace(' ', '.')[:100]!r}, which is no tensor and might run code")
        self._stack.append(_Global(name))

    def _tuple(self) -> None:
        self._stack.append(tuple(self._marked()))

    def _tuple1(self) -> None:
        self._stack.append((self.pop(),))

    def _tuple2(self) -> None:
        b, a = self.pop(), self.pop()
        self._stack.append((a, b))

    def _tuple3(self) -> None:
        c, b, a = self.pop(), self.pop(), self.pop()
        self._stack.append((a, b, c))

    def _list(self) -> None:
        self._stack.append(self._marked())

    def _dict(self) -> None:
        self._stack.append(_pairs(self._marked()))

    def _append(self) -> None:
        value = self.pop()
        _of(self._top(), list).append(value)

    def _appends(self) -> None:
        values = self._marked()
        _of(self._top(), list).extend(values)

    def _setitem(self) -> None:
        value, key = self.pop(), self.pop()
        _of(self._top(), dict).update(_pairs([key, value]))

    def _setitems(self) -> None:
        values = self._marked()
        _of(self._top(), dict).update(_pairs(values))

    def _build(self) -> None:
        """Only attributes of an ordered dict (a module's _metadata), which say nothing of its numbers."""
        self.pop()
        _of(self._top(), dict)

    def _binpersid(self) -> None:
        kind, storage, key, _, count = _of(self.pop(), tuple)
        if kind != "storage" or not isinstance(storage, _Global) or storage.name not in _STORAGES:
            raise Refused("its pickle refers to something that is no storage")
        self._stack.append(Storage(_of(key, str), _STORAGES[storage.name], _size_of(count)))

    def _reduce(self) -> None:
        arguments, function = _of(self.pop(), tuple), self.pop()
        if not isinstance(function, _Global) or function.name not in _CALLS:
            raise Refused(f"its pickle calls {getattr(function, 'name', type(function).__name__)}")
        self._stack.append(_call(function.name.split()[1], arguments))


_PLAIN = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "BINUNICODE", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_VALUES = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_ACTIONS = {
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD",
    "BINPERSID", "REDUCE",
}  # fmt: skip


def _call(name: str, arguments: tuple) -> Any:
    """What torch's own functions would make of the arguments, as records."""
    if name == "OrderedDict":
        pairs = arguments[0] if arguments else []
        return _pairs([item for pair in _of(pairs, list) for item in _two_items(pair)])
    if name == "_rebuild_parameter":
        return _of(arguments[0], Tensor)
    storage, offset, shape, stride = arguments[:4]
    dtype = _of(storage, Storage).dtype
    if name == "_rebuild_tensor_v3":
        dtype = _TORCH_DTYPES.get(_of(arguments[6], _Global).name)
        if dtype is None:
            raise ValueError("a tensor without a type")
    shape, stride = (tuple(map(_size_of, _of(value, tuple))) for value in (shape, stride))
    if len(shape) != len(stride):
        raise ValueError("a tensor with more sizes than strides")
    return Tensor(storage, dtype, _size_of(offset), shape, stride)


def _pairs(values: list[Any]) -> dict:
    if len(values) % 2:
        raise ValueError("a key without a value")
    keys = values[::2]
    if not all(_is_key(key) for key in keys):
        raise Refused("its pickle has a dict whose keys are neither names nor numbers")
    return dict(zip(keys, values[1::2]))


def _is_key(value: Any) -> bool:
    """A name, or a number of common size: so that messages can show it on a line."""
    if isinstance(value, str):
        return len(value) <= 1000 and value.isprintable()
    return isinstance(value, float | bool | None) or (type(value) is int and abs(value) < 2**63)


def _two_items(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("a pair that is none")
    return list(value)


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} where {kind.__name__} should be")
    return value


def _size_of(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("a size that is none")
    return value
