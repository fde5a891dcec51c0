"""SigLIP's image encoder, and the connector of SmolVLM: frames to embeddings that a language model reads."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from vdit.dist.rules import constrain
from vdit.errors import ConfigError, ShapeError
from vdit.models.vision import ACTIVATION, patches, run_blocks
from vdit.nn.layers import LayerNorm, Linear
from vdit.reprs import short_repr
from vdit.types import Array


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """The vision transformer of a SigLIP (Zhai et al., 2023), and how its tokens are handed on (SmolVLM, 2025).

    The defaults are those of SmolVLM2's 256M and 500M.

    image_size: side of the square image, in pixels; patch: side of a patch. width, layers, heads, mlp: of the
    transformer. eps: of its norms. mean, std: of pixels in 0..1, by channel.
    shuffle: so many patches a side become one token (pixel shuffle; Shi et al., 2016). features: width of the tokens
    that come out, which is the language model's.
    dtype: type of the matrix products; residuals, norms and softmax stay float32.
    scan: stack the layers' parameters and run them with lax.scan.
    """

    image_size: int = 512
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    eps: float = 1e-6
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    shuffle: int = 4
    features: int = 960
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = True

    def __post_init__(self) -> None:
        for name in ("image_size", "patch", "width", "layers", "heads", "mlp", "shuffle", "features"):
            if getattr(self, name) < 1:
                raise ConfigError(f"siglip.{name}={getattr(self, name)} must be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"siglip.width={self.width} must be a multiple of siglip.heads={self.heads}")
        if self.patch > self.image_size:
            raise ConfigError(f"siglip.patch={self.patch} must be at most siglip.image_size={self.image_size}")
        if self.side % self.shuffle:
            raise ConfigError(f"siglip.shuffle={self.shuffle} must divide the {self.side} patches of a side")
        if min(self.std) <= 0:
            raise ConfigError(f"siglip.std={self.std} must be positive")

    @property
    def activation(self) -> str:
        """Of the MLP."""
        return "gelu_tanh"

    @property
    def side(self) -> int:
        """Patches on each side of an image."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Tokens of an image, as the language model reads them."""
        return (self.side // self.shuffle) ** 2


class SiglipConnector(nn.Module):
    """Images to embeddings for a language model: float [b h w 3], as `siglip_pixels` gives them -> float32 [b k d].

    The tower's patches are gathered in squares, and projected. Only whole square images are taken.
    """

    config: SiglipConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        cfg = self.config
        x = Siglip(cfg, name="tower")(image)
        b, s, n = len(x), cfg.shuffle, cfg.side // cfg.shuffle
        x = x.reshape(b, n, s, n, s, cfg.width).transpose(0, 1, 3, 2, 4, 5).reshape(b, n * n, s * s * cfg.width)
        project = Linear(
            cfg.features, ("mlp", "embed"), use_bias=False, dtype=jnp.dtype(cfg.dtype), name="projection"
        )  # fmt: skip
        return project(x).astype(jnp.float32)


class Siglip(nn.Module):
    """Images to tokens: float [b h w 3] -> float32 [b patches d], row by row."""

    config: SiglipConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        if image.shape[1:] != (cfg.image_size, cfg.image_size, 3):
            rule = f"[b {cfg.image_size} {cfg.image_size} 3], as siglip_pixels gives them"
            raise ShapeError(f"images of shape {image.shape} must be {rule}")
        x = Linear(cfg.width, ("patch", "embed"), dtype=dtype, name="patch_embed")(patches(image, cfg.patch))
        normal = nn.with_logical_partitioning(nn.initializers.normal(cfg.width**-0.5), (None, "embed"))
        place = self.param("position", normal, (cfg.side**2, cfg.width))
        x = constrain(x.astype(jnp.float32) + place[position_ids(cfg.side)], ACTIVATION)
        x = run_blocks(cfg, cfg.layers, x)
        return LayerNorm(eps=cfg.eps, name="norm")(x)


def position_ids(side: int) -> np.ndarray:
    """The row of the table of positions that each patch of a whole image gets: int32 [side**2].

    The reference divides the image into buckets in float32, as it was trained on images of many shapes (Dehghani et
    al., 2023). Where 1 / side is no binary fraction, rounding puts some patches into a neighbour's bucket.
    """
    step = np.float32(1) / np.float32(side)
    borders = (np.float64(1 / side) * (1 + np.arange(side - 1))).astype(np.float32)
    places = np.minimum(np.arange(side, dtype=np.float32) * step, np.float32(1.0 - 1e-6))
    bucket = np.searchsorted(borders, places, side="right").astype(np.int32)
    return (bucket[:, None] * side + bucket[None]).reshape(-1)


def siglip_pixels(frames: np.ndarray, config: SiglipConfig) -> np.ndarray:
    """Frames as the tower takes them: uint8 [t h w 3] of any size -> float32 [t s s 3], s = config.image_size.

    The longer side becomes s and the other follows; then the frame is stretched to a square, as SmolVLM's are (Lanczos
    with antialiasing, as Pillow does it, on bytes).
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ShapeError(f"frames of {frames.dtype} {list(frames.shape)} must be uint8 [t h w 3]")
    (h, w), s = frames.shape[1:3], config.image_size
    even = lambda x: max(x + x % 2, 1)  # noqa: E731 - the reference makes the shorter side even
    size = (s, even(int(s / (w / h)))) if w >= h else (even(int(s * (w / h))), s)
    lanczos = Image.Resampling.LANCZOS
    small = [Image.fromarray(frame).resize(size, lanczos).resize((s, s), lanczos) for frame in frames]
    pixels = np.stack([np.asarray(frame) for frame in small]) * np.float32(1 / 255)
    return (pixels - np.float32(config.mean)) / np.float32(config.std)
