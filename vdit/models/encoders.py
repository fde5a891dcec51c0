"""Encoders that turn a video, an image or a text into one vector, for evaluation: VideoMAE, V-JEPA 2, CLIP, SigLIP.

All are transformers of pre-norm layers. `LayersConfig` says what differs between families; a tower puts patches or
words in front, and takes one vector of what comes out.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import linen as nn
from PIL import Image

from vdit.errors import ConfigError, ShapeError, TextError, reason
from vdit.models.vision import ATTENTION, Block, attend, feed_forward, middle, patches
from vdit.nn.attention import attention
from vdit.nn.layers import LayerNorm, Linear
from vdit.paths import MIB, read_bytes
from vdit.reprs import short_repr
from vdit.types import Array, PyTree

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Layers of an encoder.

    width, layers, heads, mlp: of the transformer. activation: of its MLP. eps: of its norms. key_bias: whether keys
    have a bias (VideoMAE's have none). causal: whether a token reads those before it only (CLIP's texts).
    grid: (frames, rows, columns) of tokens, whose places turn queries and keys (V-JEPA 2); None for no such rotation.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    eps: float = 1e-6
    key_bias: bool = True
    causal: bool = False
    grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"encoder.{name}={getattr(self, name)} must be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"encoder.width={self.width} must be a multiple of encoder.heads={self.heads}")

    @property
    def dtype(self) -> str:
        """Of the matrix products: figures are those of the public implementations."""
        return "float32"


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTowerConfig:
    """A video encoder (VideoMAE, Tong et al., 2022; V-JEPA 2, Assran et al., 2025).

    size: side of the square frames. frames: of a clip. patch: side of a patch; tubelet: frames of one. position:
    "sinusoid" adds a fixed table; "none" leaves places to `layers.grid`. final_norm: a norm after the last layer.
    mean, std: of pixels in 0..1, by channel.
    """

    layers: LayersConfig
    size: int = 224
    frames: int = 16
    patch: int = 16
    tubelet: int = 2
    position: Literal["sinusoid", "none"] = "sinusoid"
    final_norm: bool = True
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]

    def __post_init__(self) -> None:
        if min(self.size, self.frames, self.patch, self.tubelet) < 1:
            raise ConfigError(f"size={self.size}, frames={self.frames}, patch={self.patch}, tubelet={self.tubelet}: "
                              "each must be at least 1")  # fmt: skip
        if self.size < self.patch or self.frames < self.tubelet:
            raise ConfigError(f"frames of {self.size} pixels in {self.frames} frames hold no patch of {self.patch} "
                              f"pixels and {self.tubelet} frames")  # fmt: skip

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, rows and columns."""
        side = self.size // self.patch
        return self.frames // self.tubelet, side, side


# The encoder that ships, trained by tools/train_encoder.py.
WORLDS = VideoTowerConfig(
    layers=LayersConfig(width=96, layers=3, heads=4, mlp=192),
    size=48, frames=8, patch=8, tubelet=2, mean=(0.5,) * 3, std=(0.5,) * 3,
)  # fmt: skip
_WEIGHTS, _TOKENIZER_LIMIT = "world_encoder.safetensors", 64 * MIB


def world_encoder_params() -> PyTree:
    """The shipped weights of WORLDS, float32."""
    data = importlib.resources.files("vdit.models").joinpath(_WEIGHTS).read_bytes()
    tree: dict = {}
    for path, values in safetensors.numpy.load(data).items():
        *above, last = path.split("/")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[last] = values.astype(np.float32)
    return tree


def open_tokenizer_json(path: str | Path):
    """A `tokenizers.Tokenizer` from a tokenizer.json; TextError where the file holds none."""
    from tokenizers import Tokenizer

    data = read_bytes(path, limit=_TOKENIZER_LIMIT, error=TextError, fix="download the file again")
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise TextError(f"{path}: is no tokenizer.json ({reason(error)}): download the file again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class VideoTower(nn.Module):
    """Videos to one vector each, the mean of all tokens: float [b t h w 3], normalised -> float32 [b d]."""

    config: VideoTowerConfig

    @nn.compact
    def __call__(self, video: Array) -> Array:
        cfg = self.config
        if video.shape[1:] != (cfg.frames, cfg.size, cfg.size, 3):
            raise ShapeError(f"videos of shape {video.shape} must be [b {cfg.frames} {cfg.size} {cfg.size} 3]")
        x = Linear(cfg.layers.width, ("patch", "embed"), name="patch_embed")(_tubelets(video, cfg))
        if cfg.position == "sinusoid":
            x = x + _sinusoids(x.shape[1], cfg.layers.width)
        x = Layers(cfg.layers, name="layers")(x)
        if cfg.final_norm:
            x = LayerNorm(eps=cfg.layers.eps, name="norm")(x)
        return x.mean(1)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Encoders of images and texts into one space (CLIP, Radford et al., 2021; SigLIP, Zhai et al., 2023).

    image, text: layers of both. size: side of the square image; patch: of a patch. vocabulary, length: of texts, in
    tokens. features: width of the common space. pool: "class" takes CLIP's class token, and of a text the token `end`;
    "attention" is SigLIP's head with a probe, and of a text the last token. end: id of the token that ends a text.
    mean, std: of pixels in 0..1, by channel. crop: whether the middle of an image is cut out; else it is stretched.
    """

    image: LayersConfig
    text: LayersConfig
    size: int = 224
    patch: int = 16
    vocabulary: int = 49408
    length: int = 77
    features: int = 512
    pool: Literal["class", "attention"] = "class"
    end: int | None = None
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    crop: bool = True


class ImageTower(nn.Module):
    """Images into the common space: float [b h w 3], normalised -> float32 [b features]."""

    config: PairConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        cfg, width = self.config, self.config.image.width
        by_class, eps = cfg.pool == "class", cfg.image.eps
        if image.shape[1:] != (cfg.size, cfg.size, 3):
            raise ShapeError(f"images of shape {image.shape} must be [b {cfg.size} {cfg.size} 3]")
        b = len(image)
        x = Linear(width, ("patch", "embed"), use_bias=not by_class, name="patch_embed")(patches(image, cfg.patch))
        if by_class:
            whole = self.param("class_token", _normal(("embed",)), (width,))
            x = jnp.concatenate([jnp.broadcast_to(whole, (b, 1, width)), x], axis=1)
        x = x + self.param("position", _normal((None, "embed")), (x.shape[1], width))
        if by_class:
            x = LayerNorm(eps=eps, name="norm")(x)
        x = Layers(cfg.image, name="layers")(x)
        if by_class:
            pooled = LayerNorm(eps=eps, name="last_norm")(x[:, 0])
            return Linear(cfg.features, ("embed", None), use_bias=False, name="projection")(pooled)
        x = LayerNorm(eps=eps, name="last_norm")(x)
        probe = jnp.broadcast_to(self.param("probe", _normal((None, "embed")), (1, width)), (b, 1, width))
        q, k, v = (Linear(width, ("embed", "heads"), name=name)(y).reshape(*y.shape[:2], cfg.image.heads, -1)
                   for name, y in (("q", probe), ("k", x), ("v", x)))  # fmt: skip
        pooled = Linear(width, ("heads", "embed"), name="out")(attend(q, k, v).reshape(b, 1, width))
        more = feed_forward(cfg.image, LayerNorm(eps=eps, name="pool_norm")(pooled))
        return (pooled + more)[:, 0]


class TextTower(nn.Module):
    """Texts into the common space: int tokens [b length] -> float32 [b features]."""

    config: PairConfig

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        cfg, width = self.config, self.config.text.width
        table = self.param("tokens", _normal((None, "embed")), (cfg.vocabulary, width))
        x = table[tokens] + self.param("position", _normal((None, "embed")), (cfg.length, width))
        x = LayerNorm(eps=cfg.text.eps, name="last_norm")(Layers(cfg.text, name="layers")(x))
        if cfg.pool == "class":
            # The first token that ends the text; without an id, the largest token, as in the oldest files.
            end = (tokens == cfg.end).argmax(-1) if cfg.end is not None else tokens.argmax(-1)
            pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
            return Linear(cfg.features, ("embed", None), use_bias=False, name="projection")(pooled)
        return Linear(cfg.features, ("embed", None), name="projection")(x[:, -1])


class Layers(nn.Module):
    """Pre-norm transformer layers: float32 [b n d] -> [b n d]."""

    config: LayersConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.config
        for i in range(cfg.layers):
            x, _ = Block(cfg, cfg.key_bias, functools.partial(_attend, cfg), name=f"layer_{i}")(x)
        return x


def _attend(cfg: LayersConfig, q: Array, k: Array, v: Array) -> Array:
    """Attention within an encoder: q, k, v [b n h d] -> [b n h d]."""
    if cfg.grid is not None:
        q, k = (_turned(part, cfg.grid) for part in (q, k))
    if not cfg.causal:
        return attend(q, k, v)
    ids = jnp.ones(q.shape[:2], jnp.int32)
    time = jnp.broadcast_to(jnp.arange(q.shape[1], dtype=jnp.int32), q.shape[:2])
    return attention(q, k, v, ids, ids, axes=ATTENTION, q_time=time, k_time=time)


def _turned(x: Array, grid: tuple[int, int, int]) -> Array:
    """Queries or keys [b n h d], turned by their places: a third of each head by the frame, row and column.

    As V-JEPA 2's own code does it: neighbouring channels are pairs, and the angles are laid out twice in a row.
    """
    part = 2 * (x.shape[-1] // 3 // 2)
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3)
    omega = 1.0 / 10000 ** (np.arange(part // 2, dtype=np.float32) / np.float32(part / 2.0))
    pieces = []
    for axis in range(3):
        y = x[..., axis * part : (axis + 1) * part]
        angle = (places[:, axis, None].astype(np.float32) * omega).astype(np.float32)
        sin, cos = (np.concatenate([f(angle)] * 2, -1)[:, None] for f in (np.sin, np.cos))
        pairs = y.reshape(*y.shape[:-1], part // 2, 2)
        swapped = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(y.shape)
        pieces.append(y * cos + swapped * sin)
    return jnp.concatenate([*pieces, x[..., 3 * part :]], -1)


def _tubelets(video: Array, cfg: VideoTowerConfig) -> Array:
    """[b t h w 3] -> [b tokens tubelet*patch*patch*3], frame by frame, row by row; what fills no patch is left out."""
    (t, r, c), p, f = cfg.grid, cfg.patch, cfg.tubelet
    b = len(video)
    x = video[:, : t * f, : r * p, : c * p].reshape(b, t, f, r, p, c, p, 3)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t * r * c, f * p * p * 3)


def _sinusoids(tokens: int, width: int) -> np.ndarray:
    """VideoMAE's table of places: float32 [tokens width]; sine and cosine take turns."""
    channel = np.arange(width)
    angle = np.arange(tokens)[:, None] / np.power(10000, 2 * (channel // 2) / width)
    return np.where(channel % 2, np.cos(angle), np.sin(angle)).astype(np.float32)


def _normal(axes: tuple[str | None, ...]):
    return nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)


def square_frames(
    video: np.ndarray, size: int, *, mean: tuple[float, ...], std: tuple[float, ...], crop: bool = True
) -> np.ndarray:
    """Frames as encoders take them: uint8 [t h w 3] of any size -> float32 [t size size 3], normalised.

    The short side becomes `size` (bicubic with antialiasing, by Pillow on bytes) and the middle is cut out; with
    crop=False the frame is stretched to the square.
    """
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise ShapeError(f"frames of {video.dtype} {list(video.shape)} must be uint8 [t h w 3]")
    whole = lambda frame: np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))  # noqa: E731
    small = [middle(frame, size) if crop else whole(frame) for frame in video]
    return (np.stack(small) * np.float32(1 / 255) - np.float32(mean)) / np.float32(std)


def spread_frames(video: np.ndarray, count: int) -> np.ndarray:
    """`count` frames of a video [t ...], evenly spread from the first to the last; frames repeat where it is short."""
    return video[np.round(np.linspace(0, len(video) - 1, count)).astype(int)]
