"""Sharding in one table: logical axis -> mesh axes.

Models name the logical axes of their parameters and activations and never see a mesh. A mesh axis
serves one dimension of an array only: the first that asks for it. So `embed` is sharded over `fsdp`
in a parameter, and left whole in an activation whose `batch` took `fsdp` already.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdit.errors import ConfigError
from vdit.types import Array, PyTree, Row

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "tokens": ("sequence",),
    "text_tokens": (),
    "time": ("sequence",),
    "height": ("tensor", "sequence", "fsdp", "data"),
    "width": (),
    "patch": (),
    # parameters, and activations where the batch left the mesh axis free
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "head_dim": (),
    "layers": (),
    "vocab": ("tensor",),
    "conv_in": (),
    "conv_out": ("fsdp",),
}

Names = Sequence[str | None]
VIDEO: tuple[str | None, ...] = ("batch", "time", "height", "width", None)


def partition_spec(names: Names, shape: Sequence[int], axis_sizes: dict[str, int]) -> tuple[P, list[str]]:
    """The PartitionSpec of an array, and a line for each dimension that could not be split as the table says.

    names: one logical axis, or None, for each dimension. shape: the dimensions. axis_sizes: the mesh's
    axes that may be used, with their sizes. A dimension that its mesh axes do not divide takes as
    many of them as do, from the left, and stays whole if none does.
    """
    if len(names) != len(shape):
        raise ConfigError(f"logical axes {tuple(names)} must name each dimension of an array {tuple(shape)}")
    taken: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    notes: list[str] = []
    for name, size in zip(names, shape):
        if name is not None and name not in RULES:
            raise ConfigError(f"logical axis {name!r} is not in vdit/dist/rules.py: use {sorted(RULES)}")
        wanted = [axis for axis in RULES.get(name, ()) if axis_sizes.get(axis, 1) > 1 and axis not in taken]
        used = list(wanted)
        while size % math.prod(axis_sizes[axis] for axis in used):
            used.pop()
        if used != wanted:
            num_shards = math.prod(axis_sizes[axis] for axis in wanted)
            notes.append(f"{name} of size {size} is not divisible by {'*'.join(wanted)}={num_shards}")
        taken.update(used)
        entries.append(tuple(used) or None)
    return P(*entries), notes


def named_shardings(mesh: Mesh, abstract: PyTree, names: PyTree) -> tuple[PyTree, list[str]]:
    """A NamedSharding for each array of a tree, and what stays whole against the table's wish.

    abstract: tree of arrays or ShapeDtypeStructs. names: the same tree with a tuple of logical axes,
    or None (replicated), in the place of each array. Returns (tree of NamedSharding, report): a line
    of the report names the parameter, the dimension and the mesh axes that do not divide it.
    """
    sizes = dict(mesh.shape)
    report: list[str] = []

    def sharding_of(path, leaf, axes):
        if axes is None:
            return NamedSharding(mesh, P())
        spec, notes = partition_spec(axes, leaf.shape, sizes)
        report.extend(f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {note}" for note in notes)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding_of, abstract, names), report


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_shardings(mesh: Mesh, batch: PyTree, *, accumulation: bool = False, strict: bool = True) -> PyTree:
    """A NamedSharding for each array of a batch, global shapes.

    batch: tree of arrays or ShapeDtypeStructs [b ...]; with `accumulation`, [a b/a ...], its pieces first. The
    arrays of a Row lie as `Row.map_axes` says, videos [b t h w 3] as VIDEO does, and anything else is shared out over
    the batch only. What does not divide stays whole; only the batch itself must, if `strict`.
    """

    def sharding_of(leaf, names: Names | None = None) -> NamedSharding:
        shape = leaf.shape[1:] if accumulation else leaf.shape
        if names is None:
            names = VIDEO if len(shape) == 5 and shape[-1] == 3 else ("batch", *[None] * (len(shape) - 1))
        if strict and shape[0] % num_batch_shards(mesh):
            raise ConfigError(
                f"a batch of {shape[0]} rows must be a multiple of data * fsdp = {num_batch_shards(mesh)}: change "
                "batch_size, accumulation or the mesh"
            )
        spec, _ = partition_spec(names, shape, dict(mesh.shape))
        return NamedSharding(mesh, P(None, *spec) if accumulation else spec)

    def each(part):
        return part.map_axes(sharding_of) if isinstance(part, Row) else sharding_of(part)

    return jax.tree.map(each, batch, is_leaf=lambda part: isinstance(part, Row))


def num_batch_shards(mesh: Mesh) -> int:
    """Over how many groups of devices a batch is shared out."""
    return math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"])


def num_shards(name: str) -> int:
    """Over how many devices of the mesh in context a dimension is shared out that they divide."""
    sizes = _auto_axes()
    return math.prod(sizes.get(axis, 1) for axis in RULES[name])


def constrain(x: Array, names: Names) -> Array:
    """Asks for the table's sharding of an activation; a no-op where no mesh is in context.

    x: an array with one dimension for each of `names`. The mesh comes from `jax.set_mesh`; inside
    `shard_map` its manual axes are left alone.
    """
    return _constrain(x, names, ())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def all_gather_param(parameter: Array, names: Names) -> Array:
    """A parameter as a product takes it: whole over the mesh axes of the batch, split over the others.

    Makes FSDP explicit: all-gather the weight before use, reduce-scatter its gradient. Without this XLA sometimes
    moves activations instead, or weights over other mesh axes.
    """
    return _constrain(parameter, names, RULES["batch"])


def _gathered_forward(parameter: Array, names: Names) -> tuple[Array, None]:
    return all_gather_param(parameter, names), None


def _gathered_backward(names: Names, _: None, gradient: Array) -> tuple[Array]:
    return (constrain(gradient, names),)


all_gather_param.defvjp(_gathered_forward, _gathered_backward)


def look_up(table: Array, ids: Array) -> Array:
    """Rows of a table ("vocab", "embed"): `[v d]`, int `[b ...] -> [b ... d]`.

    The table stays where it is. Devices that hold other columns of it look up each other's ids, and then exchange
    columns for rows; asked for rows at once, XLA would have every device look up the whole batch.
    """
    sizes, without = _auto_axes(), RULES["embed"]
    ids = _constrain(ids, ("batch", *[None] * (ids.ndim - 1)), without)
    rows = jnp.take(table, ids, axis=0)
    if not sizes:
        return rows
    left = {name: size for name, size in sizes.items() if name not in without}
    batch, _ = partition_spec(("batch",), rows.shape[:1], left)
    width, _ = partition_spec(("embed",), rows.shape[-1:], sizes)
    rows = jax.lax.with_sharding_constraint(rows, P(*batch, *[None] * (rows.ndim - 2), *width))
    return constrain(rows, ("batch", *[None] * (rows.ndim - 1)))


def _constrain(x: Array, names: Names, without: Sequence[str]) -> Array:
    sizes = _auto_axes()
    if not sizes:
        return x
    spec, _ = partition_spec(names, x.shape, {name: size for name, size in sizes.items() if name not in without})
    return jax.lax.with_sharding_constraint(x, spec)


def _auto_axes() -> dict[str, int]:
    """Axes of the mesh in context that XLA places, with their sizes; none where all are of one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    sizes = {name: size for name, size, kind in axes if kind == AxisType.Auto}
    return {} if all(size == 1 for size in sizes.values()) else sizes


PIECE = 256 * 2**20  # bytes of an array that are whole on every device at a time


def to_host(x: Array) -> np.ndarray:
    """The whole array on this host.

    x: of any shape. Where other hosts hold parts of it, every host must call this; then it goes over the devices'
    network in pieces, so that an array may be larger than a device.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    out = np.empty(x.shape, x.dtype)
    lead = min(2, x.ndim)  # clips and their frames
    each = max(1, x.dtype.itemsize * int(np.prod(x.shape[lead:])))
    length = x.shape[lead - 1]
    count = min(length, max(1, PIECE // each))
    whole = NamedSharding(x.sharding.mesh, P())
    for row in np.ndindex(x.shape[: lead - 1]):
        for start in range(0, length, count):
            start = min(start, length - count)  # the last piece overlaps: one size, one program
            piece = _piece(count, whole)(x, np.asarray([*row, start], np.int32))
            out[(*row, slice(start, start + count))] = np.asarray(piece)
    return out


@functools.lru_cache(maxsize=8)
def _piece(count: int, whole: NamedSharding):
    def cut(x, start):
        for i in range(start.shape[0] - 1):
            x = jax.lax.dynamic_index_in_dim(x, start[i], axis=0, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(x, start[-1], count, axis=0)

    return jax.jit(cut, out_shardings=whole)
