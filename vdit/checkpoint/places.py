"""The data's place in a step: each host's as a file of JSON, and what of them a host needs to go on."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdit.checkpoint.agree import Exchange
from vdit.checkpoint.files import read_json
from vdit.errors import CheckpointError

_STREAMS = "streams"
_NAME = re.compile(r"host_(\d+)_of_(\d+)\.json")


class Places:
    """The part of a step that holds the data's places. They travel to the first host, which writes them all.

    So they are in a step whenever Orbax commits it: of several writers, Orbax would wait for its own only.
    """

    def __init__(self, place: dict | bytes | None, exchange: Exchange):
        self._exchange = exchange
        exchange.put("place", _to_json(place))  # now: the iterator moves on while the save runs

    async def save(self, directory):
        """What Orbax calls: returns what it is to run in the background."""

        async def write():
            folder = await directory.await_creation()
            if self._exchange.index == 0:
                values = await asyncio.to_thread(self._exchange.collect, "place")
                for host, value in enumerate(values):
                    (folder / _name(host, len(values))).write_text(json.dumps(value, indent=1))

        return write()

    async def load(self, directory):
        """Part of Orbax's protocol; `read_place` reads the files itself."""
        raise NotImplementedError


def check_places(folder: Path) -> None:
    """Refuses a step without the places of all hosts that saved it."""
    _read_all(folder)


def read_place(folder: Path) -> dict | bytes:
    """This host's place in the data, for `set_state`.

    A place of streams is that of all hosts together: {"streams": {number: state, ...}, ...}, so that any number of
    hosts goes on from it. Any other belongs to the host of the same number, and to as many hosts as there were.
    """
    values = _read_all(folder)
    if any(value is None for value in values):
        raise CheckpointError(f"{folder}: holds no place in the data; start the data from the beginning")
    places = [base64.b64decode(value["bytes"]) if "bytes" in value else value["dict"] for value in values]
    if all(isinstance(place, dict) and _STREAMS in place for place in places):
        return _merged(folder, places)
    if len(places) != jax.process_count():
        raise CheckpointError(
            f"{folder}: the place in the data is of {len(places)} hosts, this run has {jax.process_count()}: "
            f"resume on {len(places)}, or start the data from the beginning"
        )
    return places[jax.process_index()]


def _merged(folder: Path, places: list[dict]) -> dict:
    merged: dict[str, Any] = {}
    for host, place in enumerate(places):
        for number, state in place[_STREAMS].items():
            if merged.setdefault(number, state) != state:
                raise CheckpointError(f"{folder}: host {host} is elsewhere in stream {number} than the hosts before")
    return places[0] | {_STREAMS: merged}


def _read_all(folder: Path) -> list[Any]:
    names = [_NAME.fullmatch(entry.name) for entry in (folder / "data").glob("host_*")]
    count = max((int(name[2]) for name in names if name), default=1)
    values = [read_json(folder / "data" / _name(host, count)) for host in range(count)]
    if any(value is not None and not (isinstance(value, dict) and {"bytes", "dict"} & set(value)) for value in values):
        raise CheckpointError(f"{folder / 'data'}: holds no places in the data; take another step")
    return values


def _name(host: int, count: int) -> str:
    return f"host_{host}_of_{count}.json"


def _to_json(place: dict | bytes | None) -> Any:
    if isinstance(place, bytes):
        return {"bytes": base64.b64encode(place).decode()}
    plain = jax.tree.map(lambda leaf: leaf.item() if isinstance(leaf, np.generic) else leaf, place)
    return None if place is None else {"dict": plain}
