"""The packing step of the pipeline as a grain data set whose place can be saved exactly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from vdit.data.packing import RowLimits, TokenClip, build_rows, check_fits, choose
from vdit.errors import DataError
from vdit.types import Row


class PackedRows(grain.IterDataset):
    """Batches of packed rows (vdit.types.Row, NumPy, [b ...]) from a random-access set of TokenClips.

    Clips are read in order by threads into a look-ahead buffer, from which rows are chosen. The place is
    the position of the reader and the places of the clips in the buffer: a few numbers, whatever the
    clips' size. On restore those clips are read again.

    clips: grain.MapDataset of TokenClip; clips[i] must depend only on i.
    limits: shape of a row.   batch_rows: b.
    buffer_rows, buffer_clips: bounds of the look-ahead.   threads, read_ahead: for reading.
    identity: what must be equal for a saved place to mean the same clips.
    """

    def __init__(self, clips: grain.MapDataset, limits: RowLimits, *, batch_rows: int, buffer_rows: int,
                 buffer_clips: int, threads: int, read_ahead: int, identity: dict[str, Any]):
        super().__init__(clips)
        self.clips = clips
        self.limits = limits
        self.batch_rows = batch_rows
        self.buffer_rows = buffer_rows
        self.buffer_clips = buffer_clips
        self.threads = threads
        self.options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead)
        self.identity = identity

    def __iter__(self) -> PackedRowsIterator:
        return PackedRowsIterator(self)

    def __str__(self) -> str:
        return f"PackedRows({self.limits}, batch_rows={self.batch_rows})"


class PackedRowsIterator(grain.DatasetIterator):
    """Iterator of PackedRows."""

    def __init__(self, dataset: PackedRows):
        self._dataset = dataset
        self._reader = dataset.clips.to_iter_dataset(dataset.options).__iter__()
        super().__init__(self._reader)
        self._buffer: list[TokenClip] = []
        self._exhausted = False

    def __next__(self) -> Row:
        limits = self._dataset.limits
        groups: list[list[TokenClip]] = []
        while len(groups) < self._dataset.batch_rows and self._fill():
            needs = np.asarray([clip.needs for clip in self._buffer], np.int32)
            chosen = choose(needs, limits.each())
            groups.append([self._buffer[i] for i in chosen])
            for i in reversed(chosen):
                del self._buffer[i]
        if not groups:
            raise StopIteration
        # The last batch of a finite pass keeps its shape: what is missing is rows of padding.
        groups += [[] for _ in range(self._dataset.batch_rows - len(groups))]
        return build_rows(groups, limits)

    def _fill(self) -> bool:
        """Reads ahead up to the bounds; False when nothing is left to pack."""
        limits = self._dataset.limits
        held = sum(len(clip.values) for clip in self._buffer)
        while (not self._exhausted and len(self._buffer) < self._dataset.buffer_clips
               and held < self._dataset.buffer_rows * limits.tokens):
            try:
                clip = next(self._reader)
            except StopIteration:
                self._exhausted = True
                break
            check_fits(clip, limits)
            self._buffer.append(clip)
            held += len(clip.values)
        return bool(self._buffer)

    def get_state(self) -> dict[str, Any]:
        return {
            "reader": self._reader.get_state(),
            "waiting": [int(clip.place) for clip in self._buffer],
            "identity": self._dataset.identity,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        now, then = self._dataset.identity, state["identity"]
        changed = [f"{key} was {then.get(key)!r}, is {now.get(key)!r}"
                   for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
        if changed:
            raise DataError("the data cannot be resumed at its saved place: " + "; ".join(changed)
                            + "; resume with the same data settings, or start a new run")
        self._reader.set_state(state["reader"])
        with ThreadPoolExecutor(max(1, self._dataset.threads)) as pool:
            self._buffer = list(pool.map(self._dataset.clips.__getitem__, state["waiting"]))
        self._exhausted = False
