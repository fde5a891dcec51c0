"""The order in which samples are read: streams, which hosts share, so that it does not depend on their number.

The items of a pass are dealt out to a number of streams that is fixed for a run. Each stream has its own order, its
own packer and its own place; row r of a batch of B rows is of stream r * streams // B. A host runs the streams of its
rows, whole ones. So the batches are the same however many hosts read them, and what one number of hosts has begun,
another goes on with.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import grain

from vdit.errors import ConfigError, DataError
from vdit.seeds import seed_32

T = TypeVar("T")
MOST_STREAMS = 16  # unless the config asks for more: look-ahead buffers are kept for each


def stream_count(asked: int, *, batch_rows: int, items: int) -> int:
    """`asked`, or for 0 the largest divisor of batch_rows up to MOST_STREAMS that the items suffice for.

    batch_rows: B, over all hosts. items: of the source. Neither changes with the number of hosts.
    """
    if not asked:
        return max(n for n in range(1, MOST_STREAMS + 1) if batch_rows % n == 0 and n <= max(items, 1))
    if batch_rows % asked:
        raise ConfigError(f"data.streams={asked} must divide the batch of {batch_rows} rows: each stream fills the "
                          "same number of them (0 chooses)")
    if items < asked:
        raise DataError(f"the source has {items} items for data.streams={asked}: each stream needs at least one, "
                        "so give fewer streams or more data")
    return asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessShard:
    """Which part of the data a host reads: number `index`, from 0, of `count` equal parts."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"shard index={self.index}: must be 0 to count - 1 ({self.count - 1})")

    def part(self, size: int) -> range:
        """The shard's part of the numbers 0 to size - 1; `count` divides `size`."""
        each = size // self.count
        return range(self.index * each, (self.index + 1) * each)


def own_streams(streams: int, shard: ProcessShard, *, batch_rows: int) -> range:
    """The streams of one share of the hosts."""
    if streams % shard.count:
        raise ConfigError(f"data.streams={streams} cannot be shared by {shard.count} groups of hosts: give a number of "
                          f"hosts that divides {streams}, or, for a new run, data.streams a multiple of {shard.count} "
                          f"that divides the batch of {batch_rows} rows")
    return shard.part(streams)


def own_rows(batch_rows: int, shard: ProcessShard) -> range:
    """The rows of a batch of B rows that one share of the hosts gives."""
    if batch_rows % shard.count:
        raise ConfigError(f"a batch of {batch_rows} cannot be shared by {shard.count} groups of hosts: make it a "
                          f"multiple of {shard.count}")
    return shard.part(batch_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The order of reading: a new shuffle in each pass, dealt out to the streams.

    Over all streams, every item is read exactly once in each pass. epochs: passes, 0 repeats for ever.
    """

    items: int
    seed: int
    streams: int = 1
    epochs: int = 0

    def __post_init__(self) -> None:
        if self.items < self.streams:
            raise DataError(f"the source has {self.items} items: there must be at least {self.streams}")

    def dataset(self, stream: int = 0) -> grain.MapDataset:
        """Source indices (item + pass * items) by place in one stream's order."""
        share = grain.MapDataset.range(self.items).shuffle(seed=seed_32(self.seed))[stream :: self.streams]
        length, items = len(share), self.items
        share = share.repeat(self.epochs or None)
        return share.map_with_index(lambda place, item: int(item) + place // length * items)

    def identity(self) -> dict[str, Any]:
        return {"items": self.items, "seed": self.seed, "streams": self.streams}


class Reader(Generic[T]):
    """`read(index, place)` of each index of an order, read ahead by threads that several readers share.

    (Grain's own prefetch starts threads for each iterator, and would start them for each stream.) The place is
    that of the next element given out: what was read ahead is read again after a restart.
    """

    def __init__(self, order: grain.MapDataset, read: Callable[[int, int], T], pool: ThreadPoolExecutor | None,
                 ahead: int):
        self.place = 0
        self._order, self._read, self._pool = order, read, pool
        self._ahead, self._length = ahead if pool is not None else 0, len(order)
        if self._length:
            order[0]  # what grain makes on first use is not made by two threads
        self._coming: deque[Future] = deque()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self.place >= self._length:
            raise StopIteration
        if self._pool is None:
            element = self.read_at(self.place)
        else:
            self._ask(max(1, self._ahead))
            element = self._coming[0].result()
            self._coming.popleft()
        self.place += 1
        self._ask(self._ahead)
        return element

    def _ask(self, ahead: int) -> None:
        while len(self._coming) < ahead and self.place + len(self._coming) < self._length:
            self._coming.append(self._pool.submit(self.read_at, self.place + len(self._coming)))

    def read_at(self, place: int) -> T:
        """The element at a place, wherever the reader is."""
        return self._read(int(self._order[place]), place)

    def move(self, place: int) -> None:
        """Goes on from a place."""
        self.close()
        self.place = place

    def close(self) -> None:
        """Lets go of what is being read ahead."""
        while self._coming:
            self._coming.popleft().cancel()


def make_pool(threads: int) -> ThreadPoolExecutor | None:
    """Threads for the readers of a host; None for 0: who asks reads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="vdit-read") if threads else None


def close_readers(readers: Iterable[Reader], pool: ThreadPoolExecutor | None) -> None:
    """Ends reading ahead."""
    for reader in readers:
        reader.close()
    if pool is not None:
        pool.shutdown(wait=False, cancel_futures=True)


def make_place(streams: dict[int, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """The place of a host's iterator, as plain JSON: those of all hosts together are one place of the run."""
    return {"streams": {str(number): place for number, place in streams.items()}, "identity": identity}


def read_place(state: Any, own: Iterable[int], identity: dict[str, Any]) -> dict[int, Any]:
    """Stream -> its place, of the streams `own`, from the merged places of all hosts that saved.

    Refused (DataError) are places that mean other clips, by their identity, or that lack a stream.
    """
    if not isinstance(state, dict) or "streams" not in state:
        raise DataError("the data's place was saved by an older vdit, whose order depended on the number of hosts: go "
                        "on with the version that saved it, or start a new run from its weights (start_from)")
    then = state["identity"]
    changed = [f"{key} was {then.get(key)!r}, is {identity.get(key)!r}"
               for key in sorted({*identity, *then}) if identity.get(key) != then.get(key)]
    if changed:
        raise DataError("the data cannot be resumed at its saved place: " + "; ".join(changed)
                        + "; resume with the same data settings, or start a new run")
    lacking = [number for number in own if str(number) not in state["streams"]]
    if lacking:
        raise DataError(f"the data's place lacks the streams {lacking}: give the places of all hosts that saved, "
                        "merged")
    return {number: state["streams"][str(number)] for number in own}
