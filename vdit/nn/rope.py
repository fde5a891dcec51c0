"""Rotary position embedding over time, height and width (Su et al. 2021; 3D split as in Wan)."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from vdit.types import Array

MAX_POSITION = 1024


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's dimensions turn with t, h and w: h = w = 2 * (head_dim // 6), t the rest."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


@functools.cache
def _table(dims: int, theta: float, max_position: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position * frequency, float64 inside, float32 [max_position dims/2] out."""
    frequency = theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
    angle = np.arange(max_position, dtype=np.float64)[:, None] * frequency
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotations(
    position: Array, head_dim: int, *, theta: float = 10_000.0, max_position: int = MAX_POSITION
) -> tuple[Array, Array]:
    """cos and sin for every token: int `[b n 3]` -> two float32 `[b n head_dim/2]`.

    Positions run from 0 to max_position - 1 on each axis (whoever builds rows keeps to it).
    """
    cos, sin = [], []
    for axis, dims in enumerate(axis_dims(head_dim)):
        table_cos, table_sin = _table(dims, theta, max_position)
        cos.append(jnp.take(jnp.asarray(table_cos), position[..., axis], axis=0))
        sin.append(jnp.take(jnp.asarray(table_sin), position[..., axis], axis=0))
    return jnp.concatenate(cos, -1), jnp.concatenate(sin, -1)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn interleaved pairs of each head: `[b n h d]` by `[b n d/2]` -> `[b n h d]`."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)
