"""Weights of dense layers in fewer bits: int8 or float8 with a factor for each output channel, or bfloat16.

Weights only: a Linear turns its kernel back into its own type for the product, `y = (x Wq) s` (vdit/nn/layers.py),
so activations stay as they are, and memory and its traffic fall by four against float32. Rounding is to nearest,
with s = max |W| / (largest value of the type) over each output channel's column: absmax, no data needed.

The qwix library's weights-only mode finds weights by intercepting jax's products while a module runs. It does not see
into a custom derivative, which every Linear here has, and silently leaves all kernels in float32 (0.1.8).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from vdit.errors import ConfigError
from vdit.types import Array, PyTree

Kind = Literal["int8", "fp8"]
DTYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}

# Layers that stay as they are, by patterns on "/"-joined paths: what is small, runs once for a whole video and reaches
# every token (time, text and class embeddings, modulation), and the first and the last layer of a network.
KEEP = (
    "*time_*", "*modulation*", "*text_embed/*", "*text_pool/*", "*image_embed*", "*label*", "*patch_embed*", "*head*",
)  # fmt: skip
# What diffusers keeps in float32 when Wan's other weights are cast: the time embedding, tables, all norms.
KEEP_FLOAT32 = ("*time_in/*", "*time_out/*", "*table", "*norm/*", "*norm_*")


def quantise(params: PyTree, kind: Kind = "int8", *, keep: Sequence[str] = KEEP, smallest: int = 64) -> PyTree:
    """Parameters with their dense kernels in fewer bits.

    Only kernels of dense layers change, [i o] or stacks of them [layers i o]. Embeddings, norms, biases and
    convolutions stay. Arrays keep their sharding.

    Args:
        params: tree of parameters.
        kind: "int8", or "fp8" (float8_e4m3fn).
        keep: patterns on "/"-joined paths of layers that stay as they are.
        smallest: kernels with a side shorter than this stay as they are.

    Returns:
        The tree with kernels in the new dtype, and `kernel_scale` float32 [.. o] beside each of them.

    Raises:
        ConfigError: `kind` is unknown.
    """
    if kind not in DTYPES:
        raise ConfigError(f"quantise: kind {kind!r} is unknown: use one of {', '.join(DTYPES)}")
    flat = flatten_dict(params)
    for path in list(flat):
        if is_quantisable("/".join(path), flat[path], keep=keep, smallest=smallest):
            flat[path], flat[*path[:-1], "kernel_scale"] = _quantise(flat[path], DTYPES[kind])
    return unflatten_dict(flat)


def is_quantisable(path: str, leaf: Array, *, keep: Sequence[str] = KEEP, smallest: int = 64) -> bool:
    """Whether `quantise` changes a parameter.

    Args:
        path: its "/"-joined path, such as "blocks/mlp/up/kernel".
        leaf: the array, or its shape and dtype.
        keep: as in `quantise`.
        smallest: as in `quantise`.
    """
    *layer, last = path.split("/")
    stacked = "blocks" in layer
    if last != "kernel" or leaf.ndim != 2 + stacked or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return False
    kept = any(fnmatch.fnmatch("/".join(layer), pattern) for pattern in keep)
    return not kept and leaf.dtype.itemsize > 1 and min(leaf.shape[-2:]) >= smallest


def cast(params: PyTree, dtype: str = "bfloat16", *, keep: Sequence[str] = KEEP_FLOAT32) -> PyTree:
    """Parameters in another dtype.

    Args:
        params: tree of parameters.
        dtype: of the result.
        keep: patterns on "/"-joined paths of parameters that stay as they are.

    Returns:
        The tree; quantised kernels and low-rank additions stay as they are too.
    """

    def one(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        separate = name.endswith(("kernel_scale", "lora_a", "lora_b", "lora_scale")) or leaf.dtype.itemsize == 1
        kept = any(fnmatch.fnmatch(name, pattern) for pattern in keep)
        return leaf if separate or kept else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def _quantise(kernel: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """(kernel in `dtype`, float32 factors [.. o]): a column's largest entry becomes the type's largest value."""
    integer = jnp.issubdtype(dtype, jnp.integer)
    most = jnp.iinfo(dtype).max if integer else float(jnp.finfo(dtype).max)
    kernel = jnp.asarray(kernel).astype(jnp.float32)
    peak = jnp.max(jnp.abs(kernel), axis=-2)
    scale = jnp.where(peak > 0, peak / most, 1.0)
    scaled = kernel / scale[..., None, :]
    return (jnp.round(scaled) if integer else scaled).astype(dtype), scale
