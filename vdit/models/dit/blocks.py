"""The block of the diffusion transformer: modulated self-attention, text cross-attention, MLP."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn

from vdit.dist.rules import constrain
from vdit.models.cache import KEYS, AttentionIds, concat_tokens
from vdit.models.dit.config import DiTConfig
from vdit.nn.attention import attention
from vdit.nn.embedding import rotate
from vdit.nn.layers import MLP, LayerNorm, Linear, RMSNorm, layer_norm
from vdit.types import Array, PyTree

ACTIVATION = ("batch", "tokens", "embed")
Sequences = Mapping[str, tuple[Array, Array]]
# Of noise levels there are few: what they give is whole over tensor and sequence too.
OF_FRAMES = ("batch", None, None)


def take_frames(x: Array, frame_index: Array) -> Array:
    """Give each token the values of its noise level: `[b k ...]`, int `[b n] -> [b n ...]`.

    A product with a one-hot matrix: its backward is a product too, where that of a gather is a
    scatter-add, slow on every backend. One level for all (k = 1) is a plain broadcast.
    """
    if x.shape[1] == 1:
        return x
    onehot = (frame_index[..., None] == jnp.arange(x.shape[1])).astype(x.dtype)
    flat = x.reshape(*x.shape[:2], -1)
    return jnp.einsum("bnk,bkd->bnd", onehot, flat).reshape(*frame_index.shape, *x.shape[2:])


def modulate(x: Array, shift: Array, scale: Array, eps: float) -> Array:
    """`norm(x) * (1 + scale) + shift` in float32 (adaLN), returned in x's type."""
    y = layer_norm(x.astype(jnp.float32), eps)
    return (y * (1 + scale) + shift).astype(x.dtype)


def whole_columns(x: Array) -> Array:
    """All-gather the output of an ("embed", "mlp") projection, `[b k parts*d]`, over `tensor`.

    Otherwise its chunks would straddle devices. Its gradient is split again before it meets the kernel, which stays
    sharded.
    """
    return constrain(constrain(x, ("batch", None, "mlp")), OF_FRAMES)


class SelfAttention(nn.Module):
    """Self-attention within clips: `[b n d] -> [b n d]`, and this layer's keys and values `[b n h d]`.

    cache: keys and values of tokens before these, [b m h d] each, or None.
    """

    config: DiTConfig

    @nn.compact
    def __call__(
        self, x: Array, ids: AttentionIds, rotation: tuple[Array, Array] | None, cache: tuple[Array, Array] | None
    ) -> tuple[Array, tuple[Array, Array]]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        q, k, v = (Linear(cfg.width, ("embed", "heads"), dtype=dtype, name=name)(x) for name in ("q", "k", "v"))
        q, k = QKNorm(cfg, name="norm")(q, k)
        q, k, v = (y.reshape(*y.shape[:2], cfg.heads, cfg.head_dim) for y in (q, k, v))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        all_k, all_v = (k, v) if cache is None else (concat_tokens(x, y, KEYS) for x, y in zip(cache, (k, v)))
        y = attention(
            q, all_k, all_v, ids.segment_ids, ids.k_segment_ids, sequence_parallel=cfg.sequence_parallel,
            q_time=ids.time, k_time=ids.k_time,
        )  # fmt: skip
        return Linear(cfg.width, ("heads", "embed"), dtype=dtype, name="out")(y.reshape(x.shape)), (k, v)


class CrossAttention(nn.Module):
    """Attention from a clip's tokens to its caption, and to the tokens of other conditions: `[b n d] -> [b n d]`.

    sequences: name -> (tokens `[b m d]`, their segment ids int `[b m]`); "text" is there always. Others have keys and
    values of their own, and what is read from them is added before the output product (Wan 2.1, after IP-Adapter; Ye
    et al. 2023).
    """

    config: DiTConfig

    @nn.compact
    def __call__(self, x: Array, segment_ids: Array, sequences: Sequences) -> Array:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        split = lambda y: y.reshape(*y.shape[:2], cfg.heads, cfg.head_dim)  # noqa: E731
        project = lambda name: Linear(cfg.width, ("embed", "heads"), dtype=dtype, name=name)  # noqa: E731
        text, text_segment_ids = sequences["text"]
        q, k, v = project("q")(x), project("k")(text), project("v")(text)
        q, k = QKNorm(cfg, name="norm")(q, k)
        q = split(q)
        y = attention(q, split(k), split(v), segment_ids, text_segment_ids, axes=("tokens", "text_tokens"))
        for name, (tokens, token_ids) in sequences.items():
            if name == "text":
                continue
            k, v = project(f"{name}_k")(tokens), project(f"{name}_v")(tokens)
            k = RMSNorm(cfg.norm_eps, axis=None, name=f"{name}_norm")(k)
            y = y + attention(q, split(k), split(v), segment_ids, token_ids, axes=("tokens", "text_tokens"))
        return Linear(cfg.width, ("heads", "embed"), dtype=dtype, name="out")(y.reshape(x.shape))


class QKNorm(nn.Module):
    """RMS norm of queries and keys `[b n d]`, over the whole width or over each head."""

    config: DiTConfig

    @nn.compact
    def __call__(self, q: Array, k: Array) -> tuple[Array, Array]:
        cfg = self.config
        if cfg.qk_norm == "none":
            return q, k
        norms = [RMSNorm(cfg.norm_eps, axis=None, name=name) for name in ("q", "k")]
        if cfg.qk_norm == "full":
            return norms[0](q), norms[1](k)
        heads = [y.reshape(*y.shape[:2], cfg.heads, cfg.head_dim) for y in (q, k)]
        return tuple(norm(y).reshape(q.shape[0], -1, cfg.width) for norm, y in zip(norms, heads))


class Block(nn.Module):
    """One layer. `x` is the residual stream `[b n d]`, cache as in SelfAttention.

    Returned as lax.scan wants it: (x, what `returns` names: "cache", the keys and values of this layer; "hidden", x).
    """

    config: DiTConfig
    returns: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Array,
        cache: tuple[Array, Array] | None,
        condition: Array,
        frame_index: Array,
        ids: AttentionIds,
        rotation: tuple[Array, Array] | None,
        sequences: Sequences,
    ) -> tuple[Array, dict[str, PyTree]]:
        cfg = self.config
        mlp_eps = cfg.norm_eps if cfg.mlp_norm_eps is None else cfg.mlp_norm_eps
        modulation = Modulation(cfg, parts=6, name="modulation")(condition, frame_index)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation

        y = modulate(x, shift, scale, cfg.norm_eps)
        y, cache = SelfAttention(cfg, name="attention")(y, ids, rotation, cache)
        x = constrain(_add_gated(x, gate, y), ACTIVATION)
        if sequences:
            y = LayerNorm(cfg.norm_eps, name="cross_norm")(x)
            x = x + CrossAttention(cfg, name="cross_attention")(y, ids.segment_ids, sequences)
        y = modulate(x, mlp_shift, mlp_scale, mlp_eps)
        y = MLP(cfg.hidden, cfg.width, jnp.dtype(cfg.dtype), name="mlp")(y)
        x = constrain(_add_gated(x, mlp_gate, y), ACTIVATION)
        made = {"cache": cache, "hidden": x}
        return x, {name: made[name] for name in self.returns}


class Modulation(nn.Module):
    """Shifts, scales and gates of a block, one set for each token: a list of float32 `[b n d]`.

    "block": the condition is silu(embedding) `[b k d]`, projected here (zero at first: adaLN-Zero).
    "shared": the condition is already projected, `[b k parts*d]`; a learned table is added.
    """

    config: DiTConfig
    parts: int

    @nn.compact
    def __call__(self, condition: Array, frame_index: Array) -> list[Array]:
        width = self.config.width
        if self.config.modulation == "block":
            zeros = nn.initializers.zeros_init()
            x = Linear(self.parts * width, ("embed", "mlp"), kernel_init=zeros, name="projection")(condition)
            x = whole_columns(x)
            x = x.reshape(*x.shape[:2], self.parts, width)
        else:
            init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None, "embed"))
            table = self.param("table", init, (self.parts, width))
            x = condition.reshape(*condition.shape[:2], self.parts, width) + table
        return [take_frames(x[:, :, i], frame_index) for i in range(self.parts)]


def _add_gated(x: Array, gate: Array, y: Array) -> Array:
    return (x.astype(jnp.float32) + gate * y.astype(jnp.float32)).astype(x.dtype)
