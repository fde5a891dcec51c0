"""What a source of samples is: random access, broken items skipped, counted and reported."""

from __future__ import annotations

import abc
import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from vdit.errors import DataError, VideoError, one_line
from vdit.reprs import short_repr

# A plain dict: "video" uint8 [t h w 3] or "latent" float [t h w c]; "captions" list of str, the first the
# short one; "fps" float; "id" str; "label" int (0 where there is none); where it is known what is done in each
# video frame, "actions" float32 [t a].
Sample = dict[str, Any]

# Items tried before a source is said to be broken as a whole.
MAX_TRIES = 256


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What was found where the data is, and what of it is used.

    place: the folder. found: videos, by the names of files or by the captions file. used: those that samples are
    taken of. uncaptioned: those of them that have no caption. held_out: left out as asked. skipped: name -> why it
    is not used. notes: what else there is to know.
    """

    place: str
    found: int
    used: int
    uncaptioned: tuple[str, ...] = ()
    held_out: int = 0
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self, most: int = 20) -> list[str]:
        """For a user to read: all in one line, then at most so many of each list."""
        captioned = self.used - len(self.uncaptioned)
        head = (f"data: {self.found} videos in {one_line(self.place)}, {self.used} used: {captioned} with captions, "
                f"{len(self.uncaptioned)} without")
        head += f"; {self.held_out} held out" if self.held_out else ""
        head += f"; {len(self.skipped)} not used" if self.skipped else ""
        skipped = [f"not used: {one_line(name)}: {one_line(reason)}" for name, reason in self.skipped.items()]
        bare = [f"no caption: {one_line(name)}" for name in self.uncaptioned] if captioned else []
        lines = [head, *(f"  {one_line(note)}" for note in self.notes)]
        for group in (skipped, bare):
            lines += [f"  {line}" for line in group[:most]]
            lines += [f"  ... and {len(group) - most} more"] if len(group) > most else []
        return lines


class Source(abc.ABC):
    """Random-access samples. `source[i + e * len(source)]` is item i as drawn in pass e.

    An item that cannot be read is skipped: its place is taken by the next one that can, always the same
    one, so the order stays deterministic. `report()` says which items were skipped, and why.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._broken: dict[str, str] = {}

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, item: int, epoch: int) -> Sample:
        """The sample of item 0 <= item < len(self); raises DataError or VideoError when it is broken."""

    def name(self, item: int) -> str:
        """The item's name in reports."""
        return str(item)

    def __getitem__(self, index: int) -> Sample:
        return self.first_readable(index, self.read)

    def first_readable(self, index: int, read: Any) -> Sample:
        """`read(item, epoch)` of the item at index, or of the next item that can be read."""
        epoch, item = divmod(index, len(self))
        for step in range(min(len(self), MAX_TRIES)):
            candidate = (item + step) % len(self)
            try:
                return read(candidate, epoch)
            except (DataError, VideoError) as error:
                self.skip(self.name(candidate), str(error))
        raise DataError(f"none of {min(len(self), MAX_TRIES)} items in a row can be read, from "
                        f"{self.name(item)!r} on; for one, {self._example()}")

    def skip(self, name: str, reason: str) -> None:
        """Counts a broken item."""
        with self._lock:
            self._broken[name] = reason

    def report(self) -> dict[str, str]:
        """What was skipped so far: the item's name and the reason."""
        with self._lock:
            return dict(sorted(self._broken.items()))

    @property
    def summary(self) -> DataSummary | None:
        """What was found and what of it is used; None where every item is used as it is."""
        return None

    def _example(self) -> str:
        name, reason = next(iter(self.report().items()))
        return f"{name!r}: {reason}"


def draws(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random numbers of one sample, for one purpose: they depend on nothing else."""
    return np.random.default_rng((seed, index, purpose))
