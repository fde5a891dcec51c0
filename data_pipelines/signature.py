"""A clip's signature: small grey pictures with their times, by which near-duplicates are found (duplicates.py)."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

import cv2
import numpy as np

from vdit.errors import DataError

HELD = (45, 80)  # (h, w) of the thumbnails that are held until a clip's bars are known
SIDE = 16  # of the square pictures in a signature
_MOST = 4096  # pictures


def gray_thumb(gray: np.ndarray) -> np.ndarray:
    """uint8 [45 80] of a grey picture of any shape, stretched."""
    return cv2.resize(gray, HELD[::-1], interpolation=cv2.INTER_AREA)


@dataclasses.dataclass(frozen=True)
class Signature:
    """times: float32 [n], seconds from the clip's start. pictures: uint8 [n 16 16], without bars."""

    times: np.ndarray
    pictures: np.ndarray

    @classmethod
    def of(cls, times: Sequence[float], thumbs: Sequence[np.ndarray], bars: Sequence[float]) -> Signature:
        """From held thumbnails and the clip's bars (top, bottom, left, right; shares of the frame)."""
        height, width = HELD
        top, bottom, left, right = bars[0] * height, (1 - bars[1]) * height, bars[2] * width, (1 - bars[3]) * width
        fine = 4 * SIDE  # sampled finely, then averaged: bars end between pixels
        x = left + (np.arange(fine, dtype=np.float32) + 0.5) * (right - left) / fine - 0.5
        y = top + (np.arange(fine, dtype=np.float32) + 0.5) * (bottom - top) / fine - 0.5
        x, y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
        pictures = [cv2.resize(cv2.remap(thumb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), (SIDE, SIDE),
                               interpolation=cv2.INTER_AREA) for thumb in thumbs[:_MOST]]  # fmt: skip
        return cls(np.asarray(times[:_MOST], np.float32), np.asarray(pictures, np.uint8).reshape(-1, SIDE, SIDE))

    def to_bytes(self) -> bytes:
        """The signature as bytes: a count, the times, the pictures."""
        return struct.pack("<I", len(self.times)) + self.times.astype("<f4").tobytes() + self.pictures.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Signature:
        """The signature of `to_bytes`.

        Raises:
            DataError: these bytes are no signature.
        """
        n = struct.unpack_from("<I", data)[0] if len(data) >= 4 else -1
        if not 0 <= n <= _MOST or len(data) != 4 + n * (4 + SIDE * SIDE):
            raise DataError(f"a clip's signature of {len(data)} bytes is damaged: measure the clip again")
        times = np.frombuffer(data, "<f4", n, 4)
        return cls(times, np.frombuffer(data, np.uint8, n * SIDE * SIDE, 4 + 4 * n).reshape(n, SIDE, SIDE))
