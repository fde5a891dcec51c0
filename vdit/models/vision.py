"""CLIP's image encoder: what Wan 2.1's image-to-video sees of its first frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from vdit.dist.rules import constrain
from vdit.errors import ConfigError, ShapeError
from vdit.nn.attention import attention
from vdit.nn.layers import LayerNorm, Linear
from vdit.reprs import short_repr
from vdit.types import Array

ACTIVATION = ("batch", "text_tokens", "embed")  # whole on each device, as attention takes them
ATTENTION = ("text_tokens", "text_tokens")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """The vision transformer of a CLIP (Radford et al., 2021). The defaults are Wan's: ViT-H/14 of Open-CLIP.

    image_size: side of the square image, in pixels; patch: side of a patch. width, layers, heads, mlp: of the
    transformer. activation: of its MLP. eps: of its norms. mean, std: of pixels in 0..1, by channel.
    dtype: type of the matrix products; residuals, norms and softmax stay float32.
    scan: stack the layers' parameters (all but the last layer's) and run them with lax.scan.
    """

    image_size: int = 224
    patch: int = 14
    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp: int = 5120
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    eps: float = 1e-5
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = True

    def __post_init__(self) -> None:
        for name in ("image_size", "patch", "width", "heads", "mlp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"clip.{name}={getattr(self, name)} must be at least 1")
        if self.layers < 2:
            raise ConfigError(f"clip.layers={self.layers} must be at least 2: its output is that of the last but one")
        if self.width % self.heads:
            raise ConfigError(f"clip.width={self.width} must be a multiple of clip.heads={self.heads}")
        if self.patch > self.image_size:
            raise ConfigError(f"clip.patch={self.patch} must be at most clip.image_size={self.image_size}")
        if min(self.std) <= 0:
            raise ConfigError(f"clip.std={self.std} must be positive")

    @property
    def tokens(self) -> int:
        """Tokens of an image: one for the whole, and one for each patch."""
        return 1 + (self.image_size // self.patch) ** 2


class LayerConfig(Protocol):
    """What a layer reads of an encoder's config."""

    width: int
    heads: int
    mlp: int
    eps: float

    @property
    def dtype(self) -> str:
        """Of the matrix products."""
        ...

    @property
    def activation(self) -> str:
        """Of the MLP: "gelu", "gelu_tanh" or "quick_gelu"."""
        ...


class VisionConfig(LayerConfig, Protocol):
    """What `run_blocks` reads of an image encoder's config."""

    scan: bool


class CLIPVision(nn.Module):
    """Images to tokens: float [b h w 3], as `clip_pixels` gives them -> float32 [b 1+patches d].

    The output is that of the last layer but one, which Wan attends to; patches go row by row. The last layer and
    the norm after it are part of public checkpoints: they have parameters here, so that these load and export
    whole, and are not run.
    """

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        cfg = self.config
        if image.shape[1:] != (cfg.image_size, cfg.image_size, 3):
            rule = f"[b {cfg.image_size} {cfg.image_size} 3], as clip_pixels gives them"
            raise ShapeError(f"images of shape {image.shape} must be {rule}")
        x = Linear(cfg.width, ("patch", "embed"), use_bias=False, dtype=jnp.dtype(cfg.dtype), name="patch_embed")(
            patches(image, cfg.patch)
        ).astype(jnp.float32)
        normal = nn.initializers.normal(cfg.width**-0.5)
        whole = self.param("class_token", nn.with_logical_partitioning(normal, ("embed",)), (cfg.width,))
        by_position = nn.with_logical_partitioning(normal, (None, "embed"))
        position = self.param("position", by_position, (cfg.tokens, cfg.width))
        x = jnp.concatenate([jnp.broadcast_to(whole, (len(x), 1, cfg.width)), x], axis=1) + position
        x = constrain(LayerNorm(eps=cfg.eps, name="norm")(x), ACTIVATION)
        x = run_blocks(cfg, cfg.layers - 1, x)
        if self.is_initializing():
            last, _ = Block(cfg, name="last_block")(x)
            LayerNorm(eps=cfg.eps, name="last_norm")(last)
        return x


def run_blocks(config: VisionConfig, layers: int, x: Array) -> Array:
    """The first `layers` layers of an image encoder, within its compact call: float32 `[b n d] -> [b n d]`."""
    if config.scan:
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(config, name="blocks")(x)[0]
    for i in range(layers):
        x, _ = Block(config, name=f"block_{i}")(x)
    return x


def attend(q: Array, k: Array, v: Array) -> Array:
    """Attention to all tokens: q [b n h d], k and v [b m h d] -> [b n h d]."""
    ids = [jnp.ones(x.shape[:2], jnp.int32) for x in (q, k)]
    return attention(q, k, v, *ids, axes=ATTENTION)


class Block(nn.Module):
    """Self-attention, then an MLP, each after a norm: `[b n d] -> ([b n d], None)`, as lax.scan wants it.

    key_bias: whether keys have a bias. attention: what queries, keys and values [b n h d] become.
    """

    config: LayerConfig
    key_bias: bool = True
    attention: Callable[[Array, Array, Array], Array] = attend

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        y = LayerNorm(eps=cfg.eps, name="attention_norm")(x)
        heads = (*y.shape[:2], cfg.heads, cfg.width // cfg.heads)
        q, k, v = (
            Linear(cfg.width, ("embed", "heads"), use_bias=name != "k" or self.key_bias, dtype=dtype, name=name)(y)
            for name in "qkv"
        )
        y = self.attention(*(part.reshape(heads) for part in (q, k, v))).reshape(x.shape)
        x = x + Linear(cfg.width, ("heads", "embed"), dtype=dtype, name="out")(y)
        x = x + feed_forward(cfg, LayerNorm(eps=cfg.eps, name="mlp_norm")(x))
        return constrain(x, ACTIVATION), None


def feed_forward(config: LayerConfig, x: Array) -> Array:
    """The MLP of a layer, within its compact call: [b n d] -> [b n d]."""
    dtype = jnp.dtype(config.dtype)
    x = Linear(config.mlp, ("embed", "mlp"), dtype=dtype, name="up")(x)
    # "quick" is Radford et al.'s x * sigmoid(1.702 x); "gelu" is exact, with erf; "gelu_tanh" approximates it.
    quick = config.activation == "quick_gelu"
    x = x * jax.nn.sigmoid(1.702 * x) if quick else nn.gelu(x, approximate=config.activation == "gelu_tanh")
    return Linear(config.width, ("mlp", "embed"), dtype=dtype, name="down")(x)


def clip_pixels(image: np.ndarray, config: CLIPVisionConfig) -> np.ndarray:
    """An image as CLIP takes it.

    The short side becomes s (bicubic with antialiasing, by Pillow on bytes), the middle is cut out, and the channels
    are normalised by the mean and the standard deviation of CLIP's data.

    Args:
        image: uint8 [h w 3] of any size.
        config: its image_size is s.

    Returns:
        float32 [s s 3].

    Raises:
        ShapeError: the image has another dtype or shape.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ShapeError(f"an image of {image.dtype} {list(image.shape)} must be uint8 [h w 3]")
    pixels = (middle(image, config.image_size) * (1 / 255)).astype(np.float32)
    return (pixels - np.float32(config.mean)) / np.float32(config.std)


def middle(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h w 3] -> uint8 [size size 3]: the short side becomes `size`, and the middle is cut out.

    Of the long side the fraction of a pixel is dropped, as CLIP's own code does.
    """
    h, w = image.shape[:2]
    height, width = (size, size * w // h) if h < w else (size * h // w, size)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return resized[top : top + size, left : left + size]


def patches(image: Array, patch: int) -> Array:
    """[b h w c] -> [b patches patch*patch*c], row by row; what no whole patch covers is left out."""
    b, h, w, c = image.shape
    rows, columns = h // patch, w // patch
    image = image[:, : rows * patch, : columns * patch].reshape(b, rows, patch, columns, patch, c)
    return image.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, patch * patch * c)
