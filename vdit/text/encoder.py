"""The text encoder: packed captions to one vector a token."""

from __future__ import annotations

import math
from typing import Protocol

import jax.numpy as jnp
from flax import linen as nn

from vdit.dist.rules import constrain
from vdit.nn.attention import attention
from vdit.nn.embedding import Embed, sinusoid
from vdit.nn.linear import MLP, Linear
from vdit.nn.norm import LayerNorm
from vdit.text.config import TextConfig
from vdit.types import Array

ACTIVATION = ("batch", "text_tokens", "embed")


class TextEncoder(Protocol):
    """A Linen module from packed captions to features: what trained and pretrained encoders share.

    A pretrained encoder (T5, umT5) is one more file in this folder with a module of this form, its
    config and a weight map in vdit/pretrained; the DiT learns nothing of it but its width.
    """

    def __call__(self, text: Array, text_clip: Array, text_position: Array) -> Array:
        """int [b m] ids, int [b m] clips, int [b m] positions -> [b m d]; no caption sees another."""


class Encoder(nn.Module):
    """A small bidirectional transformer: `text [b m], text_clip [b m], text_position [b m] -> [b m d]`.

    Attention stays within a clip's caption. Pre-norm; fixed sinusoidal positions counted inside each
    caption, so a caption gives the same features wherever it lies in the row.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, text: Array, text_clip: Array, text_position: Array) -> Array:
        cfg = self.config
        # Table entries of 1/sqrt(width), scaled back up: of the positions' size, and quick to learn.
        scale = math.sqrt(cfg.width)
        x = Embed(cfg.vocab_size, cfg.width, stddev=1 / scale, name="embed")(text) * scale
        x = x + sinusoid(text_position, cfg.width)
        x = constrain(x.astype(cfg.dtype), ACTIVATION)
        for i in range(cfg.depth):
            x = Block(cfg, name=f"layer_{i}")(x, text_clip)
        return LayerNorm(name="norm")(x)


class Block(nn.Module):
    """Self-attention within captions, then an MLP: `[b m d], int [b m] -> [b m d]`."""

    config: TextConfig

    @nn.compact
    def __call__(self, x: Array, clip: Array) -> Array:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        y = LayerNorm(name="attention_norm")(x)
        heads = (*y.shape[:2], cfg.heads, cfg.head_dim)
        q, k, v = (
            Linear(cfg.width, ("embed", "heads"), dtype=dtype, name=name)(y).reshape(heads) for name in "qkv"
        )
        y = attention(q, k, v, clip, clip).reshape(x.shape)
        x = x + Linear(cfg.width, ("heads", "embed"), dtype=dtype, name="out")(y)
        y = LayerNorm(name="mlp_norm")(x)
        return constrain(x + MLP(4 * cfg.width, cfg.width, dtype, name="mlp")(y), ACTIVATION)


def drop_text(text_clip: Array, text_position: Array, drop: Array) -> Array:
    """Empties the captions of some clips, for classifier-free guidance.

    text_clip, text_position: int [b m]; drop: bool [b s], one for each of the clips 1, 2, ..., s of a
    row. Returns text_clip [b m] in which all but the first token of each dropped caption is padding:
    the first token alone is how the empty prompt is encoded.
    """
    clips = jnp.arange(1, drop.shape[1] + 1)
    dropped = jnp.any((text_clip[:, :, None] == clips) & drop[:, None, :], axis=-1)
    return jnp.where(dropped & (text_position > 0), 0, text_clip)
