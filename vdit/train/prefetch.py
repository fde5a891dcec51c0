"""Batches on their way from the host's data to the devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vdit.dist.process_shard import host_share
from vdit.dist.rules import batch_ways
from vdit.errors import ConfigError, DataError
from vdit.train.step import TrainStep
from vdit.types import PyTree


class Feed:
    """Batches on the devices, one ahead, each with the place of the data right after it.

    data: iterator of trees of arrays [b ...]. remaining: batches that will be asked for; none is
    fetched beyond, so that the iterator ends where the run does.
    """

    def __init__(self, data: Iterator[PyTree], train_step: TrainStep, *, remaining: int):
        self._data, self._remaining = data, remaining
        self._place = train_step.place
        self._pieces = train_step.plan.config.accumulation
        self._size = train_step.plan.config.batch_size
        self._ways = batch_ways(train_step.plan.mesh)
        self._share = host_share(train_step.plan.mesh)
        self._next: tuple[PyTree, Any] | None = None
        self._taken = 0

    def fill(self) -> None:
        """Fetches the next batch, if there is one to fetch and it was not fetched already."""
        if self._next is not None or self._remaining <= 0:
            return
        try:
            batch = next(self._data)
        except StopIteration:
            raise DataError(
                f"the data ended after {self._taken} batches, {self._remaining} more are needed: "
                "repeat the source or lower the steps"
            ) from None
        place = self._data.get_state() if hasattr(self._data, "get_state") else None
        self._remaining -= 1
        self._next = self._put(batch), place

    def take(self) -> tuple[PyTree, Any]:
        """(the next batch on the devices, the place of the data after it)."""
        self.fill()
        taken, self._next = self._next, None
        self._taken += 1
        return taken

    def _put(self, batch: PyTree) -> PyTree:
        """The global batch, of which each device of this host gets its part: rows, and tokens of rows."""
        if self._size % (self._pieces * self._ways):
            raise ConfigError(
                f"batch_size={self._size} must be a multiple of accumulation * data * fsdp = "
                f"{self._pieces} * {self._ways}"
            )
        batch = jax.tree.map(self._fold, batch)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(self._global(leaf.shape), leaf.dtype), batch)
        return jax.tree.map(self._make, batch, shapes, self._place(shapes))

    def _fold(self, leaf: np.ndarray) -> np.ndarray:
        """[b ...] as it is, or [a b/a ...] for `accumulation` a: row r is in piece r % a, on any number of hosts."""
        leaf = np.asarray(leaf)
        if leaf.ndim == 0 or leaf.shape[0] * self._share.count != self._size:
            raise DataError(
                f"a batch has an array of shape {leaf.shape}: the first dimension must be "
                f"batch_size / hosts = {self._size // self._share.count}"
            )
        return leaf if self._pieces == 1 else leaf.reshape(-1, self._pieces, *leaf.shape[1:]).swapaxes(0, 1)

    def _global(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows = self._rows_at
        return (*shape[:rows], shape[rows] * self._share.count, *shape[rows + 1 :])

    @property
    def _rows_at(self) -> int:
        """Which dimension of a batch's arrays counts the rows."""
        return int(self._pieces > 1)

    def _make(self, leaf: np.ndarray, whole: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.Array:
        at = self._rows_at

        def part(index: tuple[slice, ...]) -> np.ndarray:
            rows = self._share.local(index[at], whole.shape[at])
            return leaf[(*index[:at], rows, *index[at + 1 :])]

        return jax.make_array_from_callback(whole.shape, place, part)
