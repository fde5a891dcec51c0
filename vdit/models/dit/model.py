"""The diffusion transformer over packed rows of spacetime patches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.dist.rules import constrain
from vdit.errors import ConfigError, ShapeError
from vdit.models.backbone import Output
from vdit.models.cache import STACKED, BlockCall, KVCache, attention_ids, run_blocks
from vdit.models.conditioner import Conditioner, embed_conditions
from vdit.models.dit.blocks import ACTIVATION, OF_FRAMES, Block, modulate, take_frames, whole_columns
from vdit.models.dit.config import DiTConfig
from vdit.nn.attention import SAVED
from vdit.nn.embedding import rotations, sincos_position, sinusoid
from vdit.nn.layers import MLP, Linear
from vdit.types import Array, PyTree, Row

_zeros = nn.initializers.zeros_init()


class DiT(nn.Module):
    """Predicts noise, velocity or data for packed tokens (Peebles and Xie, 2023; Wan, 2025).

    Which of these it predicts is the training objective's affair, not the network's.

    config: the network.
    conditions: what it takes besides text: those of the config, and others (vdit/models/conditioner.py).
    """

    config: DiTConfig
    conditions: tuple[Conditioner, ...] = ()

    @nn.compact
    def __call__(
        self,
        row: Row,
        time: Array,
        text: Array | None = None,
        *,
        cache: KVCache | None = None,
        return_cache: bool = False,
        return_hidden: bool = False,
        block_cache: BlockCall | None = None,
    ) -> Output:
        """Denoises rows of tokens.

        Args:
            row: packed tokens, with the conditions in `row.cond`.
            time: float [b k], the noise level of each frame in 0..1000 (Schedule.time).
            text: encoded captions [b m e], where the config asks for text.
            cache: of causal models, finished frames of the same rows, which these read too; clips and positions are
                counted on from there. A finished frame stays what it is: nothing of it depends on later frames.
            return_cache: also return the keys and values of these tokens; of finished frames, at their last level.
            return_hidden: also return the tokens after each block.
            block_cache: what an earlier call's blocks added, to use it again where that has hardly changed.

        Returns:
            The prediction float32 [b n p], or [b n 2p] if the variance is learned; with `return_cache` the cache,
            with `return_hidden` the hidden states, with `block_cache` the residuals.

        Raises:
            ShapeError: a condition or the text is missing, or not as wide as declared.
            ConfigError: a cache of a model that is not causal, or together with a block cache.
        """
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        _check_text(cfg, text)
        if (cache is not None or return_cache) and not cfg.causal:
            raise ConfigError("a cache needs frames that no later ones change: set backbone.causal=True")
        returns = tuple(name for name, asked in (("cache", return_cache), ("hidden", return_hidden)) if asked)
        if returns and block_cache is not None:
            raise ConfigError(f"return_{returns[0]}=True needs all blocks to run: leave block_cache out")
        conditions = embed_conditions(self.conditions, row, cfg.width, cfg.patch)
        if conditions.sequences and cfg.text == "none":
            named = ", ".join(conditions.sequences)
            raise ConfigError(f"conditions of tokens ({named}) need cross-attention to text: set backbone.text='cross'")
        values = row.values
        if conditions.channels is not None:
            values = jnp.concatenate([values, conditions.channels.astype(values.dtype)], -1)
        x = Linear(cfg.width, ("patch", "embed"), dtype=dtype, name="patch_embed")(values)
        rotation = None if cfg.position == "sincos" else rotations(row.position, cfg.head_dim)
        if cfg.position != "rope":
            x = x + sincos_position(row.position, cfg.width).astype(dtype)
        x = constrain(x, ACTIVATION)

        embedding = self._modulation(time, row, text, conditions.modulation)
        sequences = {}
        if cfg.text == "cross":
            sequences["text"] = MLP(cfg.width, cfg.width, dtype, name="text_embed")(text), row.text_segment_ids
            sequences |= conditions.sequences
        if cfg.modulation == "block":
            modulation = nn.silu(embedding)
        else:
            project = Linear(6 * cfg.width, ("embed", "mlp"), kernel_init=_zeros, name="time_projection")
            modulation = whole_columns(project(nn.silu(embedding)))
        times = row.position[..., 0]
        ids = attention_ids(row.segment_ids, times if cfg.causal else None, cache)
        layers = None if cache is None else (constrain(cache.keys, STACKED), constrain(cache.values, STACKED))
        shared = modulation, row.frame_index, ids, rotation, sequences
        if block_cache is not None:
            x, residuals = run_blocks(self._one_block(layers, *shared), cfg.depth, x, block_cache, scan=cfg.scan)
            return Output(prediction=self._head(x, embedding, row.frame_index), residuals=residuals)
        x, made = self._blocks(x, layers, *shared, returns=returns)
        output = Output(prediction=self._head(x, embedding, row.frame_index))
        if return_cache:
            keys, values = (constrain(y, STACKED) for y in made["cache"])
            cache = KVCache(keys=keys, values=values, time=times, segment_ids=row.segment_ids)
            output = dataclasses.replace(output, cache=cache)
        if return_hidden:
            output = dataclasses.replace(output, hidden=constrain(made["hidden"], ("layers", *ACTIVATION)))
        return output

    def _modulation(self, time: Array, row: Row, text: Array | None, conditions: Array | None) -> Array:
        """Embedding of the noise level, the conditions and the pooled caption of each frame: float32 [b k d]."""
        cfg = self.config
        embedding = constrain(sinusoid(time, cfg.time_features, shift=cfg.time_frequency_shift), OF_FRAMES)
        embedding = Linear(cfg.width, (None, "embed"), name="time_in")(embedding)
        embedding = Linear(cfg.width, (None, "embed"), name="time_out")(nn.silu(constrain(embedding, OF_FRAMES)))
        if conditions is not None:
            embedding = embedding + conditions
        if cfg.text == "cross" and cfg.text_pool:
            owner = row.frame_segment_ids[:, :, None]
            same = (owner == row.text_segment_ids[:, None]) & (owner > 0)
            weight = same / jnp.maximum(same.sum(-1, keepdims=True), 1)
            pooled = jnp.einsum("bkm,bme->bke", weight, text.astype(jnp.float32))
            embedding = embedding + MLP(cfg.width, cfg.width, name="text_pool")(constrain(pooled, OF_FRAMES))
        return constrain(embedding, OF_FRAMES)

    def _blocks(self, x, cache, *shared, returns: tuple[str, ...]) -> tuple[Array, dict[str, PyTree]]:
        """All layers, and what they return (Block.returns), stacked: [L ...]. cache: keys and values [L b n h d]."""
        cfg = self.config
        block = Block
        if cfg.remat != "none":
            block = nn.remat(Block, policy=_saved(cfg.remat), prevent_cse=not cfg.scan)
        if cfg.scan:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, *[nn.broadcast] * len(shared)),
                length=cfg.depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return scanned(cfg, returns, name="blocks")(x, cache, *shared)
        made = []
        for i in range(cfg.depth):
            layer = None if cache is None else tuple(y[i] for y in cache)
            x, of_layer = block(cfg, returns, name=f"block_{i}")(x, layer, *shared)
            made.append(of_layer)
        return x, jax.tree.map(lambda *y: jnp.stack(y), *made)

    def _one_block(self, cache, *shared):
        """run(i, x): block i as a function, with the parameters that `_blocks` has made."""
        params = self.variables["params"]

        def of_layer(tree, i):
            return jax.tree.map(lambda y: y[i], tree)

        def run(i, x):
            of_block = of_layer(params["blocks"], i) if self.config.scan else params[f"block_{i}"]
            return Block(self.config, parent=None).apply({"params": of_block}, x, of_layer(cache, i), *shared)[0]

        return run

    def _head(self, x: Array, embedding: Array, frame_index: Array) -> Array:
        cfg = self.config
        if cfg.modulation == "block":
            project = Linear(2 * cfg.width, ("embed", "mlp"), kernel_init=_zeros, name="head_modulation")
            shift, scale = jnp.split(whole_columns(project(nn.silu(embedding))), 2, -1)
        else:
            init = nn.with_logical_partitioning(_zeros, (None, "embed"))
            table = self.param("head_table", init, (2, cfg.width))
            shift, scale = embedding + table[0], embedding + table[1]
        x = modulate(x, *(take_frames(y, frame_index) for y in (shift, scale)), cfg.norm_eps)
        features = cfg.token_values * (2 if cfg.learn_variance else 1)
        head = Linear(features, ("embed", "patch"), dtype=jnp.dtype(cfg.dtype), kernel_init=_zeros, name="head")
        return head(x).astype(jnp.float32)


def _saved(remat: str):
    """What a block keeps for its backward: a policy for jax.checkpoint, None where it keeps nothing."""
    policies = jax.checkpoint_policies
    return {
        "full": None,
        "dots": policies.dots_with_no_batch_dims_saveable,
        "attention": policies.save_only_these_names(SAVED),
    }[remat]


def _check_text(cfg: DiTConfig, text: Array | None) -> None:
    """Raises ShapeError unless encoded captions are there exactly where the config asks for them, and of its width."""
    if cfg.text != "cross" or (text is not None and not cfg.text_width):
        return
    wanted, found = cfg.text_width or "the encoder's width", 0 if text is None else text.shape[-1]
    if found != wanted:
        raise ShapeError(f"DiT: text has width {found}, the config asks for {wanted} (0 is none): pass it so")
