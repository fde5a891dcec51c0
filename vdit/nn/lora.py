"""Low-rank additions to dense layers (LoRA; Hu et al., 2021): as separate factors, merged, or new for training.

As separate factors they are three more parameters of a Linear (vdit/nn/layers.py), so any model takes them as it is:
`y = x W + ((x A) B) scale`. Merged they are part of its kernel: `W + scale A B`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdit.errors import ConfigError, WeightsError
from vdit.reprs import listed, short_repr
from vdit.types import Array, PyTree

Path = tuple[str, ...]
LEAVES = ("lora_a", "lora_b", "lora_scale")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """What is added to one kernel [i o]: scale * a @ b, with a [i r] and b [r o]."""

    a: Array
    b: Array
    scale: float = 1.0


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Additions to a model by layer; the same value for parameters that are stacked over layers and for others.

    layers: name of a dense layer ("block_3/attention/q", "time_projection") -> its addition.
    differences: path of a parameter ("block_3/attention/q/bias") -> array of its shape, added to the whole parameter.
        The mapping may compute an array at each access, so that a difference of the size of a kernel is in memory
        only while it is added.
    """

    layers: Mapping[str, LowRank]
    differences: Mapping[str, Array] = dataclasses.field(default_factory=dict)


def attach(params: PyTree, lora: LoRA, strength: float = 1.0) -> PyTree:
    """The parameters of a model with a LoRA as separate factors. The other arrays are shared, not copied.

    Where parameters have a LoRA already, the ranks are concatenated, so that both count. Layers of one stack get the
    largest rank among them, padded with zeros. New leaves are float32 and have the sharding of their kernel. Whole
    differences have no low rank: they are added to their parameters, as `merge` does.

    Args:
        params: tree of parameters.
        lora: the additions.
        strength: factor of the additions.

    Returns:
        The tree with `lora_a`, `lora_b` and `lora_scale` beside the kernels.

    Raises:
        WeightsError: the model has no such layer, or the layer has another shape.
    """
    flat = flatten_dict(params)
    for path, layers in _by_kernel(flat, lora.layers).items():
        a, b, scale = _stack(flat[*path, "kernel"], layers)
        scale = scale * np.float32(strength)
        if (*path, "lora_a") in flat:
            had = [np.asarray(flat[*path, name]) for name in LEAVES]
            b = np.concatenate([had[1] * had[2][..., None, None], b * scale[..., None, None]], axis=-2)
            a, scale = np.concatenate([had[0], a], axis=-1), np.ones_like(scale)
        for name, leaf in zip(LEAVES, (a, b, scale)):
            flat[*path, name] = _like_kernel(flat[*path, "kernel"], name, leaf)
    _add_differences(flat, lora.differences, strength)
    return unflatten_dict(flat)


def merge(params: PyTree, lora: LoRA, strength: float = 1.0) -> PyTree:
    """The parameters with a LoRA added to their kernels in float32, whole differences included.

    Args:
        params: tree of parameters.
        lora: the additions.
        strength: factor of the additions.

    Raises:
        WeightsError: the model has no such layer, the layer has another shape, or its kernel is quantised.
    """
    flat = flatten_dict(params)
    for path, layers in _by_kernel(flat, lora.layers).items():
        kernel = flat[*path, "kernel"]
        if (*path, "kernel_scale") in flat:
            raise WeightsError(f"{'/'.join(path)} is quantised: merge the LoRA before quantising, or attach it")
        a, b, scale = _stack(kernel, layers)
        flat[*path, "kernel"] = _add(kernel, a, b * (scale * np.float32(strength))[..., None, None])
    _add_differences(flat, lora.differences, strength)
    return unflatten_dict(flat)


def detach(params: PyTree) -> LoRA:
    """The LoRA of parameters that hold it as separate factors, in float32 on the host. Zero ranks stay."""
    flat = flatten_dict(params)
    layers = {}
    for *path, last in flat:
        if last != "lora_a":
            continue
        a, b, scale = (np.asarray(flat[*path, name], np.float32) for name in LEAVES)
        if a.ndim == 2:
            layers["/".join(path)] = LowRank(a=a, b=b, scale=float(scale))
            continue
        for i in range(a.shape[0]):
            name = "/".join([f"block_{i}", *path[1:]])
            layers[name] = LowRank(a=a[i], b=b[i], scale=float(scale[i]))
    return LoRA(layers=layers)


def without_lora(params: PyTree) -> PyTree:
    """The parameters without the separate factors of a LoRA."""
    return unflatten_dict({path: leaf for path, leaf in flatten_dict(params).items() if path[-1] not in LEAVES})


def init_lora(key: jax.Array, boxed: PyTree, *, targets: Sequence[str], rank: int) -> PyTree:
    """New factors for dense layers, in Flax's boxes with their logical axes.

    Args:
        key: random key.
        boxed: parameters in Flax's boxes, or their shapes.
        targets: patterns on the names of dense layers (`dense_layers`).
        rank: of the factors.

    Returns:
        A tree of `lora_a` (uniform, with the variance of PEFT) and `lora_b` (zero, so that training starts at the model
        itself), without the parameters.

    Raises:
        ConfigError: a pattern matches no dense layer.
    """
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    flat = flatten_dict(boxed)
    axes = {path: leaf.names if is_box(leaf) else (None,) * leaf.ndim for path, leaf in flat.items()}
    shapes = {path: nn.meta.unbox(leaf).shape for path, leaf in flat.items()}
    made: dict[Path, PyTree] = {}
    for i, path in enumerate(_chosen(shapes, targets)):
        (*lead, size, features), (*lead_axes, inner, outer) = shapes[*path, "kernel"], axes[*path, "kernel"]
        bound = 1 / math.sqrt(size)
        a = jax.random.uniform(jax.random.fold_in(key, i), (*lead, size, rank), jnp.float32, -bound, bound)
        made[*path, "lora_a"] = nn.LogicallyPartitioned(a, (*lead_axes, inner, None))
        made[*path, "lora_b"] = nn.LogicallyPartitioned(
            jnp.zeros((*lead, rank, features), jnp.float32), (*lead_axes, None, outer)
        )
    return unflatten_dict(made)


def scales(lora: PyTree, scale: float) -> PyTree:
    """The `lora_scale` leaves for a tree of `lora_a` and `lora_b`: float32 [], or [layers] of a stack."""
    flat = flatten_dict(nn.meta.unbox(lora))
    return unflatten_dict(
        {(*path, "lora_scale"): jnp.full(a.shape[:-2], scale, jnp.float32)
         for (*path, last), a in flat.items() if last == "lora_a"}
    )  # fmt: skip


def dense_layers(shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, str]:
    """The dense layers among parameters.

    A layer in a block is named by its path below the block ("attention/q" for each layer of
    "blocks/attention/q/kernel"), another layer by its whole path ("time_projection").

    Args:
        shapes: path of a parameter -> its shape.

    Returns:
        Path of a layer -> its name, as the patterns of `init_lora` use it.
    """
    found = {}
    for (*path, last), shape in shapes.items():
        stacked = path[:1] == ["blocks"]
        if last == "kernel" and len(shape) == 2 + stacked:
            inside = stacked or (path[0].startswith("block_") and len(path) > 1)
            found[tuple(path)] = "/".join(path[1:] if inside else path)
    return found


def join(*trees: PyTree) -> PyTree:
    """One nested dict of several that share no leaf, such as frozen parameters and their LoRA."""
    flat: dict[Path, Array] = {}
    for tree in trees:
        flat |= flatten_dict(tree)
    return unflatten_dict(flat)


def _chosen(shapes: Mapping[Path, tuple[int, ...]], targets: Sequence[str]) -> list[Path]:
    dense = dense_layers(shapes)
    for pattern in targets:
        if not fnmatch.filter(dense.values(), pattern):
            names = ", ".join(sorted(set(dense.values())))
            raise ConfigError(f"lora.targets: {pattern!r} matches no dense layer of this model: it has {names}")
    return sorted(path for path, name in dense.items() if any(fnmatch.fnmatch(name, p) for p in targets))


def _locate(flat: Mapping[Path, Array], name: str) -> tuple[Path, int | None]:
    """Where a layer or parameter called by its unstacked name lies: (path, index in the stack or None)."""
    first, *rest = name.split("/")
    if first.startswith("block_") and any(path[0] == "blocks" for path in flat):
        return ("blocks", *rest), int(first.removeprefix("block_"))
    return (first, *rest), None


def _by_kernel(flat: Mapping[Path, Array], layers: Mapping[str, LowRank]) -> dict[Path, dict[int | None, LowRank]]:
    """Additions by the kernel that they are for, after a check of names and shapes."""
    found: dict[Path, dict[int | None, LowRank]] = {}
    missing, wrong = [], []
    for name, low in layers.items():
        path, layer = _locate(flat, name)
        kernel = flat.get((*path, "kernel"))
        if kernel is None or (layer is not None and layer >= kernel.shape[0]):
            missing.append(name)
        elif (*low.a.shape[:1], *low.b.shape[1:]) != kernel.shape[-2:] or low.a.shape[1] != low.b.shape[0]:
            wrong.append(f"{name}: {low.a.shape} x {low.b.shape} for a kernel of {kernel.shape[-2:]}")
        else:
            found.setdefault(path, {})[layer] = low
    if missing:
        raise WeightsError(f"the LoRA is for layers that this model does not have: {listed(missing)}")
    if wrong:
        raise WeightsError(f"the LoRA has other sizes than this model: {listed(wrong)}")
    return found


def _stack(kernel: Array, layers: Mapping[int | None, LowRank]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a [.. i r], b [.. r o], scale [..]) float32 for a kernel [.. i o]; zeros where there is no addition."""
    rank = max(low.a.shape[1] for low in layers.values())
    *lead, size, features = kernel.shape
    a, b = np.zeros((*lead, size, rank), np.float32), np.zeros((*lead, rank, features), np.float32)
    scale = np.ones(lead, np.float32)
    for layer, low in layers.items():
        index, r = (() if layer is None else (layer,)), low.a.shape[1]
        a[(*index, slice(None), slice(r))] = np.asarray(low.a, np.float32)
        b[(*index, slice(r), slice(None))] = np.asarray(low.b, np.float32)
        scale[index] = low.scale
    return a, b, scale


def _add_differences(flat: dict[Path, Array], differences: Mapping[str, Array], strength: float) -> None:
    """Adds each difference, times the strength, to its parameter in `flat`, in float32."""
    ours: set[Path] = set()  # arrays that were made here, so their memory can be used again
    for name in differences:
        path, layer = _locate(flat, name)
        if path not in flat or (layer is not None and layer >= flat[path].shape[0]):
            raise WeightsError(f"{name}: a LoRA has a difference for it, and this model has no such parameter")
        leaf, difference = jnp.asarray(flat[path]), np.asarray(differences[name], np.float32)
        if (*path[:-1], "kernel_scale") in flat and path[-1] == "kernel":
            raise WeightsError(f"{'/'.join(path[:-1])} is quantised: add the LoRA before quantising")
        shape = leaf.shape if layer is None else leaf.shape[1:]
        if shape != difference.shape:
            raise WeightsError(f"{name}: a difference of shape {difference.shape} for a parameter of {shape}")
        sharding = leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None
        add = _difference_adder(sharding, layer is not None, path in ours)
        flat[path] = add(leaf, difference, np.float32(strength), np.int32(layer or 0))
        ours.add(path)


def _like_kernel(kernel: Array, name: str, leaf: np.ndarray) -> Array:
    """The leaf where its kernel lies: rows of `a` as the kernel's, columns of `b` as the kernel's."""
    sharding = getattr(kernel, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return jnp.asarray(leaf)
    *lead, inner, outer = (*sharding.spec, *[None] * (kernel.ndim - len(sharding.spec)))
    ends = {"lora_a": (inner, None), "lora_b": (None, outer), "lora_scale": ()}[name]
    return jax.device_put(leaf, NamedSharding(sharding.mesh, P(*lead, *ends)))


def _add(kernel: Array, a: np.ndarray, b: np.ndarray) -> Array:
    """kernel + a @ b in float32, in the kernel's type and place."""
    return _adder(getattr(kernel, "sharding", None), kernel.ndim > 2)(kernel, a, b)


@functools.lru_cache(maxsize=64)
def _adder(sharding: jax.sharding.Sharding | None, stacked: bool):
    """The compiled sum; one layer of a stack at a time, so that no product of the stack's size is held."""

    def one(kernel, a, b):
        return (kernel.astype(jnp.float32) + jnp.matmul(a, b, precision="highest")).astype(kernel.dtype)

    run = (lambda *stacks: jax.lax.map(lambda parts: one(*parts), stacks)) if stacked else one
    return jax.jit(run, out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _difference_adder(sharding: NamedSharding | None, stacked: bool, donate: bool):
    """The compiled sum of a parameter, or of one layer of a stack, and a whole difference.

    donate: the parameter's memory may hold the sum, so that a stack is not copied again for each of its layers.
    """

    def add(leaf, difference, strength, layer):
        index = (layer,) if stacked else ()
        total = leaf[index].astype(jnp.float32) + strength * difference
        return leaf.at[index].set(total.astype(leaf.dtype))

    return jax.jit(add, out_shardings=sharding, donate_argnums=(0,) if donate else ())
