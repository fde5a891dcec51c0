"""Dense layers that name the logical axes of their parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.dist.mesh import platform
from vdit.dist.rules import all_gather_param
from vdit.types import Array

default_kernel_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")  # Glorot, as in DiT


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
    """`x [... i] @ kernel [i o] -> [... o]`, with a backward that XLA runs at full speed.

    The derivative that JAX makes of a batched matrix product transposes the kernel's gradient, and on
    CPU such a product runs at half speed. Here it is written in the layout of the kernel.
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
    """`[... i] -> [... features]`; parameters in float32, the product in `dtype`.

    kernel_axes: logical names of the kernel's two axes (see vdit/dist/rules.py).
    Parameters that are there beside `kernel` and `bias` are used, so that a model is the same module however its
    weights are held: a quantised kernel's factors `kernel_scale` [features] (vdit/nn/quantise.py), and a low-rank
    addition `lora_a` [i r], `lora_b` [r features], `lora_scale` [] (vdit/nn/lora.py).
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
    """Linear, tanh-approximated GELU, Linear: `[... d] -> [... features]`."""

    hidden: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Linear(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="up")(x)
        x = nn.gelu(x, approximate=True)
        return Linear(self.features, ("mlp", "embed"), dtype=self.dtype, name="down")(x)
