"""Which tensor fills which parameter: a map held against a checkpoint and a model, before anything is read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vdit.errors import WeightsError
from vdit.pretrained.tensors import TensorFiles, listed
from vdit.pretrained.weights import Part, Rule
from vdit.reprs import short_repr
from vdit.types import PyTree

# put(path, layer, values): a whole parameter (layer None) or one layer of a stack
Put = Callable[[str, int | None, np.ndarray], None]
_FLOATS = {np.dtype(t) for t in (jnp.float32, jnp.bfloat16, jnp.float16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """A parameter of ours. dtype: what it will have. stacked: it comes layer by layer."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked import. leaves: parameters by path. order: (rule, its tensor's name) in the order of reading."""

    tensors: TensorFiles
    leaves: Mapping[str, Leaf]
    order: Sequence[tuple[Rule, str]]

    def feed(self, put: Put) -> None:
        """Reads one tensor after the other and hands over what it holds; keeps nothing that has been handed over."""
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
    """A plan to fill `abstract` (nested dicts of ShapeDtypeStructs), or a WeightsError that names what does not fit.

    dtype: floats become this; None: they keep the tensor's (float32 where a stack mixes types, which loses nothing).
    ignore: how names begin that may be there and are not read. A rule's copies may be absent, or stand for its tensor.
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
    """WeightsError unless each parameter is filled once, from tensors that fit, and no tensor is left over."""
    make_plan(rules, tensors, abstract, ignore=ignore)


def check_names(rules: Iterable[Rule], tensors: TensorFiles, *, ignore: Sequence[str] = ()) -> None:
    """WeightsError unless every rule has its tensor, and no tensor is left over: what can be told without a model."""
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
