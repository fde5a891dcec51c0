"""Perceptual distance between images, from the features of SqueezeNet 1.1 (Iandola et al., 2016).

The weights are the user's: a Keras h5 file without the classifier. Distances are taken as in LPIPS
(Zhang et al., 2018) with equal weights: features of unit length at each position, squared differences.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vdit.errors import ConfigError, ShapeError, install_command
from vdit.types import Array, PyTree

FIRES = ("fire2", "fire3", "fire4", "fire5", "fire6", "fire7", "fire8", "fire9")
PARTS = ("squeeze1x1", "expand1x1", "expand3x3")
POOL_AFTER = ("conv1", "fire3", "fire5")
FEATURES = ("conv1", "fire3", "fire5", "fire7", "fire9")  # before the pool, where one follows
MEAN_BGR = (103.939, 116.779, 123.68)
MIN_SIDE = 32


def load_squeezenet(path: str | Path) -> PyTree:
    """Parameters {layer: {"kernel": [kh kw i o], "bias": [o]}} from a Keras h5 file (read with h5py)."""
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"reading perceptual weights needs h5py: {install_command('data')}") from error
    if not Path(path).is_file():
        raise ConfigError(f"perceptual weights {str(path)!r} not found: give SqueezeNet 1.1's h5 file")
    layers = ["conv1", *(f"{fire}/{part}" for fire in FIRES for part in PARTS)]
    try:
        with h5py.File(path, "r") as file:
            return {layer: _read_layer(file, layer) for layer in layers}
    except (OSError, KeyError) as error:
        raise ConfigError(f"{str(path)!r} is not SqueezeNet 1.1 as a Keras h5 file: {error}") from error


def _read_layer(file, layer: str) -> dict[str, np.ndarray]:
    # Keras nests arrays under repeated names that differ between versions; rank tells them apart.
    found: dict[int, np.ndarray] = {}

    def visit(_: str, node) -> None:
        if hasattr(node, "ndim"):
            found[node.ndim] = node[()]

    file[layer].visititems(visit)
    if set(found) != {1, 4}:
        raise KeyError(f"layer {layer} has arrays of rank {sorted(found)}, not one kernel and one bias")
    return {"kernel": found[4].astype(np.float32), "bias": found[1].astype(np.float32)}


def squeezenet_features(params: PyTree, images: Array) -> list[Array]:
    """Features of images [n h w 3] in [-1, 1], shallow to deep: a list of [n h' w' c]."""
    if min(images.shape[1:3]) < MIN_SIDE:
        raise ShapeError(f"images of {images.shape[1:3]} are too small for SqueezeNet: use {MIN_SIDE}+")

    def conv(x, layer, stride=1, padding="SAME"):
        kernel, bias = params[layer]["kernel"], params[layer]["bias"]
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dims)
        return jax.nn.relu(x + bias)

    x = (images.astype(jnp.float32)[..., ::-1] + 1.0) * 127.5 - jnp.asarray(MEAN_BGR)
    features = []
    for layer in ("conv1", *FIRES):
        if layer == "conv1":
            x = conv(x, layer, 2, "VALID")
        else:
            x = conv(x, f"{layer}/squeeze1x1")
            x = jnp.concatenate([conv(x, f"{layer}/expand1x1"), conv(x, f"{layer}/expand3x3")], axis=-1)
        if layer in FEATURES:
            features.append(x)
        if layer in POOL_AFTER:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    return features


def perceptual_distance(params: PyTree, x: Array, y: Array) -> Array:
    """Distance of each pair of images: [n h w 3], [n h w 3] in [-1, 1] -> [n]; 0 for equal images."""
    distances = []
    for f, g in zip(squeezenet_features(params, x), squeezenet_features(params, y)):
        distances.append(jnp.mean(jnp.sum(jnp.square(_unit(f) - _unit(g)), axis=-1), axis=(1, 2)))
    return jnp.mean(jnp.stack(distances), axis=0)


def _unit(features: Array) -> Array:
    return features * jax.lax.rsqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True) + 1e-6)
