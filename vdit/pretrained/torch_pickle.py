"""The pickle inside a file of torch.save, walked over opcode by opcode.

Nothing is imported, constructed or called. The names of a short list stand for records of this module (a storage, a
tensor, an ordered dict); any other name, and any opcode that torch does not write for weights, ends the walk.
"""

from __future__ import annotations

import dataclasses
import pickletools
from typing import Any

import jax.numpy as jnp
import numpy as np

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


class Refused(Exception):
    """What the stream asks for that is not done here."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes of the archive: the member data/<key>, of `count` items."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; offset and stride count elements of `dtype`."""

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
    """What the stream describes: dicts, lists, tuples, plain values and Tensors. Refused for all else."""
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
        self._stack.append(Storage(_of(key, str), _STORAGES[storage.name], _count(count)))

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
        return _pairs([item for pair in _of(pairs, list) for item in _pair(pair)])
    if name == "_rebuild_parameter":
        return _of(arguments[0], Tensor)
    storage, offset, shape, stride = arguments[:4]
    dtype = _of(storage, Storage).dtype
    if name == "_rebuild_tensor_v3":
        dtype = _TORCH_DTYPES.get(_of(arguments[6], _Global).name)
        if dtype is None:
            raise ValueError("a tensor without a type")
    shape, stride = (tuple(map(_count, _of(value, tuple))) for value in (shape, stride))
    if len(shape) != len(stride):
        raise ValueError("a tensor with more sizes than strides")
    return Tensor(storage, dtype, _count(offset), shape, stride)


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


def _pair(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("a pair that is none")
    return list(value)


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} where {kind.__name__} should be")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("a size that is none")
    return value
