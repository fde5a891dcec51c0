"""Weight maps: which tensor of a public checkpoint is which of our parameters; and loading by them.

A family of models is a list of rules, one for each of its tensors. The same list loads, checks and exports. A map is
held against a checkpoint and a model before anything is read. Tensors are then read one at a time: onto a mesh, where
each device gets its own shard (`load`), or into a checkpoint of ours on disk (`import_trees`), so that the model is
never whole in host memory.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from vdit.checkpoint import StreamedLeaf, save_streamed
from vdit.errors import WeightsError
from vdit.pretrained.tensors import TensorFiles
from vdit.reprs import listed, short_repr
from vdit.types import Array, PyTree

# put(path, layer, values): a whole parameter (layer None) or one layer of a stack
Put = Callable[[str, int | None, np.ndarray], None]
_FLOATS = {np.dtype(t) for t in (jnp.float32, jnp.bfloat16, jnp.float16)}
_LEAST_PIECE, _MOST_PIECE = 1_000_000, 64_000_000


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a tensor of theirs turns into an array of ours, and back: inverse functions, no rounding.

    Both use only what numpy and JAX arrays share (transpose, reshape, indexing), so shapes can be traced.

    Attributes:
        read: their tensor -> our array.
        write: our array -> their tensor.
    """

    read: Callable[[Array], Array]
    write: Callable[[Array], Array]


SAME = Layout(read=lambda x: x, write=lambda x: x)
# torch's Linear [o i] and ours [i o]
LINEAR = Layout(read=lambda x: x.transpose(1, 0), write=lambda x: x.transpose(1, 0))
# torch's Conv3d [o i t h w] and ours [t h w i o]
CONV3D = Layout(read=lambda x: x.transpose(2, 3, 4, 1, 0), write=lambda x: x.transpose(4, 3, 0, 1, 2))
# torch's Conv2d [o i h w] and ours of one frame [1 h w i o]
CONV2D = Layout(read=lambda x: x.transpose(2, 3, 1, 0)[None], write=lambda x: x[0].transpose(3, 2, 0, 1))


def reshaped(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Layout:
    """The same values in the same order under another shape."""
    return Layout(read=lambda x: x.reshape(ours), write=lambda x: x.reshape(theirs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A parameter of ours, or a piece of one.

    Attributes:
        path: keys of the parameter tree, "/"-joined: "blocks/attention/q/kernel".
        layer: index on the first axis, where layers are stacked (lax.scan). None for a whole parameter.
        chunk: (i, n): the i-th of n equal pieces of the last axis, where we hold as one what they hold apart.
    """

    path: str
    layer: int | None = None
    chunk: tuple[int, int] | None = None

    def index(self, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
        """Where this part is in a parameter of `shape`."""
        place: list[int | slice] = [slice(None)] * len(shape)
        if self.layer is not None:
            place[0] = self.layer
        if self.chunk is not None:
            i, n = self.chunk
            size = shape[-1] // n
            place[-1] = slice(i * size, (i + 1) * size)
        return tuple(place)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of this part of a parameter of shape `whole`."""
        shape = list(whole)
        if self.chunk is not None:
            shape[-1] //= self.chunk[1]
        return tuple(shape if self.layer is None else shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One tensor of theirs.

    Attributes:
        name: its name in their checkpoint.
        parts: what it holds of ours. Several, of one shape, where they hold as one what we hold apart (a fused query,
            key and value): equal pieces of its first axis, in this order.
        layout: between a piece and a part.
        copies: other tensors of theirs that hold the same numbers. Loading checks that, exporting writes them.
    """

    name: str
    parts: tuple[Part, ...]
    layout: Layout = SAME
    copies: tuple[str, ...] = ()

    def read(self, tensor: Array) -> list[Array]:
        """Their tensor -> the values of each part."""
        pieces = [tensor] if len(self.parts) == 1 else _equal_pieces(tensor, len(self.parts))
        return [self.layout.read(piece) for piece in pieces]

    def write(self, values: Sequence[Array], concatenate: Callable) -> Array:
        """The values of each part -> their tensor.

        Args:
            values: of each part, in order.
            concatenate: numpy's or JAX's.
        """
        pieces = [self.layout.write(value) for value in values]
        return pieces[0] if len(pieces) == 1 else concatenate(pieces, axis=0)

    def shape(self, ours: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of their tensor, given the shapes of our parameters by path."""
        part = self.parts[0]
        struct = jax.ShapeDtypeStruct(part.shape(ours[part.path]), "float32")
        first, *rest = jax.eval_shape(self.layout.write, struct).shape
        return (first * len(self.parts), *rest)


def rule(name: str, path: str, layout: Layout = SAME, *, layer: int | None = None, **options) -> Rule:
    """The common case of a rule: one tensor of theirs is one parameter of ours, or one layer of a stack."""
    return Rule(name=name, parts=(Part(path=path, layer=layer),), layout=layout, **options)


def linear(name: str, path: str, *, layer: int | None = None, bias: bool = True) -> list[Rule]:
    """Rules of torch's Linear `name` (.weight, .bias), which is our Linear `path` (/kernel, /bias)."""
    rules = [rule(f"{name}.weight", f"{path}/kernel", LINEAR, layer=layer)]
    return rules + ([rule(f"{name}.bias", f"{path}/bias", layer=layer)] if bias else [])


def norm(name: str, path: str, *, layer: int | None = None) -> list[Rule]:
    """Rules of torch's LayerNorm `name` (.weight, .bias), which is our LayerNorm `path` (/scale, /bias)."""
    return [rule(f"{name}.weight", f"{path}/scale", layer=layer), rule(f"{name}.bias", f"{path}/bias", layer=layer)]


def _equal_pieces(tensor: Array, count: int) -> list[Array]:
    size = tensor.shape[0] // count
    return [tensor[i * size : (i + 1) * size] for i in range(count)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """A parameter of ours.

    Attributes:
        shape: of the whole parameter.
        dtype: that it will have.
        stacked: whether it comes layer by layer.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked import.

    Attributes:
        tensors: where it reads from.
        leaves: parameters by path.
        order: (rule, its tensor's name) in the order of reading.
    """

    tensors: TensorFiles
    leaves: Mapping[str, Leaf]
    order: Sequence[tuple[Rule, str]]

    def feed(self, put: Put) -> None:
        """Read one tensor after the other and hand over what it holds; nothing is kept that has been handed over."""
        waiting: dict[tuple[str, int | None], dict[int, np.ndarray]] = {}
        for rule, name in self.order:
            self._feed_one(rule, name, put, waiting)

    def _feed_one(self, rule: Rule, name: str, put: Put, waiting: dict) -> None:
        digests = {copy: _digest(self.tensors.read(copy)) for copy in _copies(rule, name, self.tensors)}
        tensor = self.tensors.read(name)
        if digests and any(digest != _digest(tensor) for digest in digests.values()):
            raise WeightsError(f"{self.tensors.path}: {listed(digests)} must equal {name}; download it again")
        for part, piece in zip(rule.parts, rule.read(tensor)):
            values = _cast(piece, self.leaves[part.path].dtype, name)
            if part.chunk is None:
                put(part.path, part.layer, values)
                continue
            i, n = part.chunk
            pieces = waiting.setdefault((part.path, part.layer), {})
            pieces[i] = np.array(values)  # not a view: it would hold the whole tensor while the others are read
            if len(pieces) == n:
                whole = np.concatenate([pieces[i] for i in range(n)], axis=-1)
                del waiting[part.path, part.layer]
                put(part.path, part.layer, whole)


def make_plan(
    rules: Iterable[Rule],
    tensors: TensorFiles,
    abstract: PyTree,
    *,
    dtype: str | None = None,
    ignore: Sequence[str] = (),
) -> Plan:
    """Plan to fill a tree of parameters.

    Args:
        rules: the map of the family. A rule's copies may be absent, or stand for its tensor.
        tensors: where to read from.
        abstract: nested dicts of ShapeDtypeStructs.
        dtype: floats become this. None: they keep the tensor's (float32 where a stack mixes types, which loses
            nothing).
        ignore: beginnings of names of tensors that may be there and are not read.

    Raises:
        WeightsError: a tensor is missing, left over, or of another shape or type; or map and model do not go together.
    """
    rules = list(rules)
    ours = flatten(abstract)
    _check_map(rules, ours, tensors)
    names = _names(rules, tensors)
    _check_names(rules, names, tensors, tuple(ignore))
    _check_shapes(rules, names, tensors, ours)
    stored: dict[str, set[np.dtype]] = {path: set() for path in ours}
    for rule in rules:
        for part in rule.parts:
            stored[part.path].add(tensors.info[names[rule]].dtype)
    stacked = {part.path for rule in rules for part in rule.parts if part.layer is not None}
    leaves = {
        path: Leaf(
            shape=tuple(struct.shape),
            dtype=_leaf_dtype(path, struct.dtype, stored[path], dtype, tensors),
            stacked=path in stacked,
        )
        for path, struct in ours.items()
    }
    return Plan(tensors=tensors, leaves=leaves, order=[(rule, names[rule]) for rule in rules])


def check(rules: Iterable[Rule], tensors: TensorFiles, abstract: PyTree, *, ignore: Sequence[str] = ()) -> None:
    """Check that each parameter is filled once, from tensors that fit, and that no tensor is left over.

    Args:
        rules, tensors, abstract, ignore: see `make_plan`.

    Raises:
        WeightsError: see `make_plan`.
    """
    make_plan(rules, tensors, abstract, ignore=ignore)


def check_names(rules: Iterable[Rule], tensors: TensorFiles, *, ignore: Sequence[str] = ()) -> None:
    """Check that every rule has its tensor, and that no tensor is left over: what can be checked without a model.

    Args:
        rules, tensors, ignore: see `make_plan`.

    Raises:
        WeightsError: tensors are missing or left over.
    """
    rules = list(rules)
    _check_names(rules, _names(rules, tensors), tensors, tuple(ignore))


def flatten(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """Leaves of nested dicts by path: "blocks/attention/q/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(step.key) for step in path): leaf for path, leaf in leaves}


def _check_map(rules: list[Rule], ours: Mapping, tensors: TensorFiles) -> None:
    """The map fills every part of every parameter once: true of a map that goes with the model's config."""
    filled: dict[str, list[Part]] = {path: [] for path in ours}
    unknown = [part.path for rule in rules for part in rule.parts if part.path not in ours]
    if unknown:
        raise WeightsError(f"{tensors.path}: the map fills {listed(unknown)}, which the model lacks; use its config")
    for rule in rules:
        for part in rule.parts:
            filled[part.path].append(part)
    wrong = [path for path, parts in filled.items() if not _fill_once(parts, ours[path].shape)]
    if wrong:
        raise WeightsError(f"{tensors.path}: the map does not fill {listed(wrong)} once; use the config of the weights")


def _fill_once(parts: list[Part], shape: tuple[int, ...]) -> bool:
    layers: dict[int | None, list] = {}
    for part in parts:
        layers.setdefault(part.layer, []).append(part.chunk)
    wanted = set(range(shape[0])) if None not in layers and shape else {None}
    return set(layers) == wanted and all(_whole(chunks, shape) for chunks in layers.values())


def _whole(chunks: list[tuple[int, int] | None], shape: tuple[int, ...]) -> bool:
    if chunks == [None]:
        return True
    counts = {None if chunk is None else chunk[1] for chunk in chunks}
    n = counts.pop()
    return not counts and n is not None and sorted(i for i, _ in chunks) == list(range(n)) and shape[-1] % n == 0


def _names(rules: list[Rule], tensors: TensorFiles) -> dict[Rule, str | None]:
    """The tensor that each rule reads: under its name, or that of a copy; None if there is none."""
    return {rule: next((n for n in (rule.name, *rule.copies) if n in tensors.info), None) for rule in rules}


def _check_names(rules: list[Rule], names: Mapping, tensors: TensorFiles, ignore: tuple[str, ...]) -> None:
    known = {name for rule in rules for name in (rule.name, *rule.copies)}
    missing = [rule.name for rule in rules if names[rule] is None]
    extra = [name for name in tensors.info if name not in known and not name.startswith(ignore or "\0")]
    if 2 * len(missing) > len(rules):
        raise WeightsError(
            f"{tensors.path}: the weights of another family: {len(missing)} of {len(rules)} tensors are missing "
            f"({listed(missing)}), it has {listed(extra)}; give the folder of this model"
        )
    faults = [f"{len(missing)} missing ({listed(missing)})"] if missing else []
    faults += [f"{len(extra)} that this model does not have ({listed(extra)})"] if extra else []
    if faults:
        raise WeightsError(f"{tensors.path}: tensors do not fit: {'; '.join(faults)}; use the config of these weights")


def _check_shapes(rules: list[Rule], names: Mapping, tensors: TensorFiles, ours: Mapping) -> None:
    shapes = {path: tuple(struct.shape) for path, struct in ours.items()}
    misshapen, mistyped = [], []
    for rule in rules:
        wanted = rule.shape(shapes)
        for name in (names[rule], *_copies(rule, names[rule], tensors)):
            shape, dtype = tensors.info[name]
            if shape != wanted:
                misshapen.append(f"{name} is {list(shape)}, must be {list(wanted)}")
            if {_kind(dtype)} != {_kind(ours[part.path].dtype) for part in rule.parts}:
                mistyped.append(f"{name} is {dtype}, must be {_kind(ours[rule.parts[0].path].dtype)}")
    faults = [f"{len(misshapen)} of another shape ({listed(misshapen)})"] if misshapen else []
    faults += [f"{len(mistyped)} of another type ({listed(mistyped)})"] if mistyped else []
    if faults:
        raise WeightsError(f"{tensors.path}: tensors do not fit: {'; '.join(faults)}; use the config of these weights")


def _copies(rule: Rule, name: str, tensors: TensorFiles) -> list[str]:
    """Tensors in the files that must equal `name`, the one that is read for the rule."""
    return [other for other in (rule.name, *rule.copies) if other != name and other in tensors.info]


def _leaf_dtype(
    path: str, ours: np.dtype, stored: set[np.dtype], dtype: str | None, tensors: TensorFiles
) -> np.dtype:
    if _kind(ours) != "float":
        return np.dtype(ours)
    if dtype is not None:
        if np.dtype(dtype) not in _FLOATS:
            raise WeightsError(f"dtype: {dtype!r} must be one of float32, bfloat16, float16")
        return np.dtype(dtype)
    if len(stored) == 1 and np.dtype(np.float64) not in stored:
        return next(iter(stored))
    if stored <= _FLOATS:
        return np.dtype(np.float32)
    types = ", ".join(sorted(map(str, stored)))
    raise WeightsError(f"{tensors.path}: {path} is stored as {types}; say dtype='float32' or 'bfloat16'")


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    if values.dtype == dtype:
        return values
    cast = values.astype(dtype)
    if _kind(dtype) != "float" and not np.array_equal(cast, values):
        raise WeightsError(f"{name}: holds numbers that {dtype} cannot; the model's config does not go with it")
    return cast


def _kind(dtype: np.dtype) -> str:
    if jnp.issubdtype(dtype, jnp.floating):
        return "float"
    return "bool" if dtype == np.bool_ else "integer"


def _digest(values: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).digest()


def load(
    rules: Iterable[Rule],
    tensors: TensorFiles,
    abstract: PyTree,
    *,
    dtype: str | None = None,
    ignore: Sequence[str] = (),
) -> PyTree:
    """Load parameters onto devices, one tensor at a time, after `check`.

    On several hosts each reads the files and keeps its shard.

    Args:
        rules: the map of the family.
        tensors: where to read from.
        abstract: nested dicts of ShapeDtypeStructs. Where one has a sharding, the array gets it, else the first device.
        dtype: "float32", "bfloat16" or "float16" for all floats. None: see `make_plan`.
        ignore: beginnings of names of tensors that may be there and are not read.

    Returns:
        The tree of `abstract`, of arrays.

    Raises:
        WeightsError: see `make_plan`; or a tensor is damaged, or not finite.
    """
    plan = make_plan(rules, tensors, abstract, dtype=dtype, ignore=ignore)
    shardings = {path: _sharding(struct) for path, struct in flatten(abstract).items()}
    arrays: dict[str, jax.Array] = {}

    def put(path: str, layer: int | None, values: np.ndarray) -> None:
        leaf, sharding = plan.leaves[path], shardings[path]
        if layer is None:
            arrays[path] = _place(values, sharding)
        else:
            stack = arrays.pop(path) if path in arrays else _empty(leaf.shape, leaf.dtype, sharding)
            arrays[path] = _set_layer(stack, _place(values, _layer_sharding(sharding)), np.int32(layer), sharding)
        jax.block_until_ready(arrays[path])  # else tensors wait in host memory for their devices

    plan.feed(put)
    paths = jax.tree.unflatten(jax.tree.structure(abstract), list(flatten(abstract)))
    return jax.tree.map(arrays.__getitem__, paths)


def _sharding(struct: jax.ShapeDtypeStruct) -> Sharding:
    return struct.sharding or SingleDeviceSharding(jax.local_devices()[0])


def _layer_sharding(sharding: Sharding) -> Sharding:
    """Sharding of one layer of a stack: that of the stack, without its first axis."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]), memory_kind=sharding.memory_kind)


def _place(values: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _empty(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> jax.Array:
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)()


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _set_layer(stack: jax.Array, values: jax.Array, layer: jax.Array, sharding: Sharding) -> jax.Array:
    stack = jax.lax.dynamic_update_index_in_dim(stack, values, layer, 0)
    return jax.lax.with_sharding_constraint(stack, sharding)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeSource:
    """Where a tree of parameters comes from: what `load` takes.

    Attributes:
        rules: the map of the family.
        tensors: where to read from.
        abstract: nested dicts of ShapeDtypeStructs.
        ignore: beginnings of names of tensors that are not read.
    """

    rules: Sequence[Rule]
    tensors: TensorFiles
    abstract: PyTree
    ignore: Sequence[str] = ()


def import_trees(
    trees: Mapping[str, Any],
    directory: str | Path,
    *,
    step: int = 0,
    meta: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
    """Write one step of a checkpoint directory from public weights; all are checked before anything is written.

    Memory: one tensor, and twice an eighth of the largest file (at most 64 MB).

    Args:
        trees: name -> TreeSource, or nested dicts of them: {"params": {"dit": TreeSource(...), ...}}.
        directory: of the checkpoint.
        step: its number.
        meta: JSON values that are kept beside the arrays.
        dtype: see `load`.

    Raises:
        WeightsError: see `load`.
    """
    plans = {name: _tree_plans(tree, dtype) for name, tree in trees.items()}
    largest = max(plan.tensors.largest_file for found in plans.values() for plan in found.values())
    save_streamed(
        directory,
        {name: _tree_leaves(found) for name, found in plans.items()},
        {name: _tree_feed(found) for name, found in plans.items()},
        step=step,
        meta=meta,
        piece_bytes=min(max(largest // 8, _LEAST_PIECE), _MOST_PIECE),
    )


def _tree_plans(tree: Any, dtype: str | None, path: str = "") -> dict[str, Plan]:
    """Plans by the path of their tree, which ends in "/" unless it is the root."""
    if isinstance(tree, TreeSource):
        return {path: make_plan(tree.rules, tree.tensors, tree.abstract, dtype=dtype, ignore=tree.ignore)}
    return {p: plan for key, part in tree.items() for p, plan in _tree_plans(part, dtype, f"{path}{key}/").items()}


def _tree_leaves(plans: Mapping[str, Plan]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for start, plan in plans.items():
        for path, leaf in plan.leaves.items():
            *parents, last = (start + path).split("/")
            node = root
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = StreamedLeaf(shape=leaf.shape, dtype=leaf.dtype, stacked=leaf.stacked)
    return root


def _tree_feed(plans: Mapping[str, Plan]) -> Callable[[Put], None]:
    def feed(put: Put) -> None:
        for start, plan in plans.items():
            plan.feed(lambda path, layer, values, start=start: put(start + path, layer, values))

    return feed
