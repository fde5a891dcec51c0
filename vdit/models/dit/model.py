"""The diffusion transformer over packed rows of spacetime patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.dist.rules import constrain
from vdit.errors import ConfigError, ShapeError
from vdit.models.dit.blocks import ACTIVATION, OF_FRAMES, Block, modulate, take_frames, whole_columns
from vdit.models.dit.config import DiTConfig
from vdit.models.dit.past import STACKED, KVCache, reading
from vdit.models.dit.reuse import Residuals, Reusing, pass_over
from vdit.nn.attention import SAVED
from vdit.nn.embedding import Embed, sincos_position, sinusoid
from vdit.nn.linear import MLP, Linear
from vdit.nn.norm import LayerNorm
from vdit.nn.rope import rotations
from vdit.types import Array

_zeros = nn.initializers.zeros_init()


class DiT(nn.Module):
    """Predicts noise, velocity or data for packed tokens (Peebles and Xie, 2023; Wan, 2025).

    Which of these it predicts is the training objective's affair, not the network's.
    """

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        values: Array,
        *,
        time: Array,
        position: Array,
        segment_ids: Array,
        frame_index: Array,
        frame_segment_ids: Array,
        text: Array | None = None,
        text_segment_ids: Array | None = None,
        label: Array | None = None,
        action: Array | None = None,
        condition: Array | None = None,
        image: Array | None = None,
        image_segment_ids: Array | None = None,
        past: KVCache | None = None,
        keep: bool = False,
        reuse: Reusing | None = None,
    ) -> Array | tuple[Array, KVCache] | tuple[Array, Residuals]:
        """Denoise rows of tokens; shapes as in vdit.types.Row.

        values: [b n p]; time: float [b k], the noise level of each slot in 0..1000 (schedule.time);
        text: [b m e], encoded captions, with text_segment_ids int [b m]; label: int [b s];
        action: [b k a], what is done in the frame of each slot;
        condition: [b n pc], what is known beside the noisy latents, folded to tokens as values are;
        image: [b mi e], encoded images, with image_segment_ids int [b mi], the clip that each token belongs to.
        past: of causal models, tokens of the same rows' finished frames, which these read beside themselves; clips and
            positions are counted on from there. It stays what it is: nothing of it depends on later frames.
        keep: also return the Past of these tokens; of frames that are finished, at their last level.
        reuse: what an earlier call's blocks added, to pass them over where that has hardly changed
        (vdit/models/dit/reuse.py).
        Returns float32 [b n p], or [b n 2p] if the variance is learned; with `keep` (that, Past), with `reuse` (that,
        Residuals).
        """
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        _check_inputs(cfg, text=text, condition=condition, image=image, action=action)
        if (past is not None or keep) and not cfg.causal:
            raise ConfigError("past and keep need frames that no later ones change: set dit.causal=True, or leave them")
        if keep and reuse is not None:
            raise ConfigError("keep=True needs all blocks to run: leave reuse out")
        if condition is not None:
            values = jnp.concatenate([values, condition.astype(values.dtype)], -1)
        x = Linear(cfg.width, ("patch", "embed"), dtype=dtype, name="patch_embed")(values)
        rotation = None if cfg.position == "sincos" else rotations(position, cfg.head_dim)
        if cfg.position != "rope":
            x = x + sincos_position(position, cfg.width).astype(dtype)
        x = constrain(x, ACTIVATION)

        embedding = self._condition(time, frame_segment_ids, text, text_segment_ids, label, action)
        if cfg.text == "cross":
            text = MLP(cfg.width, cfg.width, dtype, name="text_embed")(text)
        else:
            text = text_segment_ids = None
        if image is not None:
            image = ImageEmbed(cfg, name="image_embed")(image, image_segment_ids)
        if cfg.modulation == "block":
            modulation = nn.silu(embedding)
        else:
            project = Linear(6 * cfg.width, ("embed", "mlp"), kernel_init=_zeros, name="time_projection")
            modulation = whole_columns(project(nn.silu(embedding)))
        reads = reading(segment_ids, position[..., 0] if cfg.causal else None, past)
        layers = None if past is None else (constrain(past.keys, STACKED), constrain(past.values, STACKED))
        shared = modulation, frame_index, reads, rotation, text, text_segment_ids, image, image_segment_ids
        if reuse is not None:
            x, residuals = pass_over(self._one_block(layers, *shared), cfg.depth, x, reuse, scan=cfg.scan)
            return self._head(x, embedding, frame_index), residuals
        x, made = self._blocks(x, layers, *shared, keep=keep)
        out = self._head(x, embedding, frame_index)
        if not keep:
            return out
        keys, values = (constrain(y, STACKED) for y in made)
        return out, KVCache(keys=keys, values=values, time=position[..., 0], segment_ids=segment_ids)

    def _condition(self, time, frame_segment_ids, text, text_segment_ids, label, action) -> Array:
        """Embedding of noise level, class, action and pooled caption for each slot: float32 [b k d]."""
        cfg = self.config
        embedding = constrain(sinusoid(time, cfg.time_features, shift=cfg.time_frequency_shift), OF_FRAMES)
        embedding = Linear(cfg.width, (None, "embed"), name="time_in")(embedding)
        embedding = Linear(cfg.width, (None, "embed"), name="time_out")(nn.silu(constrain(embedding, OF_FRAMES)))
        if cfg.classes:
            # Row 0 stands for "no class"; clip ids and labels both count from 1.
            table = Embed(cfg.classes + 1, cfg.width, name="label_embed")
            of_clip = jnp.pad(table(label), ((0, 0), (1, 0), (0, 0)))
            embedding = embedding + jnp.take_along_axis(of_clip, frame_segment_ids[..., None], axis=1)
        if action is not None:
            embedding = embedding + MLP(cfg.width, cfg.width, name="action")(constrain(action, OF_FRAMES))
        if cfg.text == "cross" and cfg.text_pool:
            same = (frame_segment_ids[:, :, None] == text_segment_ids[:, None]) & (frame_segment_ids[:, :, None] > 0)
            weight = same / jnp.maximum(same.sum(-1, keepdims=True), 1)
            pooled = jnp.einsum("bkm,bme->bke", weight, text.astype(jnp.float32))
            embedding = embedding + MLP(cfg.width, cfg.width, name="text_pool")(constrain(pooled, OF_FRAMES))
        return constrain(embedding, OF_FRAMES)

    def _blocks(self, x, past, *shared, keep: bool) -> tuple[Array, tuple[Array, Array] | None]:
        """All layers; past, and what is kept: keys and values [L b n h d] each."""
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
            return scanned(cfg, keep, name="blocks")(x, past, *shared)
        made = []
        for i in range(cfg.depth):
            layer = None if past is None else tuple(y[i] for y in past)
            x, of_layer = block(cfg, keep, name=f"block_{i}")(x, layer, *shared)
            made.append(of_layer)
        return x, jax.tree.map(lambda *y: jnp.stack(y), *made) if keep else None

    def _one_block(self, past, *shared):
        """run(i, x): block i as a function, with the parameters that `_blocks` has made."""
        params = self.variables["params"]

        def of_layer(tree, i):
            return jax.tree.map(lambda y: y[i], tree)

        def run(i, x):
            of_block = of_layer(params["blocks"], i) if self.config.scan else params[f"block_{i}"]
            return Block(self.config, parent=None).apply({"params": of_block}, x, of_layer(past, i), *shared)[0]

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


class ImageEmbed(nn.Module):
    """Encoded images to tokens that the blocks attend to: `[b mi e]`, int `[b mi]` -> `[b mi d]` (Wan 2.1)."""

    config: DiTConfig

    @nn.compact
    def __call__(self, image: Array, image_segment_ids: Array) -> Array:
        cfg, dtype, eps = self.config, jnp.dtype(self.config.dtype), 1e-5  # Wan leaves torch's default here
        if cfg.image_positions:
            init = nn.with_logical_partitioning(_zeros, (None, "embed"))
            table = self.param("position", init, (cfg.image_positions, cfg.image_width))
            image = image + jnp.take(table, _index_in_clip(image_segment_ids), axis=0)
        x = LayerNorm(eps, name="norm_in")(image)
        x = Linear(cfg.image_width, ("embed", "mlp"), dtype=dtype, name="up")(x)
        x = Linear(cfg.width, ("mlp", "embed"), dtype=dtype, name="down")(nn.gelu(x, approximate=False))
        return LayerNorm(eps, name="norm_out")(x)


def _index_in_clip(segment_ids: Array) -> Array:
    """Index of each token inside its clip, from 0: int `[b m] -> [b m]`; a clip's tokens lie side by side."""
    first = jnp.argmax(segment_ids[:, :, None] == segment_ids[:, None], axis=-1)
    return jnp.arange(segment_ids.shape[1]) - first


def _check_inputs(cfg: DiTConfig, **given: Array | None) -> None:
    """Each optional input is there exactly where the config asks for it, and of its width."""
    widths = {"condition": cfg.condition_values, "image": cfg.image_width, "action": cfg.action_width}
    if cfg.text == "cross" and (given["text"] is None or cfg.text_width):
        widths["text"] = cfg.text_width or "the encoder's width"
    for name, width in widths.items():
        found = 0 if given[name] is None else given[name].shape[-1]
        if found != width:
            raise ShapeError(f"DiT: {name} has width {found}, the config asks for {width} (0 is none): pass it so")
