"""Embeddings of ids, times and positions; rotary positions over time, height and width (Su et al. 2021; as in Wan)."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdit.dist.rules import look_up
from vdit.types import Array


class Embed(nn.Module):
    """A learned table: int `[...] -> [... features]`, float32."""

    count: int
    features: int
    stddev: float = 0.02

    def setup(self) -> None:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), ("vocab", "embed"))
        self.embedding = self.param("embedding", init, (self.count, self.features))

    def __call__(self, ids: Array) -> Array:
        return look_up(self.embedding, ids)

    def attend(self, x: Array, dtype: jnp.dtype) -> Array:
        """Products with every row, taken in `dtype`: `[... features] -> float32 [... count]`."""
        table = self.embedding.astype(dtype)
        return jnp.einsum("...d,vd->...v", x.astype(dtype), table, preferred_element_type=jnp.float32)


def sinusoid(x: Array, width: int, *, max_period: float = 10_000.0, shift: int = 0) -> Array:
    """`[cos | sin]` features of a scalar, as DiT and Wan embed times.

    Args:
        x: float [...].
        width: of the features, even.
        max_period: frequencies fall geometrically from 1 to about 1 / max_period.
        shift: with 1 the last frequency is exactly 1 / max_period.

    Returns:
        float32 [... width].
    """
    half = width // 2
    # The exponent is rounded to float32, as PyTorch does and models were trained: exact ones are up to 8e-7 off
    # theirs, which at times of 1000 shows in the fourth decimal.
    exponent = np.float32(-np.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    cos, sin = _waves(x, np.exp(exponent.astype(np.float64)))
    return jnp.concatenate([cos, sin], -1)


def sincos_position(position: Array, width: int) -> Array:
    """Fixed position features of DiT, extended over time.

    The spatial part is DiT's (the 2D sin-cos of MAE: a quarter of the width each for sin and cos of the column w, then
    of the row h). The temporal part has the whole width and is taken relative to frame 0, so an image gets exactly
    DiT's features.

    Args:
        position: int [b n 3], (t, h, w).
        width: of the features, a multiple of 4.

    Returns:
        float32 [b n width].
    """
    t, h, w = position[..., 0], position[..., 1], position[..., 2]
    space = jnp.concatenate([_sin_cos(w, width // 2), _sin_cos(h, width // 2)], -1)
    return space + _sin_cos(t, width) - _sin_cos(jnp.zeros_like(t), width)


def _sin_cos(x: Array, width: int) -> Array:
    half = width // 2
    cos, sin = _waves(x, 10_000.0 ** (-np.arange(half) / half))
    return jnp.concatenate([sin, cos], -1)


def _waves(x: Array, frequency: np.ndarray) -> tuple[Array, Array]:
    angle = jnp.asarray(x, jnp.float32)[..., None] * jnp.asarray(frequency, jnp.float32)
    return jnp.cos(angle), jnp.sin(angle)


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
    """Cosine and sine of the rotary angles of every token (Su et al., 2021).

    Args:
        position: int [b n 3], (t, h, w), each from 0 to max_position - 1; the code that builds rows checks this.
        head_dim: values of one head.
        theta: base of the frequencies.
        max_position: size of the tables.

    Returns:
        (cos, sin), each float32 [b n head_dim/2].
    """
    cos, sin = [], []
    for axis, dims in enumerate(axis_dims(head_dim)):
        table_cos, table_sin = _table(dims, theta, max_position)
        cos.append(jnp.take(jnp.asarray(table_cos), position[..., axis], axis=0))
        sin.append(jnp.take(jnp.asarray(table_sin), position[..., axis], axis=0))
    return jnp.concatenate(cos, -1), jnp.concatenate(sin, -1)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates interleaved pairs of each head's values.

    Args:
        x: [b n h d].
        cos: float32 [b n d/2], see `rotations`.
        sin: float32 [b n d/2].

    Returns:
        [b n h d] in the dtype of x.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)
