"""Convolutions over video `[b t h w c]`: causal in time, with a streaming cache, and per frame.

XLA's 3D convolution is slow on CPU. There the kernel is split into one 2D convolution for each
of its time taps, whose results are added: the same numbers, several times faster. Where frames are many and
channels wide, they share products (`convolve_frames`), and it takes half the multiplications.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdit.dist.mesh import platform
from vdit.errors import ConfigError
from vdit.nn.halo import WHOLE, Split
from vdit.nn.layers import matmul
from vdit.types import Array

# Fewer multiplications: the same sums, arranged so that frames share products. A convolution of three taps along an
# axis is a product of polynomials, and can be had from its values at a few points (Toom and Cook; Winograd, 1980; for
# networks Lavin and Gray, 2016). m outputs then cost m + 2 products instead of 3 m: half as many for m = 4. Here a
# product is a whole convolution of frames; the sums around it cost little. Results differ from the plain sum by
# rounding, about ten times float32's for m = 4: nothing for bfloat16.

# Points at which polynomials are evaluated, the last (infinity) implied. These keep the rounding small.
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 0.5, -2.0)}


@functools.cache
def matrices(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A [m m+2], G [m+2 3], B [m+2 m+2]) with y = A ((G g) * (B x)) for y_i = sum_j g_j x_(i+j), m = `outputs`."""
    points = np.array(POINTS[outputs])
    n = outputs + 2
    powers = points[:, None] ** np.arange(n)  # [n-1 n]
    gaps = points[:, None] - points + np.eye(n - 1)
    a, g, b = np.zeros((outputs, n)), np.zeros((n, 3)), np.zeros((n, n))
    a[:, :-1], a[-1, -1] = powers[:, :outputs].T, 1.0
    g[:-1], g[-1, -1] = powers[:, :3] / gaps.prod(1, keepdims=True), 1.0
    for i in range(n - 1):
        b[i, :-1] = np.poly(np.delete(points, i))[::-1]
    b[-1] = np.poly(points)[::-1]
    return a, g, b


def convolve_frames(x: Array, kernel: Array, outputs: int, frame_conv: Callable[[Array, Array], Array]) -> Array:
    """Three taps in time without padding, with products shared between frames.

    Args:
        x: [b n*outputs+2 h w i].
        kernel: [3 kh kw i o].
        outputs: frames that share products, a key of POINTS.
        frame_conv: convolves frames one by one: (x [b n h w i], kernel [kh kw i o]) -> [b n h' w' o].

    Returns:
        [b n*outputs h' w' o].
    """
    a, g, b = matrices(outputs)
    count = (x.shape[1] - 2) // outputs
    frames = [x[:, j : j + outputs * (count - 1) + 1 : outputs] for j in range(outputs + 2)]
    products = [frame_conv(_combine(b[i], frames), _combine(g[i], kernel)) for i in range(outputs + 2)]
    y = jnp.stack([_combine(row, products) for row in a], axis=2)
    return y.reshape(y.shape[0], count * outputs, *y.shape[3:])


def _combine(weights: np.ndarray, terms: Sequence[Array]) -> Array:
    """The sum of terms times weights, without those of weight zero."""
    total = None
    for weight, term in zip(weights, terms):
        if weight:
            part = term if weight == 1.0 else term * np.float32(weight)
            total = part if total is None else total + part
    return total


Formulation = Literal["auto", "winograd", "taps", "native"]
Pads = tuple[tuple[int, int], ...]

NO_PADS: Pads = ((0, 0), (0, 0), (0, 0))
# Below these, what Winograd's form adds around the products costs more than it saves.
MIN_CHANNELS, MIN_PLACES = 16, 256

kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: tuple[int, int, int] = (1, 1, 1),
    padding: Pads = NO_PADS,
    formulation: Formulation = "auto",
) -> Array:
    """3D convolution. All formulations give the same numbers up to rounding.

    Args:
        x: [b t h w i].
        kernel: [kt kh kw i o].
        strides: in t, h, w.
        padding: zeros before and after, in t, h, w.
        formulation: "native" is XLA's 3D convolution. "taps" is one 2D convolution for each tap in time. "winograd" is
            taps with fewer products where that is faster (in training it is taps). "auto" is winograd on a CPU and
            native elsewhere.

    Returns:
        [b t' h' w' o].

    Raises:
        ConfigError: `formulation` is unknown.
    """
    if formulation not in ("auto", "winograd", "taps", "native"):
        raise ConfigError(f"conv formulation {formulation!r} is unknown: use auto, winograd, taps or native")
    if formulation == "auto":
        formulation = "winograd" if platform() == "cpu" else "native"
    if kernel.shape[:3] == (1, 1, 1) and strides == (1, 1, 1) and padding == NO_PADS:
        return matmul(x, kernel[0, 0, 0])
    if formulation == "native":
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    plain = functools.partial(_conv_taps, strides=strides, padding=padding)
    if formulation == "winograd" and _shares_products(x, kernel, strides, padding):
        return _unless_differentiated(functools.partial(_conv_winograd, padding=padding), plain)(x, kernel)
    return plain(x, kernel)


def _unless_differentiated(fast: Callable, plain: Callable) -> Callable:
    """fast(x, kernel), but plain(x, kernel) in training: its gradients are faster than those of `fast`."""
    call = jax.custom_vjp(fast)
    call.defvjp(functools.partial(jax.vjp, plain), lambda pull, dy: pull(dy))
    return call


def _conv_frames(x: Array, kernel: Array, strides: tuple[int, int], padding: Pads) -> Array:
    """2D convolution of each frame: `[b t h w i]`, kernel `[kh kw i o]` -> `[b t h' w' o]`."""
    if kernel.shape[:2] == (1, 1) and strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return matmul(x, kernel[0, 0])
    b, t, *frame = x.shape
    y = jax.lax.conv_general_dilated(
        x.reshape(b * t, *frame), kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(b, t, *y.shape[1:])


def _conv_taps(x: Array, kernel: Array, strides: tuple[int, int, int], padding: Pads) -> Array:
    (before, after), *space = padding
    (stride, *strides), taps, t = strides, kernel.shape[0], x.shape[1]
    frames = (t + before + after - taps) // stride + 1
    y = None
    for tap in reversed(range(taps)):
        # Output frame i sees input frame i * stride + offset. Zeros before and after are not computed with.
        offset = tap - before
        first, last = max(0, -(offset // stride)), min(frames - 1, (t - 1 - offset) // stride)
        if first > last:
            continue
        window = x[:, first * stride + offset : last * stride + offset + 1 : stride]
        part = _conv_frames(window, kernel[tap], tuple(strides), tuple(space))
        if (first, last) != (0, frames - 1):
            part = jnp.pad(part, ((0, 0), (first, frames - 1 - last), (0, 0), (0, 0), (0, 0)))
        y = part if y is None else y + part
    return y


def _shares_products(x: Array, kernel: Array, strides: tuple[int, int, int], padding: Pads) -> bool:
    frames = x.shape[1] + sum(padding[0]) - 2
    return (
        (kernel.shape[0], strides, padding[0][1], x.dtype) == (3, (1, 1, 1), 0, jnp.float32)
        and frames > 1
        and min(kernel.shape[3:]) >= MIN_CHANNELS
        and frames * x.shape[2] * x.shape[3] >= MIN_PLACES
    )


def _conv_winograd(x: Array, kernel: Array, padding: Pads) -> Array:
    """Frames in fours where there are so many, what is left over in a pair and one alone, at the front."""
    (before, _), *space = padding
    frames = x.shape[1] + before - 2
    parts, start = [], -before
    for size, count in ((1, frames % 2), (2, frames // 2 % 2), (4, frames // 4)):
        if not count:
            continue
        window, missing = x[:, max(start, 0) : start + size * count + 2], max(-start, 0)
        if size == 1:
            parts.append(_conv_taps(window, kernel, (1, 1, 1), ((missing, 0), *space)))
        else:
            window = jnp.pad(window, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0))) if missing else window
            frame_conv = functools.partial(_conv_frames, strides=(1, 1), padding=tuple(space))
            parts.append(convolve_frames(window, kernel, size, frame_conv))
        start += size * count
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def upsample_conv(x: Array, kernel: Array, formulation: Formulation = "auto", *, edges: bool = False) -> Array:
    """Repeats rows and columns twice, then convolves each frame.

    On a CPU, except for gradients, it is one 2x2 convolution of the rows before they are repeated, for the four pixels
    of each square at once: of 3 taps over repeated rows, 2 see the same row. That takes 16 multiplications instead of
    36.

    Args:
        x: [b t h w i].
        kernel: [1 3 3 i o].
        formulation: as in `conv`.
        edges: the first and the last row are a neighbour's: they are seen, but give no rows of the output.

    Returns:
        [b t 2h 2w o]; [b t 2(h-2) 2w o] with `edges`.
    """

    def plain(x: Array, kernel: Array) -> Array:
        x = upsample_nearest(x)
        x, rows = (x[:, :, 1:-1], (0, 0)) if edges else (x, (1, 1))
        return conv(x, kernel, padding=((0, 0), rows, (1, 1)), formulation=formulation)

    if formulation == "winograd" or (formulation == "auto" and platform() == "cpu"):
        return _unless_differentiated(functools.partial(_upsample_conv_folded, edges=edges), plain)(x, kernel)
    return plain(x, kernel)


def _upsample_conv_folded(x: Array, kernel: Array, edges: bool) -> Array:
    b, t, h, w, _ = x.shape
    h, rows = (h - 2, (0, 0)) if edges else (h, (1, 1))
    squares = [_fold_taps(_fold_taps(kernel[0], 0, i), 1, j) for i in (0, 1) for j in (0, 1)]
    y = _conv_frames(x, jnp.concatenate(squares, axis=-1), (1, 1), (rows, (1, 1)))
    y = y.reshape(b, t, h + 1, w + 1, 2, 2, -1)
    # The upper place of row i sees rows i-1 and i, the lower one rows i and i+1; columns likewise.
    rows = [jnp.stack([y[:, :, i : i + h, j : j + w, i, j] for j in (0, 1)], axis=4) for i in (0, 1)]
    return jnp.stack(rows, axis=3).reshape(b, t, 2 * h, 2 * w, -1)


def _fold_taps(kernel: Array, axis: int, lower: int) -> Array:
    """Three taps over repeated rows as two over rows, for the upper or lower of a row's two places."""
    k0, k1, k2 = jnp.split(kernel, 3, axis)
    return jnp.concatenate([k0 + k1, k2] if lower else [k0, k1 + k2], axis)


class Conv(nn.Module):
    """Convolution with bias `[b t h w i] -> [b t' h' w' features]`; parameters in float32, work in `dtype`.

    features: channels of the output.
    kernel: size in t, h, w; (1, k, k) works on each frame alone.
    strides: in t, h, w.
    padding: zeros before and after in t, h, w; None keeps the size at stride 1 (odd kernels).
    dtype: of the products and the output.
    formulation: see `conv`.
    upsample: repeat rows and columns twice first; for kernels (1, 3, 3) that keep the size.
    split: devices that share the rows; frames are not exchanged.
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[tuple[int, int], ...] | None = None
    dtype: jnp.dtype = jnp.float32
    formulation: Formulation = "auto"
    kernel_init: nn.initializers.Initializer = kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    upsample: bool = False
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = (None, None, None, "conv_in", "conv_out")
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.with_logical_partitioning(self.kernel_init, axes), shape)
        bias = self.param("bias", nn.with_logical_partitioning(self.bias_init, axes[-1:]), (self.features,))
        padding = self.padding or tuple((size // 2, size // 2) for size in self.kernel)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        edges = bool(self.split.height) and self.kernel[1] > 1
        if edges:
            above = padding[1][0]
            x = self.split.with_rows(x, above, max(self.kernel[1] - above - self.strides[1], 0))
            padding = (padding[0], (0, 0), padding[2])
        if self.upsample:
            y = upsample_conv(x, kernel, self.formulation, edges=edges)
        else:
            y = conv(x, kernel, strides=self.strides, padding=padding, formulation=self.formulation)
        return y + bias.astype(self.dtype)


class CausalConv(nn.Module):
    """Convolution in which a frame sees itself and earlier frames: `[b t h w i] -> [b t h w features]`.

    It is called as `(y, cache) = layer(x, cache)`. The cache is what the next chunk needs: the last kt-1 input frames
    [b kt-1 h w i]. None means the start of a clip: zeros.

    features: channels of the output.
    kernel: size in t, h, w.
    dtype: of the products and the output.
    formulation: see `conv`.
    split: devices that share frames and rows; the cache is the same on all devices that share frames.
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    dtype: jnp.dtype = jnp.float32
    formulation: Formulation = "auto"
    kernel_init: nn.initializers.Initializer = kernel_init
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array, cache: Array | None = None) -> tuple[Array, Array]:
        history = self.kernel[0] - 1
        shared = bool(self.split.time) and history > 0
        zeros = history if cache is None and not shared else 0
        if shared:
            x = self.split.with_history(self.split.from_first(x), history, cache)
        elif cache is not None:
            x = jnp.concatenate([cache, x], axis=1)
        space = tuple((size // 2, size // 2) for size in self.kernel[1:])
        y = Conv(
            self.features,
            self.kernel,
            padding=((zeros, 0), *space),
            dtype=self.dtype,
            formulation=self.formulation,
            kernel_init=self.kernel_init,
            split=self.split,
            name="conv",
        )(x)
        missing = max(history - x.shape[1], 0)
        last = self.split.of_last(x[:, max(x.shape[1] - history, 0) :] if history else x[:, :0])
        return y, jnp.pad(last, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0))) if missing else last


def upsample_nearest(x: Array, times: int = 2) -> Array:
    """Repeats rows and columns.

    Args:
        x: [b t h w c].
        times: how often each row and column is repeated.

    Returns:
        [b t times*h times*w c].
    """
    b, t, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, :, None, :, None, :], (b, t, h, times, w, times, c))
    return x.reshape(b, t, h * times, w * times, c)
