"""Dense layers and normalisations, whose parameters name their logical axes (vdit/dist/rules.py).

Normalisations are computed in float32 for every input dtype, and returned in the dtype of the input.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.dist.mesh import platform
from vdit.dist.rules import all_gather_param
from vdit.nn.halo import WHOLE, Split
from vdit.types import Array

default_kernel_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # Glorot, as in DiT


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
    """`x @ kernel`, with a backward that XLA runs at full speed.

    JAX's own derivative of a batched matrix product transposes the kernel's gradient. On a CPU such a product runs at
    half speed. Here the gradient is computed in the layout of the kernel.

    Args:
        x: [... i].
        kernel: [i o].

    Returns:
        [... o].
    """
    return x @ kernel


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    batch = tuple(range(x.ndim - 1))
    dx = jax.lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())))
    if kernel.shape[0] > kernel.shape[1] and platform() == "cpu":
        # One side is transposed in memory: the narrower one, and not element by element while it is computed.
        dy = jax.lax.optimization_barrier(dy)
        dkernel = jax.lax.dot_general(dy, x, ((batch, batch), ((), ()))).T
    else:
        dkernel = jax.lax.dot_general(x, dy, ((batch, batch), ((), ())))
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nn.Module):
    """Dense layer `[... i] -> [... features]`; parameters in float32, the product in `dtype`.

    Parameters beside `kernel` and `bias` are used where they exist, so a model is the same module in every form of its
    weights: a quantised kernel's factors `kernel_scale` [features] (vdit/nn/quantise.py), and a low-rank addition
    `lora_a` [i r], `lora_b` [r features], `lora_scale` [] (vdit/nn/lora.py).

    features: width of the output.
    kernel_axes: logical names of the kernel's two axes (vdit/dist/rules.py).
    use_bias: add a bias [features].
    dtype: of the product and the output.
    kernel_init: initializer of the kernel.
    """

    features: int
    kernel_axes: tuple[str | None, str | None] = ("embed", "mlp")
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = default_kernel_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.with_logical_partitioning(self.kernel_init, self.kernel_axes), shape)
        x = x.astype(self.dtype)
        if kernel.dtype.itemsize > jnp.dtype(self.dtype).itemsize:
            kernel = kernel.astype(self.dtype)  # the narrower of the two travels
        y = matmul(x, all_gather_param(kernel, self.kernel_axes).astype(self.dtype))
        if self.has_variable("params", "kernel_scale"):
            y = (y * self.get_variable("params", "kernel_scale")).astype(self.dtype)
        if self.has_variable("params", "lora_a"):
            a, b, scale = (self.get_variable("params", f"lora_{name}") for name in ("a", "b", "scale"))
            low = matmul(matmul(x, a.astype(self.dtype)), b.astype(self.dtype))
            y = y + (low * scale).astype(self.dtype)
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.kernel_axes[1:])
            y = y + self.param("bias", init, (self.features,)).astype(self.dtype)
        return y


class MLP(nn.Module):
    """Linear, tanh-approximated GELU, Linear: `[... d] -> [... features]`.

    hidden: width between the two layers.
    features: width of the output.
    dtype: of the products and the output.
    """

    hidden: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Linear(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="up")(x)
        x = nn.gelu(x, approximate=True)
        return Linear(self.features, ("mlp", "embed"), dtype=self.dtype, name="down")(x)


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Layer normalisation over the last axis, without learned scale or shift (Ba et al., 2016).

    Args:
        x: [... d], any float dtype.
        eps: added to the variance.

    Returns:
        [... d] in the dtype of x, computed in float32.
    """
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return y.astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float = 1e-6) -> Array:
    """Root-mean-square normalisation over the last axis, times `scale` (Zhang and Sennrich, 2019).

    Args:
        x: [... d], any float dtype.
        scale: [d].
        eps: added to the mean square.

    Returns:
        [... d] in the dtype of x, computed in float32.
    """
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
    """Normalises groups of channels over all positions of a frame: `[... h w c]`, same shape (Wu and He, 2018).

    It has a learned scale and shift.

    groups: equal parts of the channels, in order.
    eps: added to the variance.
    axis: logical name of the channels.
    split: devices that share the rows of a frame.
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
