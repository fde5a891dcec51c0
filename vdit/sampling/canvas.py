"""The canvas: latents, the noise level that each of them begins at, and rows of tokens made from both.

Every way of making or editing a video builds a canvas; one function (vdit.sampling.denoise) samples it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vdit.data.patches import Patch, grid_position, patchify, token_grid
from vdit.errors import ConfigError, ShapeError
from vdit.models.backbone import Backbone
from vdit.models.conditioner import Conditioner
from vdit.models.network import Network
from vdit.models.vae.config import VAEConfig
from vdit.nn.embedding import MAX_POSITION
from vdit.reprs import short_repr
from vdit.types import Array, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouping:
    """`first` video frames, then `step` at a time: those of each frame of tokens.

    A canvas, and a known head of it, is `first` + a multiple of `step` frames; a known tail, and what lies between
    known ends, a multiple of `step`.
    """

    first: int
    step: int

    @classmethod
    def of(cls, vae: VAEConfig, dit: Backbone) -> Grouping:
        """The first latent frame is one video frame, each other one temporal_stride; a token is patch[0] of them."""
        stride, patch = vae.temporal_stride, dit.patch[0]
        return cls(first=1 + (patch - 1) * stride, step=patch * stride)

    def head(self, most: int) -> int:
        """The longest canvas or head of at most so many frames; 0 if there is none."""
        return 0 if most < self.first else self.first + (most - self.first) // self.step * self.step

    def tail(self, most: int) -> int:
        """The longest tail, or passage, of at most so many frames; 0 if there is none."""
        return max(0, most) // self.step * self.step

    def passage(self, least: int) -> int:
        """The shortest multiple of `step` from `least` up."""
        return -(-least // self.step) * self.step

    def canvas(self, least: int) -> int:
        """The shortest canvas of at least so many frames."""
        return self.first + self.passage(max(0, least - self.first))

    def index(self, frames: int) -> np.ndarray:
        """int [frames]: the group that each frame of a canvas is in."""
        return np.maximum(0, -(-(np.arange(frames) - self.first + 1) // self.step))

    def check_passage(self, name: str, frames: int) -> None:
        """ShapeError unless `frames` can lie between known ends."""
        if frames < 1 or frames % self.step:
            low = max(self.step, self.tail(frames))
            near = f"{low} or {low + self.step}"
            raise ShapeError(f"{name}={frames} must be a multiple of {self.step}, made at once: use {near}")


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Canvas:
    """Videos to be filled in, all of one size.

    latents: float32 [b t h w c], normalised; where `level` is 1 they may hold any finite values.
    level: float32 [b t h w], or [b t 1 1] where whole frames are alike: the noise level that each latent begins at.
        0: it is known, and comes back unchanged. 1: nothing is known of it. Between: it follows `latents`, noised to
        the running level, down to its own, and is free from there on (SDEdit, Meng et al. 2022; a level for each
        place as in differential diffusion, Levin and Fried 2023).
    cond: name -> values of a condition: [b ...] of the clip, [b t/pt f] of each frame of tokens, [b t h w c] of each
        latent, [b l e] of the clip's sequence. Conditions that are optional may be missing.
    valid: bool [b t/pt], mask of the frames of tokens in use (None: all). Others are padding and are masked out of
        attention, so one compiled size serves shorter videos.
    start_position: int32 [b], the position in time of the first frame of tokens; None for 0. A clip's latent frame 0
        stands for one video frame, the others for several: a window that has slid on holds only such others, and
        begins at 1. Below 0 where the first frames are not valid.
    """

    latents: Array
    level: Array
    cond: dict[str, Array] = dataclasses.field(default_factory=dict)
    valid: Array | None = None
    start_position: Array | None = None


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Tokenised captions, one a clip.

    ids: int32 [b m], padded with anything; length: int32 [b], at least 1 (the empty prompt is one token).
    """

    ids: Array
    length: Array


def blank(batch: int, latent_shape: tuple[int, int, int, int]) -> Canvas:
    """A canvas of which nothing is known: `batch` clips of latents (t, h, w, c), without conditions."""
    level = jnp.ones((batch, latent_shape[0], 1, 1), jnp.float32)
    return Canvas(latents=jnp.zeros((batch, *latent_shape), jnp.float32), level=level)


def tokenize(tokenizer, prompts: list[str], *, length: int) -> Prompts:
    """Prompts as token ids of one length.

    Args:
        tokenizer: of the model.
        prompts: texts; longer ones are cut.
        length: tokens of each.

    Returns:
        The prompts, padded.
    """
    ids = np.zeros((len(prompts), length), np.int32)
    counts = np.zeros(len(prompts), np.int32)
    for i, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt)[:length]
        ids[i, : len(tokens)] = tokens
        counts[i] = len(tokens)
    return Prompts(ids=ids, length=counts)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class CanvasTokens:
    """A canvas as tokens.

    values: float32 [b n p]. level: float32 [b n]. frame_index: int32 [b n], 0..k-1. known: bool [b k], frames of known
    tokens. doubled: whether each frame has two entries of k. grid: tokens along t, h, w. valid: bool [b k], mask of
    the frames of tokens in use (None: all).
    """

    values: Array
    level: Array
    frame_index: Array
    known: Array
    doubled: bool
    grid: tuple[int, int, int]
    valid: Array | None = None


def canvas_tokens(canvas: Canvas, patch: tuple[int, int, int]) -> CanvasTokens:
    """Tokens of a canvas. A token's level is the largest of its latents: it is known if all of it is.

    Each frame of tokens has one level. Where frames may be known in part, each has two: k = 2t, and its known tokens
    are in the second.
    """
    grid = token_grid(canvas.latents.shape, patch)
    level, valid = canvas.level.astype(jnp.float32), canvas.valid
    by_frame = level.shape[2:] == (1, 1)
    if by_frame:
        level = jnp.broadcast_to(level, (*level.shape[:2], patch[1] * grid[1], patch[2] * grid[2]))
    level = patchify(level[..., None], patch).max(-1)
    frame_index = jnp.broadcast_to(jnp.asarray(grid_position(grid)[:, 0]), level.shape)
    if by_frame:
        known = level[:, :: grid[1] * grid[2]] == 0
    else:
        frame_index = frame_index + grid[0] * (level == 0)
        known = jnp.broadcast_to(jnp.arange(2 * grid[0]) >= grid[0], (level.shape[0], 2 * grid[0]))
        valid = None if valid is None else jnp.concatenate([valid, valid], axis=1)
    values = patchify(canvas.latents, patch)
    return CanvasTokens(
        values=values, level=level, frame_index=frame_index, known=known, doubled=not by_frame, grid=grid, valid=valid
    )


def dense_rows(tokens: CanvasTokens, prompts: Prompts, *, start: Array | None = None) -> Row:
    """One clip a row, without conditions.

    Args:
        start: int32 [b], position in time of the first frame of tokens, at most 1; None for 0.
    """
    b, n, _ = tokens.values.shape
    if (start is not None) + max(tokens.grid) > MAX_POSITION:
        raise ShapeError(f"a grid of {tokens.grid} tokens is too large: positions go to {MAX_POSITION} along each axis")
    position = jnp.asarray(grid_position(tokens.grid))
    if start is not None:  # below 0 are frames that are not valid
        start = jnp.asarray(start, jnp.int32)[:, None, None] * jnp.asarray((1, 0, 0), jnp.int32)
        position = jnp.maximum(position[None] + start, 0)
    index = jnp.arange(prompts.ids.shape[1], dtype=jnp.int32)[None]
    segment_ids, frame_segment_ids = jnp.ones((b, n), jnp.int32), jnp.ones(tokens.known.shape, jnp.int32)
    if tokens.valid is not None:
        frame_segment_ids = tokens.valid.astype(jnp.int32)
        segment_ids = jnp.take_along_axis(frame_segment_ids, tokens.frame_index, axis=1)
    return Row(
        values=tokens.values,
        position=jnp.broadcast_to(position, (b, n, 3)),
        segment_ids=segment_ids,
        frame_index=tokens.frame_index,
        frame_segment_ids=frame_segment_ids,
        text=prompts.ids,
        text_segment_ids=(index < prompts.length[:, None]).astype(jnp.int32),
        text_position=jnp.broadcast_to(index, prompts.ids.shape),
    )


def with_conditions(
    row: Row, canvas: Canvas, conditions: tuple[Conditioner, ...], tokens: CanvasTokens, patch: Patch
) -> Row:
    """The row of a canvas with those conditions that the canvas has.

    Args:
        row: of `dense_rows`.
        conditions: those that the model is told. What others the canvas has is left out.
        tokens: of the canvas.
        patch: latent frames, rows and columns of a token.
    """
    for condition in conditions:
        values = canvas.cond.get(condition.name)
        if values is None:
            continue
        values = jnp.asarray(values, condition.dtype)
        if condition.axis == "token":
            values = patchify(values, patch)
        elif condition.axis == "frame":
            values = jnp.concatenate([values, values], axis=1) if tokens.doubled else values
        else:
            values = values[:, None]
        row = row.with_cond(condition.name, values, condition.axis)
    return row


def check_canvas_conditions(
    network: Network, conditions: Mapping[str, Array], count: int, latent_shape: tuple[int, int, int, int]
) -> dict[str, np.ndarray]:
    """Conditions that a user gives for `count` videos, checked before anything is compiled.

    Args:
        network: whose conditions they must be.
        conditions: name -> values, [count ...] or [1 ...] for all videos (Canvas.cond).
        count: of videos.
        latent_shape: (t, h, w, c) of the latents of one video.

    Returns:
        The same as arrays [count ...].

    Raises:
        ConfigError: the model has no such condition.
        ShapeError: the values have another shape than the model takes.
    """
    known, found = {c.name: c for c in network.spec.conditions}, {}
    patch, (t, h, w, _) = network.backbone.patch, latent_shape
    for name, values in conditions.items():
        if name not in known:
            raise ConfigError(f"condition {name!r}: this model is told {', '.join(known) or 'none'}")
        condition, values = known[name], np.asarray(values)
        shape = tuple(condition.shape)
        wanted = {"token": (t, h, w, *shape), "frame": (t // patch[0], *shape)}.get(condition.axis, shape)
        free = 1 if condition.axis == "sequence" else 0
        if len(values) not in (1, count) or values.shape[1 + free :] != wanted[free:]:
            raise ShapeError(f"condition {name!r} of shape {values.shape}: give {(count, *wanted)}, or 1 for {count}")
        found[name] = np.broadcast_to(values, (count, *values.shape[1:]))
    return found
