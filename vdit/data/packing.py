"""Packing clips of any size into rows of one shape.

A row is chosen by looking ahead: the clip that has waited longest always goes in, and the rest of the
row is filled by a subset of the waiting clips whose sizes add up to the row exactly, or as nearly as
they can (a subset-sum table over the waiting clips, oldest first, until a subset fills the row). Of the
subsets with equal tokens, the one that spends least of the other budgets (text, noise levels, clips) is
kept: it has the fewest and largest clips, so small ones remain to fill later rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vdit.data.config import DataConfig
from vdit.data.patches import Patch, grid_position
from vdit.errors import DataError
from vdit.models.conditioner import Conditioner
from vdit.reprs import short_repr
from vdit.types import Axis, Row


class CondShape(NamedTuple):
    """A condition of a row: its name, what it belongs to, the shape and type of one value."""

    name: str
    axis: Axis
    features: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShape:
    """The shape of one row.

    tokens: n, tokens of a row. text: m, text tokens. slots: k, noise levels (one for each latent frame of each clip).
    clips: s, clips. conditions: what rows carry beside.
    """

    tokens: int
    text: int
    slots: int
    clips: int
    conditions: tuple[CondShape, ...] = ()

    def each(self) -> tuple[int, int, int, int]:
        """The four limits, in the order of PackItem.needs."""
        return self.tokens, self.text, self.slots, self.clips

    @staticmethod
    def of(config: DataConfig, conditions: Sequence[Conditioner] = (), patch: Patch = (1, 1, 1)) -> RowShape:
        shapes = tuple(CondShape(c.name, c.axis, c.features(patch), c.dtype) for c in conditions)
        return RowShape(tokens=config.row_tokens, text=config.max_text_per_row,
                         slots=config.max_frames_per_row, clips=config.max_clips_per_row, conditions=shapes)

    def count(self, axis: Axis) -> int:
        """How many values a condition of this axis has in a row."""
        return {"frame": self.slots, "token": self.tokens}.get(axis, self.clips)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackItem:
    """One clip, ready to be packed.

    values: float [n p], patchified latents, n = the product of grid.
    grid: tokens along t, h, w.
    text: int32 [m], token ids of the caption, at least one.
    cond: name -> values of a condition: [...] of the clip, [k ...] of frames of tokens (k = grid[0]), [n ...] of
        tokens, [l e] of a sequence. Names and axes are those of the limits.
    place: the clip's place in the order of reading; from it the clip can be read again.
    name: for messages.
    """

    values: np.ndarray
    grid: tuple[int, int, int]
    text: np.ndarray
    cond: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    place: int = 0
    name: str = ""

    @property
    def needs(self) -> tuple[int, int, int, int]:
        """What the clip takes of a row: tokens, text tokens, noise levels, clips."""
        return len(self.values), len(self.text), self.grid[0], 1


def check_fits(clip: PackItem, limits: RowShape) -> None:
    """Raises DataError when no row can hold the clip."""
    tokens, text, slots, _ = clip.needs
    t, h, w = clip.grid
    for need, limit, what, field in (
        (tokens, limits.tokens, f"{tokens} tokens ({t} x {h} x {w})", "row_tokens"),
        (text, limits.text, f"{text} text tokens", "max_text_per_row"),
        (slots, limits.slots, f"{slots} noise levels (latent frames)", "max_frames_per_row"),
    ):
        if need > limit:
            raise DataError(f"clip {clip.name!r} has {what}, a row holds {limit}: raise data.{field} to "
                            f"{need} or more, or draw smaller clips (data.pixel_budgets, data.frames)")


def choose(needs: np.ndarray, limits: Sequence[int]) -> list[int]:
    """The clips of the next row.

    needs: int [i 4], tokens, text, slots, clips of each waiting clip, the longest waiting first.
    limits: the row's [4].
    Returns indices in rising order; the first is always 0.
    """
    row = limits[0]
    rest = np.asarray(limits[1:], np.int32)[:, None]
    weight = (1.0 / rest).astype(np.float32)
    # spent[:, j]: budgets spent by the best subset found so far that has exactly j tokens.
    spent = np.zeros((3, row + 1), np.int32)
    cost = np.full(row + 1, np.inf, np.float32)
    first = int(needs[0, 0])
    spent[:, first] = needs[0, 1:]
    cost[first] = (needs[0, 1:] * weight[:, 0]).max()
    taken: list[np.ndarray | None] = [None]
    for tokens, *others in needs[1:].tolist():
        if tokens + first > row:
            taken.append(None)
            continue
        total = spent[:, : row + 1 - tokens] + np.asarray(others, np.int32)[:, None]
        price = (total * weight).max(axis=0)
        price[np.isinf(cost[: row + 1 - tokens]) | (price > 1 + 1e-6)] = np.inf
        better = price < cost[tokens:]
        np.copyto(cost[tokens:], price, where=better)
        np.copyto(spent[:, tokens:], total, where=better)
        taken.append(better)
        if np.isfinite(cost[row]):
            break  # full: clips that came later can wait, and may be needed by later rows
    at = int(np.flatnonzero(np.isfinite(cost))[-1])
    picked = []
    for i in range(len(taken) - 1, 0, -1):
        tokens = int(needs[i, 0])
        if taken[i] is not None and at >= tokens and taken[i][at - tokens]:
            picked.append(i)
            at -= tokens
    return [0, *reversed(picked)]


def empty_rows(count: int, width: int, limits: RowShape) -> Row:
    """`count` rows of padding for tokens of `width` values, with the conditions of the limits."""
    n, m = limits.tokens, limits.text

    def ids(*shape: int) -> np.ndarray:
        return np.zeros((count, *shape), np.int32)

    cond = {c.name: np.zeros((count, limits.count(c.axis), *c.features), c.dtype) for c in limits.conditions}
    return Row(values=np.zeros((count, n, width), np.float32), position=ids(n, 3), segment_ids=ids(n),
               frame_index=ids(n), frame_segment_ids=ids(limits.slots), text=ids(m), text_segment_ids=ids(m),
               text_position=ids(m), cond=cond, cond_axes=tuple(sorted((c.name, c.axis) for c in limits.conditions)))


def build_rows(groups: Sequence[Sequence[PackItem]], limits: RowShape) -> Row:
    """Packs clips into rows of one shape.

    Args:
        groups: the clips of each row; groups may be empty, but not all of them.
        limits: the shape of a row.

    Returns:
        Rows [b ...], one for each group.

    Raises:
        DataError: a group does not fit, or its clips' conditions are not those of the shape.
    """
    first = next(clip for group in groups for clip in group)
    rows = empty_rows(len(groups), first.values.shape[-1], limits)
    for b, group in enumerate(groups):
        n = m = k = 0
        for number, clip in enumerate(group, start=1):
            tokens, text, slots, _ = clip.needs
            total = RowShape(tokens=n + tokens, text=m + text, slots=k + slots, clips=number)
            if any(have > most for have, most in zip(total.each(), limits.each())):
                raise DataError(f"clip {clip.name!r} overflows row {b}: {total} against {limits}")
            position = grid_position(clip.grid)
            rows.values[b, n : n + tokens] = clip.values
            rows.position[b, n : n + tokens] = position
            rows.segment_ids[b, n : n + tokens] = number
            rows.frame_index[b, n : n + tokens] = position[:, 0] + k
            rows.frame_segment_ids[b, k : k + slots] = number
            rows.text[b, m : m + text] = clip.text
            rows.text_segment_ids[b, m : m + text] = number
            rows.text_position[b, m : m + text] = np.arange(text)
            for condition in limits.conditions:
                values = _cond_values(clip, condition)
                if condition.axis == "token":
                    rows.cond[condition.name][b, n : n + tokens] = values
                elif condition.axis == "frame":
                    rows.cond[condition.name][b, k : k + slots] = values
                else:
                    rows.cond[condition.name][b, number - 1] = values
            n, m, k = n + tokens, m + text, k + slots
    return rows


def _cond_values(clip: PackItem, condition: CondShape) -> np.ndarray:
    """A clip's values of a condition, in the shape that a row takes."""
    lead = {"token": (len(clip.values),), "frame": (clip.grid[0],)}.get(condition.axis, ())
    found = None if condition.name not in clip.cond else np.shape(clip.cond[condition.name])
    if found != (*lead, *condition.features):
        raise DataError(f"clip {clip.name!r} has the condition {condition.name!r} of shape {found}, rows take "
                        f"{(*lead, *condition.features)}: all clips of a batch must have it so")
    return clip.cond[condition.name]
