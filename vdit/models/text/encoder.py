"""The text encoder: packed captions to one vector a token."""

from __future__ import annotations

import math
from typing import Protocol

import jax.numpy as jnp
from flax import linen as nn

from vdit.dist.rules import constrain
from vdit.models.text.config import TextConfig
from vdit.models.text.t5 import T5Encoder
from vdit.nn.attention import attention
from vdit.nn.embedding import Embed, sinusoid
from vdit.nn.layers import MLP, LayerNorm, Linear
from vdit.types import Array

ACTIVATION = ("batch", "text_tokens", "embed")


class TextEncoder(Protocol):
    """A Linen module from packed captions to features: what trained and pretrained encoders share.

    A pretrained encoder is one more file in this folder (as t5.py) with a module of this form, its config
    and a weight map in vdit/pretrained; the DiT learns nothing of it but its width.
    """

    def __call__(self, text: Array, text_segment_ids: Array, text_position: Array) -> Array:
        """int [b m] ids, int [b m] clips, int [b m] positions -> [b m d]; no caption sees another."""


class Encoder(nn.Module):
    """A small bidirectional transformer: `text [b m], text_segment_ids [b m], text_position [b m] -> [b m d]`.

    Attention stays within a clip's caption. Pre-norm; fixed sinusoidal positions counted inside each
    caption, so a caption gives the same features wherever it lies in the row.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, text: Array, text_segment_ids: Array, text_position: Array) -> Array:
        cfg = self.config
        # Table entries of 1/sqrt(width), scaled back up: of the positions' size, and quick to learn.
        scale = math.sqrt(cfg.width)
        x = Embed(cfg.vocab_size, cfg.width, stddev=1 / scale, name="embed")(text) * scale
        x = x + sinusoid(text_position, cfg.width)
        x = constrain(x.astype(cfg.dtype), ACTIVATION)
        for i in range(cfg.depth):
            x = Block(cfg, name=f"layer_{i}")(x, text_segment_ids)
        return LayerNorm(name="norm")(x)


class Block(nn.Module):
    """Self-attention within captions, then an MLP: `[b m d], int [b m] -> [b m d]`."""

    config: TextConfig

    @nn.compact
    def __call__(self, x: Array, segment_ids: Array) -> Array:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        y = LayerNorm(name="attention_norm")(x)
        heads = (*y.shape[:2], cfg.heads, cfg.head_dim)
        q, k, v = (
            Linear(cfg.width, ("embed", "heads"), dtype=dtype, name=name)(y).reshape(heads) for name in "qkv"
        )
        y = attention(q, k, v, segment_ids, segment_ids, axes=("text_tokens", "text_tokens")).reshape(x.shape)
        x = x + Linear(cfg.width, ("heads", "embed"), dtype=dtype, name="out")(y)
        y = LayerNorm(name="mlp_norm")(x)
        return constrain(x + MLP(4 * cfg.width, cfg.width, dtype, name="mlp")(y), ACTIVATION)


def make_encoder(config: TextConfig) -> TextEncoder:
    """The encoder that a config asks for: a module of the form of TextEncoder, [b m d] with d = config.width."""
    return Encoder(config) if config.t5 is None else T5Encoder(config.t5)


def drop_captions(
    config: TextConfig, text: Array, text_segment_ids: Array, text_position: Array, drop: Array
) -> tuple[Array, Array]:
    """Turns the captions of some clips into the empty prompt, for classifier-free guidance.

    Args:
        config: of the text encoder.
        text: int [b m].
        text_segment_ids: int [b m].
        text_position: int [b m].
        drop: bool [b s], one for each of the clips 1, 2, ..., s of a row.

    Returns:
        (text, text_segment_ids), int [b m], as the config's tokenizer gives them for "". The small encoder's empty
        prompt is the first token alone. T5's is an end token, and padding where captions are padded.
    """
    if config.t5 is None:
        return text, drop_text(text_segment_ids, text_position, drop)
    empty = jnp.where(text_position == 0, config.t5.eos_id, config.t5.pad_id).astype(text.dtype)
    text = jnp.where(_dropped(text_segment_ids, drop), empty, text)
    return text, text_segment_ids if config.t5.pad else drop_text(text_segment_ids, text_position, drop)


def drop_text(text_segment_ids: Array, text_position: Array, drop: Array) -> Array:
    """Empties the captions of some clips, for classifier-free guidance.

    Args:
        text_segment_ids: int [b m].
        text_position: int [b m].
        drop: bool [b s], one for each of the clips 1, 2, ..., s of a row.

    Returns:
        text_segment_ids [b m] in which all but the first token of each dropped caption is padding: the first token
        alone is how the empty prompt is encoded.
    """
    return jnp.where(_dropped(text_segment_ids, drop) & (text_position > 0), 0, text_segment_ids)


def _dropped(text_segment_ids: Array, drop: Array) -> Array:
    """Which tokens belong to a dropped clip: bool [b m]."""
    clips = jnp.arange(1, drop.shape[1] + 1)
    return jnp.any((text_segment_ids[:, :, None] == clips) & drop[:, None, :], axis=-1)
