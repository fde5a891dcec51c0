"""Convolutions with fewer multiplications: the same sums, arranged so that frames share products.

A convolution of three taps along an axis is a product of polynomials, and can be had from its values at a few
points (Toom and Cook; Winograd, 1980; for networks Lavin and Gray, 2016). m outputs then cost m + 2 products
instead of 3 m: half as many for m = 4. Here a product is a whole convolution of frames, and what is added and
subtracted around it costs little beside it. Results differ from the plain sum by rounding, about ten times
float32's for m = 4: nothing for bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from vdit.types import Array

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
    """Three taps in time, no padding there: `[b n*outputs+2 h w i] -> [b n*outputs h' w' o]`.

    kernel: [3 kh kw i o]. frame_conv(x [b n h w i], kernel [kh kw i o]) convolves frames one by one.
    outputs: frames that share products, a key of POINTS.
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
