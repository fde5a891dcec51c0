"""NaN and infinity, found in arrays of the host and of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vdit.types import PyTree

_BLOCK = 1 << 20
# The bits that are all set in NaN and infinity, and in no other number.
_EXPONENTS = {
    "float32": np.uint32(0x7F800000),
    "bfloat16": np.uint16(0x7F80),
    "float16": np.uint16(0x7C00),
    "float8_e5m2": np.uint8(0x7C),
    "float8_e4m3fn": np.uint8(0x7F),
}


def all_finite(values: np.ndarray) -> bool:
    """Whether no number is NaN or infinite. Looks at the bits, block by block: fast, and in flat memory."""
    mask = _EXPONENTS.get(values.dtype.name)
    if mask is None:
        return not jnp.issubdtype(values.dtype, jnp.floating) or bool(np.isfinite(values).all())
    bits = values.reshape(-1).view(mask.dtype)
    return not any(((bits[i : i + _BLOCK] & mask) == mask).any() for i in range(0, len(bits), _BLOCK))


def nonfinite_names(tree: PyTree) -> list[str]:
    """Names, as in "dit.blocks.kernel", of a tree's arrays that hold NaN or infinity.

    Args:
        tree: arrays of the host or of devices. On several hosts all of them call this in the same order, where a
            device array is spread over hosts.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    floats = [(path, leaf) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    flags = jax.device_get([_finite(leaf) for _, leaf in floats])  # one wait for all devices
    return [_name(path) for (path, _), finite in zip(floats, flags) if not finite]


def _finite(leaf: jax.Array | np.ndarray) -> jax.Array | bool:
    on_host = isinstance(leaf, np.ndarray) or (
        leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())
    )
    return all_finite(np.asarray(leaf)) if on_host else _device_finite(leaf)


@jax.jit
def _device_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def _name(path: tuple) -> str:
    parts = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
    return ".".join(map(str, parts))
