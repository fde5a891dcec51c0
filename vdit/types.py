"""The shapes that travel: read first.

Axis names used in every signature:
    b batch   t frames or latent frames   h, w height and width   c channels
    n tokens of a packed row   m text tokens of a packed row   p values of one token   d model width
    k frames of tokens of a row, each with a noise level of its own    s clips of a row
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from vdit.reprs import short_repr

Array = jax.Array | np.ndarray
PyTree = Any
Axis = Literal["clip", "frame", "token", "sequence", "text"]


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A batch of packed rows of tokens: what a backbone sees.

    Every clip of a row keeps its own coordinates; attention never crosses clips. A dense batch of
    videos is the special case of one clip a row.

    values: float32 [b n p], flattened spacetime patches of latents (0 on padding).
    position: int32 [b n 3], (t, h, w) of the token's patch inside its own clip, each from 0.
    segment_ids: int32 [b n], which clip of the row, from 1; 0 marks padding.
    frame_index: int32 [b n], index of the token's frame, and so of its noise level, in arrays [b k]. A frame of
        tokens of a clip has one level; the frames of one row are counted from 0. Padding uses 0.
    frame_segment_ids: int32 [b k], the clip that a frame of tokens belongs to; 0 where it is unused.
    text: int32 [b m], token ids of the captions, one after the other.
    text_segment_ids: int32 [b m], the clip that a text token describes; 0 marks padding. Each clip has at
        least one text token (the first, which alone stands for the empty prompt).
    text_position: int32 [b m], index of the token inside its own caption, from 0.
    cond: name -> values of a condition (vdit/models/conditioner.py): [b s ...] of clips and of their sequences,
        [b k ...] of frames, [b n ...] of tokens, [b m ...] of text tokens; clip i has entry i - 1 of s. Padding is 0.
    cond_axes: (name, axis) of each entry of cond.

    AXES: the logical axes of each field (vdit/dist/rules.py).
    """

    AXES: ClassVar[dict[str, tuple[str | None, ...]]] = {
        "values": ("batch", "tokens", "patch"),
        "position": ("batch", "tokens", None),
        "segment_ids": ("batch", "tokens"),
        "frame_index": ("batch", "tokens"),
        "frame_segment_ids": ("batch", None),
        "text": ("batch", "text_tokens"),
        "text_segment_ids": ("batch", "text_tokens"),
        "text_position": ("batch", "text_tokens"),
    }

    values: Array
    position: Array
    segment_ids: Array
    frame_index: Array
    frame_segment_ids: Array
    text: Array
    text_segment_ids: Array
    text_position: Array
    cond: dict[str, Array] = dataclasses.field(default_factory=dict)
    cond_axes: tuple[tuple[str, Axis], ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def max_clips(self) -> int:
        """s: how many clips a row has room for. Each has a frame at least, so there are no more than k."""
        of_clips = [name for name, axis in self.cond_axes if axis in ("clip", "sequence")]
        return self.cond[of_clips[0]].shape[1] if of_clips else self.frame_segment_ids.shape[1]

    def with_cond(self, name: str, values: Array, axis: Axis) -> Row:
        """The row with this condition, in the place of another of the same name."""
        axes = {**dict(self.cond_axes), name: axis}
        return dataclasses.replace(self, cond={**self.cond, name: values}, cond_axes=tuple(sorted(axes.items())))

    def map_axes(self, function: Callable[[Array, tuple[str | None, ...]], Any]) -> Row:
        """A row of function(array, its logical axes) of every array. Arrays may have pieces [a b/a ...] in front."""
        fields = {name: function(getattr(self, name), names) for name, names in self.AXES.items()}
        cond, pieces = {}, self.values.ndim - 3
        for name, axis in self.cond_axes:
            values = self.cond[name]
            second = {"token": "tokens", "text": "text_tokens"}.get(axis)
            cond[name] = function(values, ("batch", second, *[None] * (values.ndim - 2 - pieces)))
        return dataclasses.replace(self, **fields, cond=cond)
