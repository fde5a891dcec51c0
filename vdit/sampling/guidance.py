"""Batches the network evaluates per sampling step: positive prompt, negative prompt (CFG), and context-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vdit.dist.rules import constrain, num_shards
from vdit.models.network import Network
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, CanvasTokens, Prompts, dense_rows, with_conditions
from vdit.sampling.config import SamplingConfig
from vdit.types import Array, PyTree, Row

RUNNING = -1.0  # stands for the level that sampling is at, where frames may have levels of their own


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceBatch:
    """What the network is told beside x and the level; a video's rows lie side by side: wanted, negative, contextless.

    timesteps: float32 [b k], the level of each frame, or RUNNING. hidden: bool [b n 1] and noise [b n p], tokens that
    are noise in this row whatever x holds; None where no row hides any.
    """

    row: Row
    timesteps: Array
    hidden: Array | None = None
    noise: Array | None = None
    text: Array | None = None


def guidance_batch(
    network: Network, params: PyTree, canvas: Canvas, tokens: CanvasTokens, prompts: Prompts, negative: Prompts,
    noise: Array, method: SamplingConfig,
) -> GuidanceBatch:  # fmt: skip
    """What the network is told of a canvas, its text encoded, where the mesh in context wants it. noise: [b n p]."""
    rows = _rows_of(network, canvas, tokens, prompts, negative, noise, method)
    batch = _on_mesh(jax.tree.map(stack_guidance, *rows) if len(rows) > 1 else rows[0])
    return dataclasses.replace(batch, text=network.encode_text(params, batch.row))


def _rows_of(
    network: Network, canvas: Canvas, tokens: CanvasTokens, prompts: Prompts, negative: Prompts, noise: Array,
    method: SamplingConfig,
) -> list[GuidanceBatch]:  # fmt: skip
    """The rows of each video, as batches of the same shapes."""
    known = tokens.known if method.conditioning == "clean" else jnp.zeros_like(tokens.known)
    contextless = method.context_guidance != 1.0
    hidden = (tokens.level == 0)[..., None] if contextless else None
    row = positive_row(network, canvas, tokens, prompts)
    positive = GuidanceBatch(
        row=row,
        timesteps=jnp.where(known, jnp.float32(method.known_level), RUNNING),
        hidden=None if hidden is None else jnp.zeros_like(hidden),
        noise=noise if contextless else None,
    )
    rows = [positive]
    if method.rows > 1 + contextless:
        rows.append(dataclasses.replace(positive, row=negative_row(network, row, negative)))
    if contextless:
        rows.append(dataclasses.replace(positive, timesteps=jnp.where(known, 1.0, RUNNING), hidden=hidden))
    return rows


def positive_row(network: Network, canvas: Canvas, tokens: CanvasTokens, prompts: Prompts) -> Row:
    """The row that is asked for: with the prompts, and with the conditions of the canvas."""
    row = dense_rows(tokens, prompts, start=canvas.start_position)
    row = with_conditions(row, canvas, network.spec.conditions, tokens, network.backbone.patch)
    return network.with_prompts(row, prompts.ids)


def negative_row(network: Network, row: Row, negative: Prompts) -> Row:
    """The row that guidance moves away from: without the conditions that are guided, and with the negative prompts."""
    clips = jnp.stack([jnp.zeros(len(negative.ids), bool), jnp.ones(len(negative.ids), bool)], axis=1)
    row = network.drop(row, clips)
    index = jnp.arange(negative.ids.shape[1], dtype=jnp.int32)[None]
    ids = (index < negative.length[:, None]).astype(jnp.int32)
    return network.with_prompts(dataclasses.replace(row, text=negative.ids, text_segment_ids=ids), negative.ids)


def stack_guidance(*parts: Array) -> Array:
    """[b ...], [b ...], ... -> [rb ...]: a video's rows lie side by side, so on the same devices of a mesh."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def split_guidance(x: Array, rows: int) -> list[Array]:
    """The inverse of `stack_guidance`: a part for each of a video's rows."""
    parts = x.reshape(-1, rows, *x.shape[1:])
    return [parts[:, i] for i in range(rows)]


def choose(batch: GuidanceBatch, rows: int, wanted: Sequence[int]) -> GuidanceBatch:
    """Some of each video's rows."""
    if len(wanted) == rows:
        return batch
    return jax.tree.map(lambda leaf: stack_guidance(*(split_guidance(leaf, rows)[i] for i in wanted)), batch)


def _on_mesh(batch: GuidanceBatch) -> GuidanceBatch:
    """The batch where the mesh in context wants it, with padding up to tokens that it divides.

    A video's own number of tokens seldom does, and tokens that do not divide are shared out by no device.
    """
    row = batch.row
    extra = -row.values.shape[1] % num_shards("tokens")

    def laid(x: Array, names: tuple[str | None, ...]) -> Array:
        return constrain(pad(x, extra) if "tokens" in names else x, names)

    return dataclasses.replace(
        batch,
        row=row.map_axes(laid),
    )


def pad(x: Array, extra: int) -> Array:
    """[b n ...] -> [b n+extra ...], with zeros."""
    return jnp.pad(x, ((0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2))) if extra else x
