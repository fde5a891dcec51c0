"""A step written piece by piece: for imports of models that are larger than the host's memory.

On disk it is what Checkpointer.save writes, in smaller chunks. Orbax does all but the arrays' values: it takes each
tree as a tree of place-holders, calls back for their values, and then finishes and names the step as always.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from vdit import buckets, internals, paths
from vdit.checkpoint.files import (
    COMMITTED,
    META,
    File,
    IteratorState,
    absolute_path,
    clear_left_overs,
    no_room,
    quiet_orbax,
    remove_failed,
)
from vdit.checkpoint.hosts import Exchange
from vdit.checkpoint.integrity import MANIFEST, write_manifest
from vdit.errors import CheckpointError
from vdit.paths import AnyPath
from vdit.types import PyTree

_LONGEST = 7 * 24 * 3600  # seconds: Orbax gives up on a save after minutes
_THREADS = 4  # that copy and compress; each has a chunk of a quarter of a piece
# put(path, layer, values): a whole array (layer None), or one layer of a stacked one
Put = Callable[[str, int | None, np.ndarray], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedLeaf:
    """An array to come. stacked: it comes in layers, pieces of its first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool = False


def save_streamed(
    directory: str | Path,
    trees: Mapping[str, Mapping[str, Any]],
    feeds: Mapping[str, Callable[[Put], None]],
    *,
    step: int = 0,
    meta: Mapping[str, Any] | None = None,
    piece_bytes: int = 64_000_000,
) -> None:
    """Writes one step of a run from arrays that come one after the other; returns when it is complete.

    trees: name -> nested dicts of StreamedLeaf. feeds: name -> function that is given `put` and calls it for every
    leaf's path ("a/b/c") and, if stacked, each of its layers. Trees are fed in turn. About 2 * piece_bytes are held
    besides what the feed holds. One host only. meta: as Checkpointer's.
    """
    directory = absolute_path(directory)
    if not isinstance(directory, Path):
        _save_to_bucket(directory, trees, feeds, step=step, meta=meta, piece_bytes=piece_bytes)
        return
    if jax.process_count() > 1:
        raise CheckpointError(f"{jax.process_count()} hosts: streaming is for one; load onto the mesh and save that")
    if (directory / str(step)).exists():
        raise CheckpointError(f"{directory}: has step {step} already; give another directory")
    directory.mkdir(parents=True, exist_ok=True)
    clear_left_overs(directory)
    quiet_orbax()
    internals.return_freed_memory()
    turn = threading.Lock()
    parts: dict[str, Any] = {}
    registry = ocp.handlers.local_registry()
    for name, tree in trees.items():
        stream = _Stream(feeds[name], piece_bytes, turn)
        parts[name] = _placeholders(tree, stream)
        registry.add(_Handler, checkpointable_name=name)
    parts["data"] = IteratorState(None, Exchange(alone=True))
    parts["meta"] = File(META, dict(meta or {}))
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.asynchronous.timeout_secs = _LONGEST
    try:
        with context:
            ocp.save_checkpointables(directory / str(step), parts)
        write_manifest(directory / str(step))
    except BaseException as error:
        remove_failed(directory / str(step))
        words = no_room(error, directory)
        if words is None:
            raise
        raise CheckpointError(f"{directory / str(step)}: not saved: {words}") from error


def _save_to_bucket(directory: AnyPath, trees, feeds, *, step: int, **how: Any) -> None:
    """Writes the step on the local disk, and uploads it with its checksums last."""
    if paths.exists(directory / str(step)):
        raise CheckpointError(f"{directory}: has step {step} already; give another directory")
    stage = buckets.home() / "saving" / uuid.uuid4().hex
    try:
        save_streamed(stage, trees, feeds, step=step, **how)
        with buckets.failures(str(directory), CheckpointError):
            buckets.send_folder(stage / str(step), str(directory / str(step)), last=(COMMITTED, MANIFEST))
    finally:
        paths.remove_folder(stage)


@dataclasses.dataclass(frozen=True)
class _Placeholder:
    """What Orbax sees of an array: its shape and type, and whom to ask for it."""

    path: str
    leaf: StreamedLeaf
    stream: _Stream

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.leaf.dtype)


class _Stream:
    """Writes the arrays of one tree as its feed hands them over."""

    def __init__(self, feed: Callable[[Put], None], piece_bytes: int, turn: threading.Lock):
        self._feed = feed
        self._piece = piece_bytes
        self._turn = turn
        self._pending: list[tensorstore.Future] = []
        self._pending_bytes = 0

    def write(self, folder: Path, names: Mapping[str, str], leaves: Mapping[str, StreamedLeaf]) -> None:
        """names: path -> the array's name in the store."""
        context = tensorstore.Context({"data_copy_concurrency": {"limit": _THREADS}})
        chunks = {path: _chunk(leaf, self._piece // _THREADS) for path, leaf in leaves.items()}
        specs = {path: _spec(folder, names[path], leaf, chunks[path]) for path, leaf in leaves.items()}
        arrays = {p: tensorstore.open(spec, context=context, create=True).result() for p, spec in specs.items()}
        missing = {path: math.prod(leaf.shape) for path, leaf in leaves.items()}

        def put(path: str, layer: int | None, values: np.ndarray) -> None:
            if values.dtype != np.dtype(leaves[path].dtype):
                raise ValueError(f"{path}: {values.dtype} was to be {leaves[path].dtype}")
            missing[path] -= values.size
            self._write(arrays[path], chunks[path], () if layer is None else (layer,), values)

        with self._turn:
            self._feed(put)
            self._flush()
        wrong = [path for path, count in missing.items() if count]
        if wrong:
            raise ValueError(f"{wrong[0]}: {missing[wrong[0]]} of its numbers did not come")

    def _write(self, array: tensorstore.TensorStore, chunk: list[int], start: tuple[int, ...], values: np.ndarray):
        """Chunk by chunk, and never more than a piece on the way: each is copied, then compressed."""
        grid = [range(0, whole, part) for whole, part in zip(values.shape, chunk[len(start) :])]
        for corner in itertools.product(*grid):
            index = tuple(slice(i, min(i + r.step, r.stop)) for i, r in zip(corner, grid))
            part = values[index]
            if self._pending_bytes + part.nbytes > self._piece:
                self._flush()
            self._pending.append(array[(*start, *index)].write(part))
            self._pending_bytes += part.nbytes
        if _THREADS * values.nbytes > self._piece:
            self._flush()  # what is pending keeps all of `values` alive

    def _flush(self) -> None:
        for future in self._pending:
            future.result()
        self._pending, self._pending_bytes = [], 0


class _LeafHandler:
    """Orbax's protocol for a type of leaf; `context` is Orbax's."""

    def __init__(self, context: Any = None):
        del context

    async def serialize(self, params, serialization_context):
        """What Orbax calls with all the leaves of a tree: returns what it is to run in the background."""

        async def write():
            folder = await serialization_context.parent_dir.await_creation()
            names = {param.value.path: param.name for param in params}
            leaves = {param.value.path: param.value.leaf for param in params}
            params[0].value.stream.write(Path(folder), names, leaves)

        return write()


class _LeafRegistry:
    """Orbax's protocol for the types of leaves that a tree may have: place-holders, stored as jax.Array."""

    def get_all(self):
        return [(_Placeholder, _Placeholder, _LeafHandler)]

    def get_secondary_typestrs(self, handler):
        del handler
        return ["jax.Array"]

    def is_handleable(self, leaf_type):
        return leaf_type is _Placeholder


class _Handler:
    """Orbax's handler for trees, but with place-holders for leaves."""

    def __init__(self, context: Any = None):
        self._orbax = ocp.handlers.PyTreeHandler(context=context, leaf_handler_registry=_LeafRegistry())

    async def save(self, directory, checkpointable):
        return await self._orbax.save(directory, checkpointable)

    def is_handleable(self, checkpointable) -> bool:
        return self._orbax.is_handleable(checkpointable)


# The step notes by these names who can read it: the ordinary handler.
_Handler.__module__ = ocp.handlers.PyTreeHandler.__module__
_Handler.__qualname__ = ocp.handlers.PyTreeHandler.__qualname__


def _placeholders(tree: Mapping[str, Any], stream: _Stream, path: str = "") -> PyTree:
    return {
        key: _Placeholder(f"{path}{key}", value, stream)
        if isinstance(value, StreamedLeaf)
        else _placeholders(value, stream, f"{path}{key}/")
        for key, value in tree.items()
    }


def _chunk(leaf: StreamedLeaf, most: int) -> list[int]:
    """The array, or a layer of it, cut along its first axes until a piece is small enough."""
    chunk = [max(size, 1) for size in leaf.shape]
    if leaf.stacked:
        chunk[0] = 1
    for axis in range(len(chunk)):
        rest = math.prod(chunk[axis + 1 :]) * np.dtype(leaf.dtype).itemsize
        chunk[axis] = min(chunk[axis], max(most // rest, 1))
    return chunk


def _spec(folder: Path, name: str, leaf: StreamedLeaf, chunk: list[int]) -> dict[str, Any]:
    """tensorstore's words for an array as Orbax stores them: zarr 3 in the part of process 0."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    inside = {
        "chunk_shape": chunk,
        "codecs": [little, {"name": "zstd", "configuration": {"level": 3}}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "driver": "zarr3",
        "dtype": np.dtype(leaf.dtype).name,
        "store_data_equal_to_fill_value": True,
        "kvstore": {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{folder / 'ocdbt.process_0'}/"},
            "path": name,
            # small nodes: the tree of keys is written again with every piece
            "config": {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 65536, "manifest_kind": "single"},
            "assume_config": True,
        },
        "metadata": {
            "shape": list(leaf.shape),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [{"name": "sharding_indexed", "configuration": inside}],
        },
    }
