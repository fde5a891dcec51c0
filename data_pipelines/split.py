"""Split: long scenes into clips of the durations that an experiment asks for."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

from data_pipelines.records import ClipRecord
from vdit.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How scenes become clips.

    Args:
        shortest: seconds; a shorter scene stays one clip (the keep expression drops it).
        longest: seconds; a longer scene is split into equal clips, none longer than this.
        margin: seconds that are cut off at both ends of a scene, next to a cut; 0 for none. The ends of a file stay.
    """

    shortest: float = 1.0
    longest: float = 10.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.shortest <= self.longest < math.inf or self.longest <= 0 or not 0 <= self.margin < math.inf:
            raise ConfigError(f"split: shortest {self.shortest}, longest {self.longest}, margin {self.margin}: must be "
                              "0 <= shortest <= longest, margin 0 or more, all in seconds")  # fmt: skip


def split(
    record: ClipRecord, options: SplitOptions | None = None, *, times: Sequence[Fraction] | None = None
) -> list[ClipRecord]:
    """The clips of a scene, in order, without gap or overlap inside the scene.

    Args:
        record: a scene with start and end.
        options: SplitOptions; None for the defaults.
        times: of the scene's frames, rising; a clip then begins exactly on a frame. None: the places where an even
            split falls, and the reader takes the frames that are on screen there.

    Returns:
        At least one record: a scene too short to be split or trimmed stays as it is.
    """
    options = options or SplitOptions()
    start, end = record.start, record.end
    if end is None:
        raise ConfigError(f"{record.path}: is not cut yet: split takes records that have an end")
    margin = Fraction(options.margin).limit_denominator(10**6)
    inner = (start + (margin if start > 0 else 0), end - margin)
    if margin and inner[1] - inner[0] >= Fraction(options.shortest):
        start, end = inner
    count = max(1, math.ceil(float(end - start) / options.longest - 1e-9))
    places = [start + (end - start) * k / count for k in range(count + 1)]
    if times is not None:
        places = [*sorted({_frame_at_or_after(times, place) for place in places[:-1]}), end]
        places = [place for place in places[:-1] if place < end] + [end]
    return [record.replace(start=a, end=b) for a, b in itertools.pairwise(places)]


def _frame_at_or_after(times: Sequence[Fraction], place: Fraction) -> Fraction:
    index = bisect.bisect_left(times, place)
    return times[min(index, len(times) - 1)]
