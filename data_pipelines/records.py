"""ClipRecord: what every stage takes and gives, a part of a video file with what is known of it.

    record = ClipRecord(path="film.mp4")
    record = record.replace(start=Fraction(1001, 30000), end=Fraction(5))
    record.with_measures(motion=0.1).to_json()
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import math
from fractions import Fraction
from typing import Any

from vdit.errors import DataError

Value = float | int | str | bool | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """A part of a video file: the whole file, a scene of it, or a clip of a scene.

    Args:
        path: the file, as the user names it: a local path or one in a bucket.
        start: seconds from the file's first frame to the clip's first frame, exact.
        end: seconds, exact: when the clip's last frame leaves the screen; None before the file was decoded.
        size: (height, width) in pixels as displayed; None before the file was probed.
        measures: column -> value, in the order in which stages wrote them. None: could not be measured.
        signature: what near-duplicates are found by (duplicates.py); None before the clip was measured.
        error: why the file or the clip cannot be used, one line; None where nothing is wrong.
    """

    path: str
    start: Fraction = Fraction(0)
    end: Fraction | None = None
    size: tuple[int, int] | None = None
    measures: dict[str, Value] = dataclasses.field(default_factory=dict)
    signature: bytes | None = dataclasses.field(default=None, repr=False)
    error: str | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise DataError(f"{self.path}: a clip from {self.start} s to {self.end} s: start must be 0 or more, and "
                            "end later than start")  # fmt: skip

    @property
    def id(self) -> str:
        """16 hex digits that tell this clip from others: of its path, start and end alone, the same in every run."""
        text = json.dumps([self.path, str(self.start), None if self.end is None else str(self.end)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def duration(self) -> float | None:
        """Seconds, or None before the file was decoded."""
        return None if self.end is None else float(self.end - self.start)

    def replace(self, **fields: Any) -> ClipRecord:
        """The record with other values in the named fields."""
        return dataclasses.replace(self, **fields)

    def with_measures(self, **columns: Value) -> ClipRecord:
        """The record with these columns added, or replaced where they were there."""
        return dataclasses.replace(self, measures={**self.measures, **columns})

    def failed(self, reason: str) -> ClipRecord:
        """The record with a reason why it cannot be used. The first reason stays."""
        return dataclasses.replace(self, error=self.error or reason)

    def to_json(self) -> dict[str, Any]:
        """Plain values for one line of JSON; `from_json` gives an equal record back."""
        return {
            "id": self.id,
            "path": self.path,
            "start": str(self.start),
            "end": None if self.end is None else str(self.end),
            "size": None if self.size is None else list(self.size),
            "measures": {name: _plain(name, value) for name, value in self.measures.items()},
            "signature": None if self.signature is None else base64.b64encode(self.signature).decode(),
            "error": self.error,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ClipRecord:
        """The record of `to_json`.

        Raises:
            DataError: a field is missing, of another type, or no record can have it; the message names the field.
        """
        try:
            field = "path"
            path = _of_type(values[field], str)
            field = "start"
            start = _fraction(values[field])
            field = "end"
            end = None if values[field] is None else _fraction(values[field])
            field = "size"
            size = None if values[field] is None else tuple(_of_type(side, int) for side in values[field])
            if size is not None and not (len(size) == 2 and min(size) > 0):
                raise ValueError(f"{size}, must be [height, width]")
            field = "measures"
            measures = {name: _plain(name, value) for name, value in _of_type(values[field], dict).items()}
            field = "signature"
            text = values[field]
            signature = None if text is None else base64.b64decode(_of_type(text, str), validate=True)
            field = "error"
            error = None if values[field] is None else _of_type(values[field], str)
        except KeyError:
            raise DataError(f"a clip's record has no field {field!r}: write it with ClipRecord.to_json") from None
        except (ValueError, TypeError, ZeroDivisionError, binascii.Error) as reason:
            raise DataError(f"a clip's record: field {field!r}: {reason}") from None
        return cls(path=path, start=start, end=end, size=size, measures=measures, signature=signature, error=error)


def _plain(name: str, value: Any) -> Value:
    """value as JSON holds it; numpy's scalars become Python's. NaN and infinity are no measures."""
    value = value.item() if hasattr(value, "item") else value
    if value is not None and not isinstance(value, bool | int | float | str):
        raise DataError(f"measure {name!r} is a {type(value).__name__}, must be a number, a text, true, false or null")
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"measure {name!r} is {value}, must be a finite number, or null where there is none")
    return value


def _of_type(value: Any, wanted: type) -> Any:
    if type(value) is not wanted:
        raise TypeError(f"{str(value)[:40]!r} is a {type(value).__name__}, must be a {wanted.__name__}")
    return value


def _fraction(value: Any) -> Fraction:
    text = _of_type(value, str)
    if len(text) > 80 or "e" in text.lower():  # Fraction("1e999999999") would fill the memory
        raise ValueError(f"{text[:40]!r} must be like 1001/30000 or 12.5")
    return Fraction(text)
