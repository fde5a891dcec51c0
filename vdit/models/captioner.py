"""A captioner of LLaVA's kind for packed rows (Liu et al., 2023): vision tower, connector, language model.

    latents of clips -> tower: attention within each clip -> connector: mean over `pool` frames, MLP -> language model

It is a backbone in the sense that `vdit train` fills its rows with packed latents and captions; its objective is
"captioning" (vdit.experiment.captioning). The latents are those of the run's video VAE: it is the first, trained part
of what sees.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.dist.rules import constrain
from vdit.errors import ConfigError
from vdit.models.backbone import Backbone, Context, Output, Spec, smallest_row
from vdit.models.conditioner import Patch
from vdit.models.lm import LanguageModel, LMConfig
from vdit.nn.attention import attention
from vdit.nn.embedding import sincos_position
from vdit.nn.layers import MLP, LayerNorm, Linear, RMSNorm
from vdit.registry import register
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row

ACTIVATION = ("batch", "tokens", "embed")


@register("backbone", "captioner")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioner(Backbone):
    """What a captioner is made of.

    in_channels: channels of a latent. patch: latent frames, rows and columns of a token.
    width, depth, heads: of the tower, a bidirectional transformer on the tokens of a clip.
    pool: token frames that the connector averages into one, at the same place (temporal pooling).
    lm: the language model; its vocabulary holds the tokenizer's.
    dtype: type of the tower's matrix products.
    """

    in_channels: int = 16
    patch: Patch = (1, 2, 2)
    width: int = 384
    depth: int = 6
    heads: int = 6
    pool: int = 2
    lm: LMConfig = LMConfig(vocab_size=4096, width=384, layers=6, heads=6, kv_heads=2, mlp=1024)
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("in_channels", "width", "heads", "pool"):
            if getattr(self, name) < 1:
                raise ConfigError(f"backbone.{name}={getattr(self, name)}: must be at least 1")
        if self.width % (4 * self.heads):
            raise ConfigError(f"backbone.width={self.width}: must be a multiple of 4 * heads={4 * self.heads}")

    @property
    def uses_text(self) -> bool:
        return True

    @property
    def embeds_text(self) -> bool:
        return True

    def init(self, key: Array, spec: Spec) -> PyTree:
        del spec
        return CaptionerModel(self).init(key, smallest_row(self, ()))["params"]

    def apply(self, params: PyTree, row: Row, levels: Array, context: Context) -> Output:
        raise ConfigError("backbone 'captioner' denoises nothing: train it with objective=captioning")

    def flops(self, tokens: int, clip_tokens: float, text_tokens: float = 0.0, **more: float) -> float:
        tower = self.depth * (12 * self.width**2 + 2 * clip_tokens * self.width)
        lm = self.lm.layers * (2 * self.lm.width**2 + 3 * self.lm.width * self.lm.mlp)
        words = tokens / clip_tokens * text_tokens
        return 2.0 * (tokens * (tower + lm) + words * (lm + self.lm.width * self.lm.vocab_size))


class CaptionerModel(nn.Module):
    """Packed rows to scores of each caption's next token: `Row -> float32 [b m vocab_size]`."""

    config: Captioner

    def setup(self) -> None:
        self.tower = Tower(self.config)
        self.connector = Connector(self.config)
        self.lm = LanguageModel(self.config.lm)

    def __call__(self, row: Row, blind: Array | bool = False) -> Array:
        """Scores at every token of the captions.

        Args:
            row: packed latents and captions; a caption's tokens belong to the clip of the same segment id.
            blind: bool [], hides the clips, so that the language model learns captions alone.
        """
        seen, ids, position = self.see(row)
        ids = jnp.where(blind, 0, ids)
        # Each caption goes on where its clip's tokens end.
        count = _per_segment(jnp.ones_like(ids), ids)
        begin = jnp.take_along_axis(count, row.text_segment_ids, 1)
        words = self.lm.embed_tokens(row.text)
        hidden = self.lm(
            jnp.concatenate([seen, words], 1),
            jnp.concatenate([position, begin + row.text_position], 1),
            jnp.concatenate([ids, row.text_segment_ids], 1),
        ).hidden
        return self.lm.logits(hidden[:, seen.shape[1] :])

    def embed_words(self, ids: Array) -> Array:
        """Token ids as the language model reads them: int [b n] -> float32 [b n d]."""
        return self.lm.embed_tokens(ids)

    def see(self, row: Row) -> tuple[Array, Array, Array]:
        """What the language model reads of the clips.

        Returns:
            Embeddings float32 [b n d]; segment ids int32 [b n], 0 for tokens that were averaged into another and for
            padding; positions int32 [b n] of those that are left, counted in each clip.
        """
        x = self.tower(row)
        x, ids = pool_frames(x, row, self.config.pool)
        x = self.connector(x)
        return x, ids, _ranks(ids)


class Tower(nn.Module):
    """Tokens of latents to features, each token reading its whole clip: `Row -> [b n width]`."""

    config: Captioner

    @nn.compact
    def __call__(self, row: Row) -> Array:
        cfg = self.config
        x = Linear(cfg.width, ("patch", "embed"), name="embed")(row.values.astype(jnp.float32))
        x = constrain(x + sincos_position(row.position, cfg.width), ACTIVATION)
        for i in range(cfg.depth):
            x = TowerBlock(cfg, name=f"layer_{i}")(x, row.segment_ids)
        return LayerNorm(name="norm")(x)


class TowerBlock(nn.Module):
    """Self-attention within clips, then an MLP: `[b n d], int [b n] -> [b n d]`."""

    config: Captioner

    @nn.compact
    def __call__(self, x: Array, segment_ids: Array) -> Array:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        y = LayerNorm(name="attention_norm")(x)
        heads = (*y.shape[:2], cfg.heads, cfg.width // cfg.heads)
        q, k, v = (Linear(cfg.width, ("embed", "heads"), dtype=dtype, name=name)(y).reshape(heads) for name in "qkv")
        y = attention(q, k, v, segment_ids, segment_ids, axes=("tokens", "tokens")).reshape(x.shape)
        x = constrain(x + Linear(cfg.width, ("heads", "embed"), dtype=dtype, name="out")(y), ACTIVATION)
        y = LayerNorm(name="mlp_norm")(x)
        return constrain(x + MLP(4 * cfg.width, cfg.width, dtype, name="mlp")(y), ACTIVATION)


class Connector(nn.Module):
    """Features of the tower to embeddings of the language model: `[b n width] -> float32 [b n d]` (LLaVA-1.5's MLP)."""

    config: Captioner

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.config
        y = MLP(2 * cfg.lm.width, cfg.lm.width, jnp.dtype(cfg.dtype), name="mlp")(x).astype(jnp.float32)
        return RMSNorm(eps=cfg.lm.eps, name="norm")(y)


def pool_frames(x: Array, row: Row, pool: int) -> tuple[Array, Array]:
    """Averages features over `pool` frames of tokens at the same place of a clip.

    Args:
        x: float [b n d]. row: whose tokens they are, those of a clip side by side, frame after frame.
        pool: frames; 1 changes nothing.

    Returns:
        x with each mean in the place of the first of its tokens, and the segment ids, 0 for the other tokens.
    """
    if pool == 1:
        return x, row.segment_ids
    time, n = row.position[..., 0], x.shape[1]
    each = _per_segment((time == 0).astype(jnp.int32), row.segment_ids)
    each = jnp.take_along_axis(each, row.segment_ids, 1)  # tokens of a frame
    later = time % pool
    first = jnp.arange(n) - later * each
    first = jnp.where(row.segment_ids > 0, first, jnp.arange(n))

    def mean(x: Array, first: Array) -> Array:
        total = jax.ops.segment_sum(x, first, num_segments=n)
        count = jax.ops.segment_sum(jnp.ones(n), first, num_segments=n)
        return total / jnp.maximum(count, 1)[:, None]

    return jax.vmap(mean)(x, first), jnp.where(later == 0, row.segment_ids, 0)


def _per_segment(values: Array, ids: Array) -> Array:
    """Sums of int values [b n] over each segment: [b n+1], at the index of its id; 0 at padding's."""
    total = lambda values, ids: jax.ops.segment_sum(values, ids, num_segments=ids.shape[0] + 1)  # noqa: E731
    return jax.vmap(total)(values, ids).at[:, 0].set(0)


def _ranks(ids: Array) -> Array:
    """The number of each token among those of its segment before it: int [b n] -> int32 [b n]. Segments are runs."""
    there = (ids > 0).astype(jnp.int32)
    before = jnp.cumsum(there, 1) - there
    start = jax.vmap(lambda b, i: jax.ops.segment_min(b, i, num_segments=i.shape[0] + 1))(
        jnp.where(there > 0, before, jnp.iinfo(jnp.int32).max), ids
    )
    return (before - jnp.take_along_axis(start, ids, 1)) * there
