"""Random canvases: which tokens of each clip are known in a training step, and at which noise level all of them are.

A model that is trained on them fills in any canvas (vdit.sampling): the first frame, the head or the tail of a video,
both ends, a masked region, or frames that are each at a level of their own (diffusion forcing; Chen et al. 2024).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vdit.diffusion import DiffusionConfig, draw_levels
from vdit.errors import ConfigError
from vdit.reprs import short_repr
from vdit.types import Array, Row

KINDS = ("none", "first", "head", "tail", "ends", "mask", "frames")
_BOX = (0.15, 0.5)  # half the sides of a masked box, as shares of the frame's
_DRIFT = 0.5  # how far it moves over a clip at most, as a share of the frame's sides


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class CanvasConfig:
    """Fractions of clips by what is given of them (relative: they need not add up to 1).

    none: nothing. first: the first latent frame. head, tail, ends: some latent frames at the start, the end, or both,
        always fewer than all. mask: a box that may move, or all but that box. frames: nothing, but each latent frame
        is at a noise level of its own. A clip too short for its kind is given the next simpler one.
    window: share of clips (of three latent frames or more) that lose their first latent frame, which alone stands for
        a single video frame: what a rollout's window looks like when it has slid on.
    context_dropout: fraction of clips whose given tokens are replaced by noise, for guidance on the context.
    context_noise: in half of the clips what is known is noised, to a level drawn from 0 to this one.
    """

    none: float = 1.0
    first: float = 0.0
    head: float = 0.0
    tail: float = 0.0
    ends: float = 0.0
    mask: float = 0.0
    frames: float = 0.0
    window: float = 0.0
    context_dropout: float = 0.1
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in KINDS:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"canvases.{name}={getattr(self, name)}: a fraction, give 0 or more")
        if not sum(self.fractions()) > 0:
            raise ConfigError(f"canvases has no share above 0: give some to one of {', '.join(KINDS)}")
        for name in ("window", "context_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"canvases.{name}={getattr(self, name)}: a probability, give 0 to 1")
        if not 0 <= self.context_noise < 1:
            raise ConfigError(f"canvases.context_noise={self.context_noise}: a noise level, give 0 or more and below 1")

    def fractions(self) -> tuple[float, ...]:
        """In the order of KINDS."""
        return tuple(getattr(self, name) for name in KINDS)

    @property
    def gives(self) -> bool:
        """Whether anything is ever given, so that a model learns to use tokens at level 0."""
        return any(getattr(self, name) for name in KINDS[1:])


# For a model of a user's own videos: nearly half of the clips from text alone, the others a bit of every task.
EVERY_TASK = CanvasConfig(
    none=0.45, first=0.12, head=0.13, tail=0.08, ends=0.08, mask=0.1, frames=0.04, window=0.2, context_noise=0.1
)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnCanvas:
    """row: as it was, but windows' first frames are padding, and frames may have been doubled.

    levels: float32 [b k], noise level of each frame of the row.
    known: bool [b n]; known tokens have no part in the loss.
    known_frames: bool [b k], frames of known tokens, at any noise level.
    """

    row: Row
    levels: Array
    known: Array
    known_frames: Array


def draw_canvases(key: Array, row: Row, config: CanvasConfig, diffusion: DiffusionConfig) -> DrawnCanvas:
    """Samples what is given of each clip of packed rows, and the noise levels. Traceable."""
    level_key, frame_key, kind_key, window_key, length_key, mask_key, context_key = jax.random.split(key, 7)
    levels = draw_levels(level_key, row.frame_segment_ids, diffusion)
    if not config.gives and not config.window:
        nothing = jnp.zeros(row.segment_ids.shape, bool), jnp.zeros(row.frame_segment_ids.shape, bool)
        return DrawnCanvas(row=row, levels=levels, known=nothing[0], known_frames=nothing[1])
    if config.window:
        row = _without_first(window_key, row, config.window)
    clips = _Clips.of(row)
    kind = _kinds(kind_key, clips, config)
    if config.frames:
        own = draw_levels(frame_key, row.frame_segment_ids, diffusion, per_frame=True)
        levels = jnp.where(clips.at_frames(kind) == KINDS.index("frames"), own, levels)
    known_frames = _known_frames(length_key, clips, kind)
    known = jnp.take_along_axis(known_frames, row.frame_index, axis=1)
    context = clips.at_frames(_context_levels(context_key, kind.shape, config))
    if not config.mask:
        levels = jnp.where(known_frames, context, levels)
        return DrawnCanvas(row=row, levels=levels, known=known & (row.segment_ids > 0), known_frames=known_frames)
    known = known | (_masked(mask_key, row, clips) & (clips.at_tokens(kind) == KINDS.index("mask")))
    known = known & (row.segment_ids > 0)
    # A frame that is known in part needs two levels: each frame gets a second one, for what is known.
    count = row.frame_segment_ids.shape[1]
    twice = lambda x: jnp.concatenate([x, x], axis=1)  # noqa: E731
    row = dataclasses.replace(
        row,
        frame_index=row.frame_index + count * known,
        frame_segment_ids=twice(row.frame_segment_ids),
        cond=row.cond | {name: twice(row.cond[name]) for name, axis in row.cond_axes if axis == "frame"},
    )
    known_frames = jnp.concatenate([jnp.zeros_like(known_frames), jnp.ones_like(known_frames)], axis=1)
    levels = jnp.concatenate([levels, context], axis=1)
    return DrawnCanvas(row=row, levels=levels, known=known, known_frames=known_frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Clips:
    """Clips of rows; entry 0 of [b s+1] is padding's.

    count: int [b s+1], frames of tokens of each. frame: int [b k], of each frame inside its clip.
    """

    row: Row
    count: Array
    frame: Array

    @classmethod
    def of(cls, row: Row) -> _Clips:
        ids = jnp.arange(row.max_clips + 1)
        own = (row.frame_segment_ids[:, :, None] == ids) & (ids > 0)
        rank = jnp.take_along_axis(jnp.cumsum(own, axis=1), row.frame_segment_ids[..., None], axis=2)[..., 0]
        return cls(row=row, count=own.sum(1), frame=rank - 1)

    def at_frames(self, x: Array) -> Array:
        """Of clips [b s+1] -> of frames [b k]."""
        return jnp.take_along_axis(x, self.row.frame_segment_ids, axis=1)

    def at_tokens(self, x: Array) -> Array:
        """Of clips [b s+1] -> of tokens [b n]."""
        return jnp.take_along_axis(x, self.row.segment_ids, axis=1)


def _without_first(key: Array, row: Row, prob: float) -> Row:
    """Makes the first latent frame of each clip padding with that probability. Other frames keep their positions."""
    clips = _Clips.of(row)
    chosen = jax.random.bernoulli(key, prob, clips.count.shape) & (clips.count >= 3)
    first = clips.at_frames(chosen) & (clips.frame == 0)
    gone = jnp.take_along_axis(first, row.frame_index, axis=1) & (row.segment_ids > 0)
    return dataclasses.replace(
        row,
        segment_ids=jnp.where(gone, 0, row.segment_ids),
        frame_index=jnp.where(gone, 0, row.frame_index),
        frame_segment_ids=jnp.where(first, 0, row.frame_segment_ids),
    )


def _kinds(key: Array, clips: _Clips, config: CanvasConfig) -> Array:
    """The kind of each clip: int [b s+1]."""
    kind = jax.random.categorical(key, jnp.log(jnp.asarray(config.fractions(), jnp.float32)), shape=clips.count.shape)
    none, head, ends = (KINDS.index(name) for name in ("none", "head", "ends"))
    kind = jnp.where((kind == ends) & (clips.count < 3), head, kind)
    whole = (kind == KINDS.index("mask")) | (kind == none)
    return jnp.where((clips.count < 2) & ~whole, none, kind)


def _known_frames(key: Array, clips: _Clips, kind: Array) -> Array:
    """Which frames are known whole: bool [b k]."""
    first, head, tail, ends = (KINDS.index(name) for name in ("first", "head", "tail", "ends"))
    u, v = jax.random.uniform(key, (2, *kind.shape))
    count = clips.count
    # 1..count-1 frames; with both ends 1..count-2 in front, and then 1..count-1-before behind.
    one = 1 + jnp.floor(u * (count - 1)).astype(jnp.int32)
    before = 1 + jnp.floor(u * (count - 2)).astype(jnp.int32)
    behind = 1 + jnp.floor(v * (count - 1 - before)).astype(jnp.int32)
    start = jnp.select([kind == first, kind == head, kind == ends], [1, one, before], 0)
    end = jnp.select([kind == tail, kind == ends], [one, behind], 0)
    inside = (clips.frame < clips.at_frames(start)) | (clips.frame >= clips.at_frames(count - end))
    return inside & (clips.row.frame_segment_ids > 0)


def _masked(key: Array, row: Row, clips: _Clips) -> Array:
    """Which tokens would be known if their clip were masked: bool [b n]."""
    place_key, size_key, drift_key, still_key, side_key = jax.random.split(key, 5)
    shape = (*clips.count.shape, 2)
    middle = jax.random.uniform(place_key, shape)
    half = jax.random.uniform(size_key, shape, minval=_BOX[0], maxval=_BOX[1])
    drift = jax.random.uniform(drift_key, shape, minval=-_DRIFT, maxval=_DRIFT)
    drift = drift * jax.random.bernoulli(still_key, 0.5, (*clips.count.shape, 1))
    largest = jax.vmap(lambda x, c: jax.ops.segment_max(x, c, num_segments=shape[1]))(row.position, row.segment_ids)
    of_tokens = lambda x: jnp.take_along_axis(x, row.segment_ids[..., None], axis=1)  # noqa: E731
    fraction = (row.position + 0.5) / jnp.maximum(of_tokens(largest) + 1, 1)
    at = of_tokens(middle) + of_tokens(drift) * (fraction[..., :1] - 0.5)
    inside = jnp.all(jnp.abs(fraction[..., 1:] - at) < of_tokens(half), axis=-1)
    # Half of them know the box and lack the rest, as pictures do that are to grow at their edges.
    return inside == clips.at_tokens(jax.random.bernoulli(side_key, 0.5, clips.count.shape))


def _context_levels(key: Array, shape: tuple[int, ...], config: CanvasConfig) -> Array:
    """The level of what is known, for each clip: float32 [b s+1]."""
    drop_key, some_key, level_key = jax.random.split(key, 3)
    level = config.context_noise * jax.random.uniform(level_key, shape) * jax.random.bernoulli(some_key, 0.5, shape)
    return jnp.where(jax.random.bernoulli(drop_key, config.context_dropout, shape), 1.0, level)
