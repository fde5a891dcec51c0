"""The packing step of the pipeline as an iterator whose place can be saved exactly."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np

from vdit.data.packing import PackItem, RowShape, build_rows, check_fits, choose
from vdit.data.streams import Reader, close_readers, make_place, make_pool, read_place
from vdit.types import Row


class Stream:
    """The clips of one stream that wait to be packed, and the reader of those to come.

    most_tokens, most_clips: bounds of the look-ahead.
    """

    def __init__(self, reader: Reader[PackItem], limits: RowShape, *, most_tokens: int, most_clips: int):
        self.reader = reader
        self._limits, self._most_tokens, self._most_clips = limits, most_tokens, most_clips
        self._waiting: list[PackItem] = []
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

    def place(self) -> dict[str, Any]:
        """Where the reader is, and which clips wait: a few numbers, whatever the clips' size."""
        return {"next": self.reader.place, "waiting": [int(clip.place) for clip in self._waiting]}

    def move(self, place: int, waiting: list[PackItem]) -> None:
        """Goes on from a place, with the clips that waited there."""
        self.reader.move(place)
        self._waiting, self._tokens, self._ended = waiting, sum(len(clip.values) for clip in waiting), False


class PackedRows(grain.DatasetIterator):
    """Batches of packed rows (vdit.types.Row, NumPy, [b ...]) from streams of clips.

    Each stream fills the same number of rows of a batch, one stream after the other. Its clips are read in order into
    a look-ahead buffer, from which rows are chosen. After a restart the clips that waited are read again.

    orders: stream -> source indices by place, grain.MapDataset.
    read: (index, place) -> the clip; it must depend on nothing else.
    limits: shape of a row.   rows_each: rows of a batch that each stream fills.
    most_tokens, most_clips: bounds of each stream's look-ahead.
    threads, read_ahead: for reading, shared by the streams.
    identity: what must be equal for a saved place to mean the same clips.
    """

    def __init__(self, orders: Mapping[int, grain.MapDataset], read: Callable[[int, int], PackItem],
                 limits: RowShape, *, rows_each: int, most_tokens: int, most_clips: int, threads: int,
                 read_ahead: int, identity: dict[str, Any]):
        super().__init__()
        self._pool = make_pool(threads)
        ahead = -(-read_ahead // len(orders))
        self._streams = {
            number: Stream(Reader(order, read, self._pool, ahead), limits,
                           most_tokens=most_tokens, most_clips=most_clips)
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
        # In turns, so that the readers of all streams work at the same time.
        hungry = list(self._streams.values())
        while hungry:
            hungry = [stream for stream in hungry if stream.read_one()]
        return [stream.take_row() for stream in self._streams.values()]

    def get_state(self) -> dict[str, Any]:
        return make_place({number: stream.place() for number, stream in self._streams.items()}, self._identity)

    def set_state(self, state: dict[str, Any]) -> None:
        places = read_place(state, self._streams, self._identity)
        wanted = [(number, at) for number, place in places.items() for at in place["waiting"]]
        read = lambda which: self._streams[which[0]].reader.read_at(which[1])  # noqa: E731
        clips = iter(list(map(read, wanted) if self._pool is None else self._pool.map(read, wanted)))
        for number, place in places.items():
            waiting = list(itertools.islice(clips, len(place["waiting"])))
            self._streams[number].move(place["next"], waiting)

    def close(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():  # the names that this module imports may be gone then
            super().close()
            close_readers([stream.reader for stream in self._streams.values()], self._pool)
