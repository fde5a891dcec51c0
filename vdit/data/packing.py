"""Packing clips of any size into rows of one shape.

A row is chosen by looking ahead: the clip that has waited longest always goes in, and the rest of the
row is filled by a subset of the waiting clips whose sizes add up to the row exactly, or as nearly as
they can (a subset-sum table over the waiting clips, oldest first, until a subset fills the row). Of the
subsets with equal tokens, the one that spends least of the other budgets (text, noise levels, clips) is
kept: it has the fewest and largest clips, so small ones remain to fill later rows.

Attention is quadratic in a clip, so rows with as many tokens cost differently, and the row that costs most sets the
pace of a step. With a `Balance`, each stream packs a window of rows and orders them by cost; at every step all streams
give their row of the same rank. So the rows of a batch cost nearly the same, on every host, without a message between
hosts. (AdaptiveLoad, arXiv 2605.17923, balances by compute too, by other means.)
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from vdit.data.config import DataConfig
from vdit.data.patches import Patch, grid_position
from vdit.data.streams import Reader, close_readers, make_place, make_pool, read_place
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

    tokens: n, tokens of a row. text: m, text tokens. frames: k, frames of tokens (each has a noise level).
    clips: s, clips. conditions: what rows carry beside.
    """

    tokens: int
    text: int
    frames: int
    clips: int
    conditions: tuple[CondShape, ...] = ()

    def each(self) -> tuple[int, int, int, int]:
        """The four limits, in the order of PackItem.needs."""
        return self.tokens, self.text, self.frames, self.clips

    @staticmethod
    def of(config: DataConfig, conditions: Sequence[Conditioner] = (), patch: Patch = (1, 1, 1)) -> RowShape:
        shapes = tuple(CondShape(c.name, c.axis, c.features(patch), c.dtype) for c in conditions)
        return RowShape(tokens=config.row_tokens, text=config.max_text_per_row,
                         frames=config.max_frames_per_row, clips=config.max_clips_per_row, conditions=shapes)

    def count(self, axis: Axis) -> int:
        """How many values a condition of this axis has in a row."""
        return {"frame": self.frames, "token": self.tokens, "text": self.text}.get(axis, self.clips)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackItem:
    """One clip, ready to be packed.

    values: float [n p], patchified latents, n = the product of grid.
    grid: tokens along t, h, w.
    text: int32 [m], token ids of the caption, at least one.
    cond: name -> values of a condition: [...] of the clip, [k ...] of frames of tokens (k = grid[0]), [n ...] of
        tokens, [m ...] of text tokens, [l e] of a sequence. Names and axes are those of the limits.
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
    tokens, text, frames, _ = clip.needs
    t, h, w = clip.grid
    for need, limit, what, field in (
        (tokens, limits.tokens, f"{tokens} tokens ({t} x {h} x {w})", "row_tokens"),
        (text, limits.text, f"{text} text tokens", "max_text_per_row"),
        (frames, limits.frames, f"{frames} frames of tokens", "max_frames_per_row"),
    ):
        if need > limit:
            raise DataError(f"clip {clip.name!r} has {what}, a row holds {limit}: raise data.{field} to "
                            f"{need} or more, or draw smaller clips (data.pixel_budgets, data.frames)")


def choose(needs: np.ndarray, limits: Sequence[int]) -> list[int]:
    """The clips of the next row.

    needs: int [i 4], tokens, text, frames, clips of each waiting clip, the longest waiting first.
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
               frame_index=ids(n), frame_segment_ids=ids(limits.frames), text=ids(m), text_segment_ids=ids(m),
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
            tokens, text, frames, _ = clip.needs
            total = RowShape(tokens=n + tokens, text=m + text, frames=k + frames, clips=number)
            if any(have > most for have, most in zip(total.each(), limits.each())):
                raise DataError(f"clip {clip.name!r} overflows row {b}: {total} against {limits}")
            position = grid_position(clip.grid)
            rows.values[b, n : n + tokens] = clip.values
            rows.position[b, n : n + tokens] = position
            rows.segment_ids[b, n : n + tokens] = number
            rows.frame_index[b, n : n + tokens] = position[:, 0] + k
            rows.frame_segment_ids[b, k : k + frames] = number
            rows.text[b, m : m + text] = clip.text
            rows.text_segment_ids[b, m : m + text] = number
            rows.text_position[b, m : m + text] = np.arange(text)
            for condition in limits.conditions:
                values = _cond_values(clip, condition)
                if condition.axis == "token":
                    rows.cond[condition.name][b, n : n + tokens] = values
                elif condition.axis == "frame":
                    rows.cond[condition.name][b, k : k + frames] = values
                elif condition.axis == "text":
                    rows.cond[condition.name][b, m : m + text] = values
                else:
                    rows.cond[condition.name][b, number - 1] = values
            n, m, k = n + tokens, m + text, k + frames
    return rows


def _cond_values(clip: PackItem, condition: CondShape) -> np.ndarray:
    """A clip's values of a condition, in the shape that a row takes."""
    leads = {"token": (len(clip.values),), "frame": (clip.grid[0],), "text": (len(clip.text),)}
    lead = leads.get(condition.axis, ())
    found = None if condition.name not in clip.cond else np.shape(clip.cond[condition.name])
    if found != (*lead, *condition.features):
        raise DataError(f"clip {clip.name!r} has the condition {condition.name!r} of shape {found}, rows take "
                        f"{(*lead, *condition.features)}: all clips of a batch must have it so")
    return clip.cond[condition.name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Balance:
    """How rows of equal cost meet in a batch.

    rows: a stream packs so many rows ahead and orders them by cost. seed: of the order in which ranks are given.
    """

    rows: int
    seed: int = 0

    def rank(self, number: int) -> int:
        """The rank, 0 for the row that costs most, of the row that every stream gives in round `number`."""
        window, place = divmod(number, self.rows)
        return int(np.random.default_rng((self.seed, window)).permutation(self.rows)[place])


def attention_pairs(row: Sequence[PackItem]) -> int:
    """Pairs of tokens that attend to each other in a row: what of its cost differs between rows of as many tokens."""
    return sum(len(clip.values) ** 2 for clip in row)


class Stream:
    """The clips of one stream that wait to be packed, and the reader of those to come.

    most_tokens, most_clips: bounds of the look-ahead.
    """

    def __init__(self, reader: Reader[PackItem], limits: RowShape, *, most_tokens: int, most_clips: int):
        self.reader = reader
        self._limits, self._most_tokens, self._most_clips = limits, most_tokens, most_clips
        self._waiting: list[PackItem] = []
        self._window: list[list[PackItem]] = []  # rows by rank; those that were given are empty
        self._whole = False  # whether every row of the window had clips
        self._tokens = 0
        self._ended = False

    def read_one(self) -> bool:
        """Takes in one clip more; False when the look-ahead is full or nothing is left to read."""
        if self._ended or len(self._waiting) >= self._most_clips or self._tokens >= self._most_tokens:
            return False
        try:
            clip = next(self.reader)
        except StopIteration:
            self._ended = True
            return False
        check_fits(clip, self._limits)
        self._waiting.append(clip)
        self._tokens += len(clip.values)
        return True

    def take_row(self) -> list[PackItem]:
        """The clips of the next row; none when the stream has ended."""
        if not self._waiting:
            return []
        needs = np.asarray([clip.needs for clip in self._waiting], np.int32)
        chosen = choose(needs, self._limits.each())
        row = [self._waiting[i] for i in chosen]
        for i in reversed(chosen):
            del self._waiting[i]
        self._tokens -= sum(len(clip.values) for clip in row)
        return row

    def pack_row(self) -> None:
        """Packs the next row of a window."""
        self._window.append(self.take_row())

    def close_window(self) -> None:
        """Orders the rows of a window by cost, those without clips last."""
        self._whole = all(self._window)
        self._window.sort(key=attention_pairs, reverse=True)  # stable: rows of equal cost keep their order

    def take_ranked(self, rank: int, place: int, last: bool) -> list[PackItem]:
        """The row of a rank; at the end of a pass, in a window that lacks rows, the next one by cost.

        place: of the row in its window. last: whether it is the last one there.
        """
        rank = rank if self._whole else place
        row, self._window[rank] = self._window[rank], []
        if last:
            self._window = []
        return row

    def place(self) -> dict[str, Any]:
        """Where the reader is, and which clips wait: a few numbers, whatever the clips' size."""
        waiting = [int(clip.place) for clip in self._waiting]
        packed = [[int(clip.place) for clip in row] for row in self._window]
        more = {"window": packed, "whole": self._whole} if packed else {}
        return {"next": self.reader.place, "waiting": waiting} | more

    def move(self, place: Mapping[str, Any], read: Callable[[Sequence[int]], list[PackItem]]) -> None:
        """Goes on from a place. read: gives the clips that waited there, by their places in the order of reading."""
        self._waiting = read(place["waiting"])
        self._window = [read(row) for row in place.get("window", ())]
        self._whole = place.get("whole", False)
        self.reader.move(place["next"])
        self._tokens, self._ended = sum(len(clip.values) for clip in self._waiting), False


class PackedRows(grain.DatasetIterator):
    """Batches of packed rows (vdit.types.Row, NumPy, [b ...]) from streams of clips.

    Each stream fills the same number of rows of a batch, one stream after the other. Its clips are read in order into
    a look-ahead buffer, from which rows are chosen. After a restart the clips that waited are read again.

    orders: stream -> source indices by place, grain.MapDataset.
    read: (index, place) -> the clip; it must depend on nothing else.
    limits: shape of a row. config: bounds of each stream's look-ahead, and the threads that the streams share.
    rows_each: rows of a batch that each stream fills.
    identity: what must be equal for a saved place to mean the same clips.
    balance: makes rows of equal cost meet in a batch; None gives rows in the order in which they are packed.
    """

    def __init__(self, orders: Mapping[int, grain.MapDataset], read: Callable[[int, int], PackItem],
                 limits: RowShape, config: DataConfig, *, rows_each: int, identity: dict[str, Any],
                 balance: Balance | None = None):
        super().__init__()
        self._pool = make_pool(config.threads)
        self._balance, self._given = balance, 0  # rounds
        ahead = -(-config.read_ahead // len(orders))
        self._streams = {
            number: Stream(Reader(order, read, self._pool, ahead), limits,
                           most_tokens=config.look_ahead(), most_clips=config.buffer_clips)
            for number, order in orders.items()
        }
        self._limits, self._rows_each, self._identity = limits, rows_each, identity

    def __next__(self) -> Row:
        rounds = [self._round() for _ in range(self._rows_each)]
        rows = list(itertools.chain.from_iterable(zip(*rounds)))
        if not any(rows):
            raise StopIteration
        # The last batches of a finite pass keep their shape: what is missing is rows of padding.
        return build_rows(rows, self._limits)

    def _round(self) -> list[list[PackItem]]:
        """One row of each stream."""
        streams, balance = list(self._streams.values()), self._balance
        if balance is None:
            self._look_ahead()
            return [stream.take_row() for stream in streams]
        place = self._given % balance.rows
        if place == 0:
            for _ in range(balance.rows):
                self._look_ahead()
                for stream in streams:
                    stream.pack_row()
            for stream in streams:
                stream.close_window()
        rank, last = balance.rank(self._given), place == balance.rows - 1
        self._given += 1
        return [stream.take_ranked(rank, place, last) for stream in streams]

    def _look_ahead(self) -> None:
        # In turns, so that the readers of all streams work at the same time.
        hungry = list(self._streams.values())
        while hungry:
            hungry = [stream for stream in hungry if stream.read_one()]

    def get_state(self) -> dict[str, Any]:
        given = {} if self._balance is None else {"given": self._given}
        return make_place({number: stream.place() | given for number, stream in self._streams.items()}, self._identity)

    def set_state(self, state: dict[str, Any]) -> None:
        places = read_place(state, self._streams, self._identity)
        wanted = [(number, at) for number, place in places.items()
                  for at in itertools.chain(place["waiting"], *place.get("window", ()))]  # fmt: skip
        read = lambda which: self._streams[which[0]].reader.read_at(which[1])  # noqa: E731
        clips = iter(list(map(read, wanted) if self._pool is None else self._pool.map(read, wanted)))
        for number, place in places.items():
            self._streams[number].move(place, lambda waiting: list(itertools.islice(clips, len(waiting))))
            self._given = place.get("given", 0)

    def close(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():  # the names that this module imports may be gone then
            super().close()
            close_readers([stream.reader for stream in self._streams.values()], self._pool)
