"""Jobs that wait for the devices: turns between clients, and within a client by priority.

Clients take turns by the work they were given: the one that had least goes first, so one with a thousand jobs does not
keep another waiting for more than the job that is being made. Clients of one address share its turn, so a client that
takes many names gains nothing over other addresses.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Hashable, Iterable


@dataclasses.dataclass(kw_only=True)
class Waiting:
    """A job in the queue.

    Attributes:
        id: of the job. address, client: whose it is. priority: the higher first, among the client's own.
        work: how much it is, in any unit. key: jobs with equal keys go together; None: alone.
    """

    id: str
    address: str
    client: str
    priority: int
    work: float
    key: Hashable | None = None
    number: int = 0


class FairQueue:
    """Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, Waiting] = {}
        self._numbers = itertools.count()
        # Work that was given out, by address and by (address, client), of those that have jobs waiting.
        self._given: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, jobs: Iterable[Waiting]) -> None:
        """All at once: the jobs of a request may go together.

        A client that comes anew starts where the one with the least work stands, not before it.
        """
        with self._lock:
            for one in jobs:
                one.number = next(self._numbers)
                for party, others in self._parties(one):
                    if party not in self._given:
                        self._given[party] = min((self._given.get(other, 0.0) for other in others), default=0.0)
                self._waiting[one.id] = one

    def _parties(self, one: Waiting) -> list[tuple[Hashable, list[Hashable]]]:
        """Its address and its client, each with those it takes turns with."""
        addresses = {(w.address,) for w in self._waiting.values()}
        clients = {(w.address, w.client) for w in self._waiting.values() if w.address == one.address}
        return [((one.address,), list(addresses)), ((one.address, one.client), list(clients))]

    def remove(self, id: str) -> bool:
        """Whether it was there."""
        with self._lock:
            found = self._waiting.pop(id, None)
            self._forget()
            return found is not None

    def take(self, most: Callable[[Waiting], int]) -> list[Waiting]:
        """The next job, and others that go with it, in the order of their turns; [] where none waits.

        most: of the first, how many jobs may go together.
        """
        with self._lock:
            taken: list[Waiting] = []
            first = self._next(self._waiting.values())
            if first is None:
                return taken
            room = most(first)
            while first is not None:
                taken.append(self._waiting.pop(first.id))
                for party in ((first.address,), (first.address, first.client)):
                    self._given[party] = self._given.get(party, 0.0) + first.work
                if len(taken) == room or taken[0].key is None:
                    break
                first = self._next([w for w in self._waiting.values() if w.key == taken[0].key])
            self._forget()
            return taken

    def together(self, key: Hashable) -> int:
        """How many jobs of this key wait."""
        return sum(w.key == key for w in list(self._waiting.values()))

    def _next(self, jobs) -> Waiting | None:
        given = self._given
        return min(
            jobs,
            key=lambda w: (
                given.get((w.address,), 0.0), given.get((w.address, w.client), 0.0), -w.priority, w.number
            ),
            default=None,
        )  # fmt: skip

    def _forget(self) -> None:
        """Parties without waiting jobs are not remembered: memory stays flat whatever names clients take."""
        there = {(w.address,) for w in self._waiting.values()}
        there |= {(w.address, w.client) for w in self._waiting.values()}
        # What everybody had is taken off, so that numbers stay small.
        self._given = {party: work for party, work in self._given.items() if party in there}
