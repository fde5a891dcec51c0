"""Conditions: what a model takes besides noisy latents and their noise level.

A condition is declared once, by a `Conditioner`. Its values travel in `Row.cond` under its name. Reading, storing with
latents, packing, padding, sharding, canvases, dropout and the negative rows of guidance all go by the declaration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from vdit.errors import DataError, ShapeError
from vdit.types import Array, Axis, Row

Patch = tuple[int, int, int]


class Conditioner(Protocol):
    """One condition: how it is read from data, and how a model takes it. Inherit from it to get the defaults.

    Implementations are frozen keyword-only dataclasses, registered with `@register("conditioner", "my_name")`.

    Attributes:
        name: the key in `Row.cond`, in canvases, and in stored latents.
        axis: what one value belongs to. It decides the shape in a row, and where the embedding goes:

            ========== ================= =================================== ==================================
            axis       in a row          `read` gives, for one clip          `embed` gives
            ========== ================= =================================== ==================================
            "clip"     [b s ...]         [...]                               [b s d], added to the modulation
            "frame"    [b k f]           [t a], one for each video frame     [b k d], added to the modulation
            "token"    [b n p]           [t h w c], one for each latent      [b n c], channels beside the latents
            "sequence" [b s l e]         [l e], l tokens for each clip       [b s l d], tokens to attend to
            "text"     [b m e]           [m e], one for each text token      (the text itself, see TextCondition)
            ========== ================= =================================== ==================================
        shape: the shape of one value: [...] of a clip, (f,) of a frame of tokens, (c,) of a latent, (l, e) of a clip's
            sequence. A frame of tokens stands for `patch[0] * stride` video frames, so f is that many times a.
        dropout: probability with which the condition of a clip is replaced by `null` in training, 0 to 1.
    """

    name: str
    axis: Axis
    shape: tuple[int, ...]
    dropout: float

    @property
    def dtype(self) -> str:
        """The type of the values in a row: "float32" or "int32"."""
        return "float32"

    @property
    def guided(self) -> bool:
        """Whether the negative rows of classifier-free guidance are without this condition."""
        return self.dropout > 0 or self.prompted

    @property
    def prompted(self) -> bool:
        """Whether a prompt says it: the text, or the class label of models without text."""
        return False

    @property
    def optional(self) -> bool:
        """Whether a model can do without: then a clip that lacks the condition has `null` in its place."""
        return True

    @property
    def field(self) -> str:
        """The key of a sample that holds what `read` gives."""
        return self.name

    def read(self, sample: Mapping[str, Any]) -> np.ndarray:
        """The values of one clip, from what a data source gives.

        Called where videos are cut into clips; what it returns is stored with the clip's latents. A sample that holds
        `field` already, because it was stored, is not read again.

        Args:
            sample: "id", "captions", "fps", "video" uint8 [t h w 3], and "view" (vdit.data.ClipView), which
                says which part of the source's video the clip is: times, crop and mirror image.

        Returns:
            An array of the shape that `axis` asks for.

        Raises:
            DataError: the clip has no such condition.
        """
        if self.field in sample:
            return np.asarray(sample[self.field])
        raise DataError(f"clip {sample.get('id', '')!r} has no {self.field!r}, which the condition {self.name!r} needs")

    def features(self, patch: Patch) -> tuple[int, ...]:
        """The shape of one entry of a row: `shape`, or of a token the values of all latents of its patch."""
        return (math.prod(patch) * self.shape[-1],) if self.axis == "token" else tuple(self.shape)

    def null(self, values: Array) -> Array:
        """Values of the same shape that stand for "no such condition"."""
        return jnp.zeros_like(values)

    def embed(self, values: Array, width: int) -> Array:
        """The embedding that a model takes, made with Flax modules inside the model's own `@nn.compact` method.

        Args:
            values: as in a row (see `axis`).
            width: d, the width of the model.

        Returns:
            float array of the shape that `axis` asks for. Name its modules after the condition, so that parameters
            of several conditions do not meet.
        """
        ...

    def drop(self, row: Row, clips: Array) -> Row:
        """The row without this condition in some of its clips.

        Args:
            row: as it is.
            clips: bool [b s+1], True for clips that lose the condition; entry 0 is of padding.
        """
        if self.name not in row.cond:
            return row
        values = row.cond[self.name]
        if self.axis in ("clip", "sequence"):
            dropped = clips[:, 1:]
        else:
            dropped = jnp.take_along_axis(clips, row.frame_segment_ids if self.axis == "frame" else row.segment_ids, 1)
        dropped = dropped.reshape(*dropped.shape, *[1] * (values.ndim - 2))
        return row.with_cond(self.name, jnp.where(dropped, self.null(values).astype(values.dtype), values), self.axis)


def check_values(conditioner: Conditioner, values: Array, patch: Patch) -> None:
    """Raises ShapeError unless the values of a row have the shape that the conditioner declares.

    Args:
        conditioner: the declaration.
        values: as in `Row.cond`.
        patch: latent frames, rows and columns of a token.
    """
    wanted, found = conditioner.features(patch), tuple(values.shape[2:])
    free = 1 if conditioner.axis == "sequence" else 0  # how long a sequence is may differ from call to call
    if len(found) != len(wanted) or found[free:] != wanted[free:]:
        raise ShapeError(
            f"condition {conditioner.name!r} has values of shape {found} for each {conditioner.axis}, its conditioner "
            f"declares {wanted}: pass them so, or change its shape"
        )


def null_values(conditioner: Conditioner, count: tuple[int, int], patch: Patch) -> Array:
    """`null` for [b, entries] of a row: an array [b entries ...]."""
    zeros = jnp.zeros((*count, *conditioner.features(patch)), conditioner.dtype)
    return conditioner.null(zeros).astype(conditioner.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The embeddings of all conditions of a row, by where they go.

    Attributes:
        modulation: float [b k d], the sum of those of clips and frames; None without any.
        channels: float [b n c], those of tokens side by side; None without any.
        sequences: name -> (tokens [b m d], segment ids int32 [b m]).
    """

    modulation: Array | None = None
    channels: Array | None = None
    sequences: Mapping[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)


def embed_conditions(conditions: tuple[Conditioner, ...], row: Row, width: int, patch: Patch) -> Embeddings:
    """Embeds every condition of a row. To be called inside a Flax module's `@nn.compact` method.

    Args:
        conditions: those that the model knows. Entries of `row.cond` that none of them names are left alone.
        row: with an entry of `cond` for each of them; an optional condition that is missing is `null`.
        width: d, the width of the model.
        patch: latent frames, rows and columns of a token.

    Returns:
        The embeddings, by where they go: modulation, channels, sequences.

    Raises:
        ShapeError: a condition that is not optional is missing, or has another shape than declared.
    """
    modulation, channels, sequences = None, [], {}
    for condition in conditions:
        values = _values(condition, row, patch)
        made = condition.embed(values, width)
        if condition.axis == "token":
            channels.append(made)
        elif condition.axis == "sequence":
            b, s, length = made.shape[:3]
            ids = jnp.broadcast_to(jnp.repeat(jnp.arange(1, s + 1, dtype=jnp.int32), length), (b, s * length))
            sequences[condition.name] = made.reshape(b, s * length, -1), ids
        else:
            of_frames = made if condition.axis == "frame" else clips_to_frames(made, row.frame_segment_ids)
            modulation = of_frames if modulation is None else modulation + of_frames
    return Embeddings(
        modulation=modulation, channels=jnp.concatenate(channels, -1) if channels else None, sequences=sequences
    )


def clips_to_frames(x: Array, frame_segment_ids: Array) -> Array:
    """Of clips [b s d], int [b k] -> of frames [b k d]; frames of padding get zeros."""
    padded = jnp.pad(x, ((0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)))
    return jnp.take_along_axis(padded, frame_segment_ids[..., None], axis=1)


def _values(condition: Conditioner, row: Row, patch: Patch) -> Array:
    if condition.name in row.cond:
        check_values(condition, row.cond[condition.name], patch)
        return row.cond[condition.name]
    if not condition.optional:
        raise ShapeError(f"the model needs the condition {condition.name!r}, which the row lacks: give it")
    return null_values(condition, entries(condition.axis, row), patch)


def entries(axis: Axis, row: Row) -> tuple[int, int]:
    """(b, how many values of a condition of this axis a row has)."""
    counts = {"frame": row.frame_segment_ids, "token": row.segment_ids, "text": row.text_segment_ids}
    count = counts[axis].shape[1] if axis in counts else row.max_clips
    return row.segment_ids.shape[0], count
