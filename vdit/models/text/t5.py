"""The encoder of T5 and umT5 on packed captions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdit.dist.rules import constrain
from vdit.models.text.config import T5Config
from vdit.nn.embedding import Embed
from vdit.nn.layers import Linear, RMSNorm
from vdit.types import Array

ACTIVATION = ("batch", "text_tokens", "embed")
# Queries at a time: the scores of all heads of a long row would not fit.
CHUNK = 1024
_MASKED = -1e30  # finite: a token that may see no key averages all, and is then set to zero, rather than NaN


class T5Encoder(nn.Module):
    """Packed captions to features (Raffel et al., 2020), a module of the form of vdit.models.text.TextEncoder.

    text, text_segment_ids, text_position: int [b m], as in vdit.types.Row. Returns float32 [b m d].
    Attention stays within a clip's caption, and relative positions are counted inside it, so that a caption
    gives the same features wherever it lies in a row. The padding at a caption's end (config.pad_id) is seen
    by no token and gives zeros: so Wan encodes prompts.
    """

    config: T5Config

    @nn.compact
    def __call__(self, text: Array, text_segment_ids: Array, text_position: Array) -> Array:
        cfg = self.config
        same = (text_segment_ids[:, :, None] == text_segment_ids[:, None, :]) & (text_segment_ids > 0)[:, None, :]
        # Padding is what nothing but padding follows: a "<pad>" that a prompt spells out is a token of it.
        follows = text_position[:, None, :] >= text_position[:, :, None]
        real = jnp.any(same & follows & (text != cfg.pad_id)[:, None, :], axis=-1)
        bucket = relative_bucket(text_position[:, None, :] - text_position[:, :, None], cfg.buckets, cfg.max_distance)
        # One look-up gives bias and mask: the row after the last bucket holds the mask (see _attend).
        bucket = jnp.where(same & real[:, None, :], bucket, cfg.buckets)

        x = Embed(cfg.vocab_size, cfg.width, stddev=1.0, name="embed")(text).astype(jnp.float32)
        x = constrain(x, ACTIVATION)
        table = None if cfg.per_layer_bias else _bias_table(self, cfg)
        x = self._blocks(x, bucket, table)
        return jnp.where(real[..., None], RMSNorm(eps=cfg.eps, name="norm")(x), 0.0)

    def _blocks(self, x: Array, bucket: Array, table: Array | None) -> Array:
        cfg = self.config
        if cfg.scan:
            scanned = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=cfg.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return scanned(cfg, name="blocks")(x, bucket, table)[0]
        for i in range(cfg.layers):
            x, _ = Block(cfg, name=f"block_{i}")(x, bucket, table)
        return x


class Block(nn.Module):
    """Self-attention, then an MLP: `[b m d] -> ([b m d], None)`, as lax.scan wants it.

    bucket: int [b m m], buckets of the relative positions of (query, key); config.buckets where the key is
    not seen. table: float [buckets heads], where the layers share one.
    """

    config: T5Config

    @nn.compact
    def __call__(self, x: Array, bucket: Array, table: Array | None) -> tuple[Array, None]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        if table is None:
            table = _bias_table(self, cfg)
        inner = cfg.heads * cfg.head_dim
        # Scores are not scaled; the queries' weights start that much smaller instead.
        inits = {"q": nn.initializers.normal((cfg.width * cfg.head_dim) ** -0.5)}
        inits["k"] = inits["v"] = nn.initializers.normal(cfg.width**-0.5)

        y = RMSNorm(eps=cfg.eps, name="attention_norm")(x)
        q, k, v = (
            Linear(inner, ("embed", "heads"), use_bias=False, dtype=dtype, kernel_init=inits[name], name=name)(y)
            .reshape(*y.shape[:2], cfg.heads, cfg.head_dim)
            .swapaxes(1, 2)
            for name in "qkv"
        )
        y = _attention(q, k, v, bucket, table).swapaxes(1, 2).reshape(*x.shape[:2], inner)
        x = x + Linear(cfg.width, ("heads", "embed"), use_bias=False, dtype=dtype, name="out")(y)

        y = RMSNorm(eps=cfg.eps, name="mlp_norm")(x)
        activation = nn.relu if cfg.activation == "relu" else nn.gelu  # nn.gelu is the tanh approximation
        first = "gate" if cfg.gated else "up"
        hidden = activation(Linear(cfg.mlp, ("embed", "mlp"), use_bias=False, dtype=dtype, name=first)(y))
        if cfg.gated:
            hidden = hidden * Linear(cfg.mlp, ("embed", "mlp"), use_bias=False, dtype=dtype, name="up")(y)
        x = x + Linear(cfg.width, ("mlp", "embed"), use_bias=False, dtype=dtype, name="down")(hidden)
        return constrain(x, ACTIVATION), None


def relative_bucket(distance: Array, buckets: int, max_distance: int) -> Array:
    """Bucket of a relative position.

    Half of the buckets are for keys after the query. Of each half, half are for one distance each; the others become
    wider towards max_distance, and every larger distance has the last one (Raffel et al., 2020, section 2.1).

    Args:
        distance: int [...], position of the key minus position of the query.
        buckets: how many there are.
        max_distance: where the last bucket begins.

    Returns:
        int32 [...] in 0..buckets-1.
    """
    half, exact = buckets // 2, buckets // 4
    sizes = np.arange(max_distance + 1, dtype=np.float32)
    # In float32 as the reference has it, since values fall on the borders; on the host, since XLA's logarithm
    # may round them otherwise.
    ratio = np.log(np.maximum(sizes, 1) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    wide = exact + (ratio * np.float32(half - exact)).astype(np.int32)
    table = np.where(sizes < exact, sizes.astype(np.int32), np.minimum(wide, half - 1))
    size = jnp.minimum(jnp.abs(distance), max_distance)
    return jnp.asarray(table, jnp.int32)[size] + half * (distance > 0)


def _bias_table(module: nn.Module, cfg: T5Config) -> Array:
    """The calling module's table of relative positions: [buckets heads]."""
    init = nn.with_logical_partitioning(nn.initializers.normal(cfg.width**-0.5), (None, "heads"))
    return module.param("relative_bias", init, (cfg.buckets, cfg.heads))


def _attention(q: Array, k: Array, v: Array, bucket: Array, table: Array) -> Array:
    """q, k, v: [b h m d]; bucket: int [b m m]; table: [buckets h]. Returns [b h m d]."""
    m = q.shape[2]
    if m <= CHUNK:
        return _attend(q, k, v, bucket, table)
    padding = -m % CHUNK
    chunks = (m + padding) // CHUNK
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0))).reshape(*q.shape[:2], chunks, CHUNK, -1)
    bucket = jnp.pad(bucket, ((0, 0), (0, padding), (0, 0))).reshape(bucket.shape[0], chunks, CHUNK, m)
    inputs = jnp.moveaxis(q, 2, 0), jnp.moveaxis(bucket, 1, 0)
    out = jax.lax.map(lambda part: _attend(part[0], k, v, part[1], table), inputs)
    return jnp.moveaxis(out, 0, 2).reshape(*k.shape[:2], m + padding, -1)[:, :, :m]


def _attend(q: Array, k: Array, v: Array, bucket: Array, table: Array) -> Array:
    """Softmax attention without scaling, with a bias for each relative position: q [b h n d] -> [b h n d]."""
    table = jnp.pad(table.astype(jnp.float32), ((0, 1), (0, 0)), constant_values=_MASKED)
    bias = jnp.take(table.T, bucket, axis=1).swapaxes(0, 1)
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) + bias
    p = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", p, v)
