"""What the hosts of a run tell each other about a checkpoint, without their devices.

It goes through jax's coordination service, as Orbax's own barriers do: a save is finished in a background thread, and
there a collective on the devices would meet the training step's in another order on every host.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax._src import distributed  # the service has no public name; Orbax takes it from there, too

from vdit.errors import CheckpointError, HostsError

PATIENCE = 1200  # seconds that one host waits for the slowest: as long as Orbax waits for a save
_numbers = itertools.count()  # each exchange has names of its own, the same on all hosts


class Exchange:
    """One question that all hosts answer. All must make their exchanges in the same order, in the main thread.

    alone: this host answers its own question; such exchanges may be made by any host at any time.
    """

    def __init__(self, *, alone: bool = False):
        alone = alone or jax.process_count() == 1
        self.index, self.count = (0, 1) if alone else (jax.process_index(), jax.process_count())
        self._folder = None if alone else f"vdit/checkpoint/{next(_numbers)}"
        self._client = None if alone else distributed.global_state.client
        self._own: dict[str, str] = {}

    def put(self, name: str, value: Any) -> None:
        """Lays down this host's value (plain JSON) under a name."""
        if self._client is None:
            self._own[name] = json.dumps(value)
            return
        with _asking("the hosts"):
            self._client.key_value_set(f"{self._folder}/{name}/{self.index}", json.dumps(value))

    def seen(self, name: str) -> dict[int, Any]:
        """Host -> its value, of the hosts that laid one down so far."""
        if self._client is None:
            return {0: json.loads(self._own[name])} if name in self._own else {}
        with _asking("the hosts"):
            found = self._client.key_value_dir_get(f"{self._folder}/{name}")
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in found}

    def collect(self, name: str, seconds: float = PATIENCE) -> list[Any]:
        """The values of all hosts, in their order; waits for them."""
        if self._client is None:
            return [json.loads(self._own[name])]
        end = time.monotonic() + seconds
        return [self._get(f"{name}/{host}", end, f"host {host}") for host in range(self.count)]

    def agree(self, value: Any, merge: Callable[[list[Any]], Any], *, seconds: float = PATIENCE) -> Any:
        """Every host gives a value; the first one makes an answer of them, which all return; once per exchange.

        What `merge` raises is raised on all hosts, on the others as a CheckpointError with the same words. HostsError
        if a host does not answer, here as in the other methods.
        """
        if self._client is None:
            return merge([json.loads(json.dumps(value))])
        self.put("value", value)
        failure = None
        if self.index == 0:
            try:
                answer = {"answer": merge(self.collect("value", seconds))}
            except Exception as error:
                failure, answer = error, {"error": str(error), "lost": isinstance(error, HostsError)}
            with _asking("the hosts"):
                self._client.key_value_set(f"{self._folder}/answer", json.dumps(answer))
        else:
            answer = self._get("answer", time.monotonic() + seconds + 60, "the first host")
        self._forget()
        if failure is not None:
            raise failure
        if "error" in answer:
            raise (HostsError if answer["lost"] else CheckpointError)(answer["error"])
        return answer["answer"]

    def spoil(self, barriers: Iterable[str]) -> None:
        """Ends the wait of other hosts at barriers that this one will not come to.

        The service fails a barrier for all, the late ones too, once it is asked for with other members.
        """
        for name in barriers if self._client is not None else ():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.wait_at_barrier(name, 1, process_ids=[self.index])

    def _get(self, name: str, end: float, whose: str) -> Any:
        left = max(int(1000 * (end - time.monotonic())), 1)
        with _asking(whose):
            return json.loads(self._client.blocking_key_value_get(f"{self._folder}/{name}", left))

    def _forget(self) -> None:
        """The service keeps what it was told: for a run of weeks that adds up."""
        try:
            self._client.wait_at_barrier(f"{self._folder}/end", 60_000)
            if self.index == 0:
                self._client.key_value_delete(self._folder)
        except jax.errors.JaxRuntimeError:
            return  # a host is gone, which is noticed elsewhere; a few keys stay


@contextlib.contextmanager
def _asking(whom: str) -> Iterator[None]:
    """What the service says when a host is gone is no fault of a checkpoint's: the run is to be started again."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        words = str(error).strip().splitlines()[0]
        raise HostsError(f"{whom} gave no answer about a checkpoint ({words}): see its log") from None


def on_first(act: Callable[[], Any]) -> Any:
    """Has the first host act; all hosts return what came of it, or raise what went wrong."""
    return Exchange().agree(None, lambda _: act())


def this_host() -> str:
    """How a message names the host: "host 3 (name)"."""
    return f"host {jax.process_index()} ({socket.gethostname()})"
