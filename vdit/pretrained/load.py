"""Public weights onto a mesh: one tensor at a time from disk to the devices, each its own part only."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from vdit.pretrained.plan import check, check_names, flatten, make_plan
from vdit.pretrained.tensors import TensorFiles
from vdit.pretrained.weights import Rule
from vdit.types import PyTree

__all__ = ["check", "check_names", "load"]


def load(
    rules: Iterable[Rule],
    tensors: TensorFiles,
    abstract: PyTree,
    *,
    dtype: str | None = None,
    ignore: Sequence[str] = (),
) -> PyTree:
    """The parameters that `tensors` hold, after `check`.

    abstract: nested dicts of ShapeDtypeStructs; where they have a sharding, the array gets it, else the first device.
    dtype: "float32", "bfloat16" or "float16" for all floats; None keeps the tensors' own (float32 where the layers of
    one stack differ). ignore: how names begin that may be there and are not read.
    On several hosts each reads the files and keeps its part.
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
            arrays[path] = _set_layer(stack, _place(values, _of_layer(sharding)), np.int32(layer), sharding)
        jax.block_until_ready(arrays[path])  # else tensors wait in host memory for their devices

    plan.feed(put)
    paths = jax.tree.unflatten(jax.tree.structure(abstract), list(flatten(abstract)))
    return jax.tree.map(arrays.__getitem__, paths)


def _sharding(struct: jax.ShapeDtypeStruct) -> Sharding:
    return struct.sharding or SingleDeviceSharding(jax.local_devices()[0])


def _of_layer(sharding: Sharding) -> Sharding:
    """Where one layer of a stack lies: as the stack, without its first axis."""
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
