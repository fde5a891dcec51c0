"""The trees of arrays in the folder of one step: what is stored, whether it fits, and reading it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import tensorstore
from orbax.checkpoint import v1 as ocp

from vdit.checkpoint.files import META, read_json
from vdit.checkpoint.places import check_places
from vdit.errors import CheckpointError, reason
from vdit.types import PyTree

_SHOWN = 4
_PIECE = 256_000_000  # bytes read at a time to see whether they can be read


def read_trees(
    folder: Path, abstract: Mapping[str, PyTree], *, there: Mapping[str, PyTree] | None = None
) -> dict[str, PyTree]:
    """The named trees of a step, laid out as `abstract` says, after a check of the shapes.

    there: what `stored` says of the step, if that was asked already.
    """
    check_shapes(folder, abstract, stored(folder) if there is None else there)
    wanted = {name: _placed(without_keys(tree)) for name, tree in abstract.items()}
    try:
        loaded = _apart(lambda: ocp.load_checkpointables(folder, wanted))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {reason(error)}; take another step") from error
    return {name: _with_keys(loaded[name], tree) for name, tree in abstract.items()}


def stored(folder: Path) -> dict[str, PyTree]:
    """Name -> tree of what the step's files say of their arrays (.shape, .dtype)."""
    names = [entry.name for entry in folder.iterdir() if (entry / "_METADATA").exists()]
    try:
        found = _apart(lambda: {name: ocp.metadata(folder, checkpointable_name=name).metadata for name in names})
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {reason(error)}; take another step") from error
    unread = [name for name, tree in found.items() if tree is None]
    if unread:
        raise CheckpointError(f"{folder}: {unread[0]}/_METADATA cannot be read; take another step")
    return found


def check_shapes(folder: Path, abstract: Mapping[str, PyTree], there_now: Mapping[str, PyTree]) -> None:
    """Refuses trees that the step does not hold, or holds in other shapes, and names the leaves.

    there_now: what `stored` says of the step.
    """
    missing = sorted(set(abstract) - set(there_now))
    if missing:
        raise CheckpointError(f"{folder}: has no {missing}, only {sorted(there_now)}; use its own config")
    wrong: list[str] = []
    for name, tree in abstract.items():
        there, wanted = _shapes(there_now[name]), _shapes(without_keys(tree))
        for key in sorted(set(there) | set(wanted)):
            old, new = there.get(key, "absent"), wanted.get(key, "absent")
            if old != new:
                wrong.append(f"{name}/{key} is {old}, must be {new}")
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        shown = "; ".join(wrong[:_SHOWN])
        raise CheckpointError(f"{folder}: does not fit: {shown}{more}; use the config that wrote it")


def unreadable(folder: Path, index: int = 0, count: int = 1) -> list[str]:
    """What cannot be read of a step that has no sums, a line each: host `index` of `count` reads its share of arrays.

    The parts and as many arrays as Orbax's notes speak of must be there, to the last piece.
    """
    try:
        read_json(folder / "meta" / META)
        check_places(folder)
        parts = set(read_json(folder / "_CHECKPOINT_METADATA")["item_handlers"]) - {"data", "meta"}
        for name in sorted(parts):
            notes = read_json(folder / name / "_METADATA")["tree_metadata"].values()
            wanted = sum(not leaf["value_metadata"]["skip_deserialize"] for leaf in notes)
            arrays = _arrays(folder / name)
            if len(arrays) != wanted:
                return [f"{name} holds {len(arrays)} of its {wanted} arrays"]
            for array in arrays[index::count]:
                _read_through(array)
    except (CheckpointError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return [reason(error).replace(f"{folder}/", "").removesuffix("; take another step")]
    return []


def leaf_types(tree: PyTree) -> dict[str, Any]:
    """Path of a leaf -> its type."""
    return {path_of(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_of(path) -> str:
    """A leaf's path in words that are the same for a dict, a tuple and a dataclass."""
    return "/".join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path)


def without_keys(tree: PyTree) -> PyTree:
    """The tree with typed random keys as the plain integers that can be stored."""

    def plain(leaf):
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            data = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
        return jax.random.key_data(leaf)

    return jax.tree.map(plain, tree)


def spans_hosts(abstract: PyTree) -> bool:
    """Whether a tree is to lie on devices of several hosts: then all of them load it at once."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(abstract)]
    return any(sharding is not None and not sharding.is_fully_addressable for sharding in shardings)


def total_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, over all hosts."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def _apart(read: Callable[[], Any]) -> Any:
    """Calls in a thread of its own, which no signal interrupts: Orbax would swallow what a signal raises, and read on
    without what it was just reading. It is raised in this thread, when the reading is over."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(read).result()


def _arrays(part: Path) -> list[tensorstore.TensorStore]:
    """The arrays in a part of a step, in the order of their names."""
    base = {"driver": "ocdbt", "base": f"file://{part}/"}
    keys = [key.decode() for key in tensorstore.KvStore.open(base).result().list().result()]
    paths = sorted(key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json"))
    specs = [{"driver": "zarr3", "kvstore": base | {"path": f"{path}/"}} for path in paths]
    return [tensorstore.open(spec, read=True).result() for spec in specs]


def _read_through(array: tensorstore.TensorStore) -> None:
    size = math.prod(array.shape) * array.dtype.numpy_dtype.itemsize
    if not array.shape or size <= _PIECE:
        array.read().result()
        return
    rows = max(array.shape[0] * _PIECE // size, 1)
    for start in range(0, array.shape[0], rows):
        array[start : min(start + rows, array.shape[0])].read().result()


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _placed(abstract: PyTree) -> PyTree:
    """Shapes without a sharding get the first device: else Orbax takes the one they were saved from."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or first)  # noqa: E731
    return jax.tree.map(place, abstract)


def _with_keys(tree: PyTree, abstract: PyTree) -> PyTree:
    def typed(leaf, wanted):
        if not _is_key(wanted):
            return leaf
        impl = []  # a ShapeDtypeStruct does not tell its generator, a traced key does
        jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), wanted)
        key = jax.random.wrap_key_data(leaf, impl=impl[0])
        return jax.device_put(key, wanted.sharding) if wanted.sharding is not None else key

    return jax.tree.map(typed, tree, abstract)
