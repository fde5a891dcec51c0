"""Normalisations, computed in float32 whatever the input's type, returned in the input's type."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.nn.halo import WHOLE, Split
from vdit.types import Array


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Layer normalisation over the last axis, without learned scale or shift."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return y.astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float = 1e-6) -> Array:
    """Root-mean-square normalisation over the last axis, times `scale` (Zhang and Sennrich, 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with learned scale and shift: `[... d] -> [... d]`."""

    eps: float = 1e-6
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = (x.shape[-1],)
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,)), width)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros_init(), (self.axis,)), width)
        y = layer_norm(x.astype(jnp.float32), self.eps) * scale + bias
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis with a learned scale: `[... d] -> [... d]`."""

    eps: float = 1e-6
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
        return rms_norm(x, self.param("scale", init, (x.shape[-1],)), self.eps)


class GroupNorm(nn.Module):
    """Normalises each group of channels over the places of a frame (Wu and He, 2018): `[... h w c]`, same shape.

    With learned scale and shift. groups: equal pieces of the channels, in order. split: rows may be shared out.
    """

    groups: int = 32
    eps: float = 1e-6
    axis: str | None = "embed"
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        *_, height, width, channels = x.shape
        shape, axes = x.shape[-1:], (self.axis,)
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones_init(), axes), shape)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros_init(), axes), shape)
        y = x.astype(jnp.float32).reshape(-1, height * width, self.groups, channels // self.groups)
        mean = lambda y: self.split.mean_over_rows(jnp.mean(y, (1, 3), keepdims=True))  # noqa: E731
        y = y - mean(y)
        y = y * jax.lax.rsqrt(mean(jnp.square(y)) + self.eps)
        return (y.reshape(x.shape) * scale + bias).astype(x.dtype)
