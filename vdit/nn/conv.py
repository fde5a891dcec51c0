"""Convolutions over video `[b t h w c]`: causal in time, with a streaming cache, and per frame.

XLA's 3D convolution is slow on CPU. There the kernel is taken apart into one 2D convolution for each
of its time taps, and their results are added: the same numbers, several times faster.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.errors import ConfigError
from vdit.nn.linear import matmul
from vdit.types import Array

Formulation = Literal["auto", "taps", "native"]
Pads = tuple[tuple[int, int], tuple[int, int]]

kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def compiler_options(platform: str | None = None) -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=...)` of a step with convolutions; None where none help.

    platform: "cpu", "gpu" or "tpu"; the default backend's when None. On CPU, XLA hands parts of a program
    to a library; with the library's convolutions left out, their gradients are 2 to 3 times faster.
    Sums stay with it: without, a bias's gradient takes longer than the convolution's.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    kept = ("INDIVIDUAL_DOT", "REDUCE")
    return {"xla_cpu_experimental_ynn_fusion_type": ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kept)}


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: tuple[int, int, int] = (1, 1, 1),
    padding: Pads = ((0, 0), (0, 0)),
    formulation: Formulation = "auto",
) -> Array:
    """3D convolution `[b t h w i] -> [b t' h' w' o]`, without padding in time.

    kernel: [kt kh kw i o]. strides: in t, h, w. padding: zeros before and after, in h and w.
    formulation: "native" is XLA's 3D convolution, "taps" one 2D convolution for each time tap, "auto"
    takes taps on CPU and native elsewhere. Both give the same numbers up to rounding.
    """
    if formulation not in ("auto", "taps", "native"):
        raise ConfigError(f"conv formulation {formulation!r} is unknown: use auto, taps or native")
    if formulation == "auto":
        formulation = "taps" if jax.default_backend() == "cpu" else "native"
    if kernel.shape[:3] == (1, 1, 1) and strides == (1, 1, 1) and padding == ((0, 0), (0, 0)):
        return matmul(x, kernel[0, 0, 0])
    if formulation == "native":
        return jax.lax.conv_general_dilated(
            x, kernel, strides, ((0, 0), *padding), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    return _conv_taps(x, kernel, strides, padding)


def _conv_taps(x: Array, kernel: Array, strides: tuple[int, int, int], padding: Pads) -> Array:
    b, t, h, w, c = x.shape
    taps = kernel.shape[0]
    frames = (t - taps) // strides[0] + 1
    y = None
    for tap in range(taps):
        window = x[:, tap : tap + strides[0] * (frames - 1) + 1 : strides[0]]
        part = jax.lax.conv_general_dilated(
            window.reshape(b * frames, h, w, c),
            kernel[tap],
            strides[1:],
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = part if y is None else y + part
    return y.reshape(b, frames, *y.shape[1:])


class Conv(nn.Module):
    """Convolution with bias `[b t h w i] -> [b t' h' w' features]`; parameters in float32, work in `dtype`.

    kernel: size in t, h, w; (1, k, k) works on each frame alone. padding: zeros before and after in
    t, h, w; None keeps the size at stride 1 (odd kernels).
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[tuple[int, int], ...] | None = None
    dtype: jnp.dtype = jnp.float32
    formulation: Formulation = "auto"
    kernel_init: nn.initializers.Initializer = kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = (None, None, None, "conv_in", "conv_out")
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.with_logical_partitioning(self.kernel_init, axes), shape)
        bias = self.param("bias", nn.with_logical_partitioning(self.bias_init, axes[-1:]), (self.features,))
        time, *space = self.padding or tuple((size // 2, size // 2) for size in self.kernel)
        if time != (0, 0):
            x = jnp.pad(x, ((0, 0), time, (0, 0), (0, 0), (0, 0)))
        y = conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=tuple(space),
            formulation=self.formulation,
        )
        return y + bias.astype(self.dtype)


class CausalConv(nn.Module):
    """Convolution in which a frame sees itself and the frames before it: `[b t h w i] -> [b t h w features]`.

    __call__(x, cache) -> (y, cache). The cache is what the next chunk needs: the last kt-1 input frames
    [b kt-1 h w i]. None stands for the start of a clip: zeros.
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    dtype: jnp.dtype = jnp.float32
    formulation: Formulation = "auto"
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Array, cache: Array | None = None) -> tuple[Array, Array]:
        history = self.kernel[0] - 1
        if cache is None:
            cache = jnp.zeros((x.shape[0], history, *x.shape[2:]), x.dtype)
        x = jnp.concatenate([cache, x], axis=1)
        space = tuple((size // 2, size // 2) for size in self.kernel[1:])
        y = Conv(
            self.features,
            self.kernel,
            padding=((0, 0), *space),
            dtype=self.dtype,
            formulation=self.formulation,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        return y, x[:, x.shape[1] - history :]


def upsample_nearest(x: Array, times: int = 2) -> Array:
    """Repeats rows and columns: `[b t h w c] -> [b t times*h times*w c]`."""
    b, t, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, :, None, :, None, :], (b, t, h, times, w, times, c))
    return x.reshape(b, t, h * times, w * times, c)
