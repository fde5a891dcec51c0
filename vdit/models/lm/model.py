"""The language model: token ids or embeddings in packed rows, with or without a cache, to hidden states and logits."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdit.dist.rules import constrain, num_shards
from vdit.errors import ShapeError
from vdit.models.lm.config import LMConfig
from vdit.nn.attention import attention
from vdit.nn.embedding import Embed
from vdit.nn.layers import Linear, RMSNorm
from vdit.reprs import short_repr
from vdit.types import Array

ACTIVATION = ("batch", "text_tokens", "embed")
STACKED = ("layers", "batch", None, "heads", None)
LOGITS = ("batch", None, "vocab")


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of tokens that were read before, in arrays of a fixed size: m slots a row.

    Attributes:
        keys, values: [L b m kv_heads head_dim], in the model's type; keys are normed and rotated already.
        position: int32 [b m], the place of each token in its text.
        segment_ids: int32 [b m], the text that each token belongs to; 0 for padding and for slots that are free.
        used: int32 [], slots that are taken, the same in every row.
    """

    keys: Array
    values: Array
    position: Array
    segment_ids: Array
    used: Array

    @classmethod
    def empty(cls, config: LMConfig, rows: int, slots: int) -> KVCache:
        """A cache that holds nothing yet."""
        shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
        zeros = lambda: constrain(jnp.zeros(shape, config.dtype), STACKED)  # noqa: E731
        marks = jnp.zeros((rows, slots), jnp.int32)
        return cls(keys=zeros(), values=zeros(), position=marks, segment_ids=marks, used=jnp.int32(0))


class LMOutput(NamedTuple):
    """What the model gives.

    Attributes:
        hidden: float32 [b n d], normalised: what `LanguageModel.logits` takes.
        cache: the given cache with these tokens in it; None where none was given.
    """

    hidden: Array
    cache: KVCache | None


class _Ids(NamedTuple):
    """Who reads whom: segment ids and positions of queries and of keys, int [b n] and [b m]; `used` slots before."""

    segment_ids: Array
    position: Array
    k_segment_ids: Array
    k_position: Array
    used: Array | None


class LanguageModel(nn.Module):
    """Packed texts to hidden states, each token reading its own text up to itself (Touvron et al., 2023; Qwen, 2024).

    Example:
        model = LanguageModel(lm_preset("smollm2-135m"))
        hidden = model.apply({"params": params}, ids, position, segment_ids).hidden
        logits = model.apply({"params": params}, hidden, method="logits")
    """

    config: LMConfig

    def setup(self) -> None:
        cfg = self.config
        self.embed = Embed(cfg.vocab_size, cfg.width)
        self.norm = RMSNorm(eps=cfg.eps)
        if not cfg.tied:
            init = nn.initializers.normal(0.02)
            self.head = Linear(cfg.vocab_size, ("embed", "vocab"), use_bias=False, kernel_init=init)
        block = nn.remat(Block, prevent_cse=not cfg.scan) if cfg.remat == "full" else Block
        if cfg.scan:
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=cfg.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(cfg)
        else:
            self.block = [block(cfg) for _ in range(cfg.layers)]

    def __call__(self, inputs: Array, position: Array, segment_ids: Array, *, cache: KVCache | None = None) -> LMOutput:
        """Reads tokens.

        Args:
            inputs: int [b n], token ids; or float [b n d], embeddings in their place (a connector's).
            position: int [b n], the place of each token in its text, from 0 on.
            segment_ids: int [b n], the text of each token, from 1 on, so that several may share a row; 0 for padding.
            cache: of tokens before these. It must have n free slots: jax does not check that.

        Returns:
            Hidden states, and the cache with these tokens in it.

        Raises:
            ShapeError: the embeddings have another width than the model, or there are more tokens than slots.
        """
        cfg = self.config
        x = self.embed_tokens(inputs) if jnp.issubdtype(inputs.dtype, jnp.integer) else inputs.astype(jnp.float32)
        if self.is_initializing():
            self.logits(x)  # its parameters
        if x.ndim != 3 or x.shape[-1] != cfg.width:
            raise ShapeError(f"language model: inputs {inputs.shape} must be ids [b n] or embeddings [b n {cfg.width}]")
        if cache is not None and x.shape[1] > cache.position.shape[1]:
            raise ShapeError(f"language model: {x.shape[1]} tokens do not fit into {cache.position.shape[1]} slots")
        x = constrain(x, ACTIVATION)
        turn = _rotations(cfg, position)
        ids = _Ids(segment_ids, position, segment_ids, position, None)
        layers = None
        if cache is not None:
            put = lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, cache.used))  # noqa: E731
            marks = put(cache.segment_ids, segment_ids), put(cache.position, position)
            ids = _Ids(segment_ids, position, *marks, cache.used)
            layers = cache.keys, cache.values
        x, made = self._blocks(x, layers, turn, ids)
        if cache is not None:
            keys, values = (constrain(y, STACKED) for y in made)
            cache = KVCache(
                keys=keys, values=values, segment_ids=ids.k_segment_ids, position=ids.k_position,
                used=cache.used + x.shape[1],
            )  # fmt: skip
        return LMOutput(hidden=self.norm(x), cache=cache)

    def embed_tokens(self, ids: Array) -> Array:
        """Token ids to what the first layer reads: int [...] -> float32 [... d]."""
        return self.embed(ids).astype(jnp.float32)

    def logits(self, hidden: Array) -> Array:
        """Scores of the next token: hidden states [... d] -> float32 [... vocab_size]."""
        dtype = jnp.dtype(self.config.dtype)
        if not self.config.tied:
            return self.head(hidden.astype(dtype)).astype(jnp.float32)
        out = self.embed.attend(hidden, dtype)
        return constrain(out, LOGITS) if out.ndim == 3 else out

    def _blocks(self, x: Array, layers: tuple[Array, Array] | None, turn, ids: _Ids):
        """All layers; layers, and what is returned of them: keys and values [L b m h d] each, or None."""
        if self.config.scan:
            return self.blocks(x, layers, turn, ids)
        made = []
        for i, block in enumerate(self.block):
            x, of_layer = block(x, None if layers is None else tuple(y[i] for y in layers), turn, ids)
            made.append(of_layer)
        return x, None if layers is None else jax.tree.map(lambda *y: jnp.stack(y), *made)


class Block(nn.Module):
    """Self-attention, then SwiGLU (Shazeer, 2020): `[b n d]`, and this layer's cache, as lax.scan wants them."""

    config: LMConfig

    @nn.compact
    def __call__(
        self, x: Array, cache: tuple[Array, Array] | None, turn: tuple[Array, Array], ids: _Ids
    ) -> tuple[Array, tuple[Array, Array] | None]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        y, made = Attention(cfg, name="attention")(RMSNorm(eps=cfg.eps, name="attention_norm")(x), cache, turn, ids)
        x = constrain(x + y, ACTIVATION)
        y = RMSNorm(eps=cfg.eps, name="mlp_norm")(x)
        gate, up = (
            Linear(cfg.mlp, ("embed", "mlp"), use_bias=False, dtype=dtype, name=name)(y) for name in ("gate", "up")
        )
        y = Linear(cfg.width, ("mlp", "embed"), use_bias=False, dtype=dtype, name="down")(nn.silu(gate) * up)
        return constrain(x + y, ACTIVATION), made


class Attention(nn.Module):
    """Grouped-query attention of each token to its text up to itself: `[b n d]`, and this layer's cache."""

    config: LMConfig

    @nn.compact
    def __call__(
        self, x: Array, cache: tuple[Array, Array] | None, turn: tuple[Array, Array], ids: _Ids
    ) -> tuple[Array, tuple[Array, Array] | None]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)

        def project(name: str, heads: int) -> Array:
            features = heads * cfg.head_dim
            y = Linear(features, ("embed", "heads"), use_bias=cfg.qkv_bias, dtype=dtype, name=name)(x)
            y = y.reshape(*x.shape[:2], heads, cfg.head_dim)
            return RMSNorm(eps=cfg.eps, axis=None, name=f"{name}_norm")(y) if cfg.qk_norm and name != "v" else y

        q, k = (_rotate(project(name, heads), *turn) for name, heads in (("q", cfg.heads), ("k", cfg.kv_heads)))
        v = project("v", cfg.kv_heads)
        if cache is not None:
            put = lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, ids.used, 0, 0))  # noqa: E731
            k, v = cache = put(cache[0], k), put(cache[1], v)
        y = _grouped(q, k, v, ids).reshape(*x.shape[:2], cfg.heads * cfg.head_dim)
        return Linear(cfg.width, ("heads", "embed"), use_bias=False, dtype=dtype, name="out")(y), cache


def _grouped(q: Array, k: Array, v: Array, ids: _Ids) -> Array:
    """Attention of q [b n heads d] to k, v [b m kv_heads d].

    Queries that share a head of keys stand beside each other as so many tokens, so that no key is repeated. Where a
    mesh splits the heads of queries and not those of keys, keys are repeated instead, and all devices have a part.
    """
    b, n, heads, d = q.shape
    group = heads // k.shape[2]
    shards = num_shards("heads")
    times = ids.segment_ids, ids.k_segment_ids, ids.position, ids.k_position
    if group > 1 and (k.shape[2] % shards and heads % shards == 0):
        k, v, group = jnp.repeat(k, group, 2), jnp.repeat(v, group, 2), 1
    q_ids, k_ids, q_time, k_time = times
    if group > 1:
        q = q.reshape(b, n, heads // group, group, d).swapaxes(2, 3).reshape(b, n * group, heads // group, d)
        q_ids, q_time = (jnp.repeat(x, group, 1) for x in (q_ids, q_time))
    axes = ("text_tokens", "text_tokens")
    y = attention(q, k, v, q_ids, k_ids, axes=axes, q_time=q_time, k_time=k_time)
    if group > 1:
        y = y.reshape(b, n, group, heads // group, d).swapaxes(2, 3)
    return y


def _rotations(config: LMConfig, position: Array) -> tuple[Array, Array]:
    """cos and sin for every token: int [b n] -> two float32 [b n head_dim/2]."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    if config.rope_divisors:
        frequency = frequency / np.asarray(config.rope_divisors)
    angle = position[..., None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn pairs half a head apart: `[b n h d]` by `[b n d/2]` -> `[b n h d]` (Su et al., 2021; GPT-NeoX's order)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
