"""One pass over a video: small pictures for analysis, with exact times, beside the decoder's own frame.

Every stage that looks at pixels reads them from here, so a file is decoded once for all of them (scan.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from vdit.errors import VideoError
from vdit.video.convert import FrameConverter, orientation_of, square_size
from vdit.video.source import Source, decoding

ANALYSIS_SIDE = 160  # pixels of the longer side: motion, cuts and hashes need no more


@dataclasses.dataclass(frozen=True)
class AnalysisFrame:
    """A decoded frame.

    index: from 0, counted from the first frame of the reading. time, end: seconds from the file's first frame, exact;
    the frame is on screen in [time, end), where `end` is by the frame's own word. image: uint8 [h w 3] RGB as
    displayed, its longer side `ANALYSIS_SIDE`. raw: the decoder's frame, valid until the next frame is asked for.
    """

    index: int
    time: Fraction
    end: Fraction
    image: np.ndarray
    raw: av.VideoFrame

    @functools.cached_property
    def luma(self) -> np.ndarray:
        """uint8 [h w] at the stored size, without rotation: what blur, blocks and interlacing are measured on."""
        return luma_of(self.raw)


def read_frames(
    path: str, *, start: Fraction = Fraction(0), end: Fraction | None = None, threads: int = 1
) -> Iterator[AnalysisFrame]:
    """The frames of a video with start <= time < end, in order, one at a time.

    Args:
        path: a local file, or one in a bucket.
        start: seconds from the file's first frame.
        end: seconds; None for all.
        threads: of the decoder. 1 is best where each core has a worker of its own.

    Raises:
        VideoError: the file cannot be opened, is damaged or ends early; the frames before that were given out. Or it
            has no frame in [start, end).
    """
    with decoding(path), Source(path, threads=threads) as source:
        clock = source.stream.time_base or Fraction(1, 1000)
        convert, index, told, length = None, 0, None, clock
        for shown in source.frames(start=float(start)):
            time = _exact(shown.time, clock)
            if start and time < start:
                continue
            if end is not None and time >= end:
                break
            if convert is None:
                convert = _converter(shown.frame, source.pixel_aspect)
            if shown.length != told:
                told, length = shown.length, max(_exact(shown.length, clock), clock)
            yield AnalysisFrame(index, time, time + length, convert(shown.frame), shown.frame)
            index += 1
        if index == 0:
            raise VideoError(f"{path}: has no frame from {float(start):.3f} s on: cut the file again")


def luma_of(frame: av.VideoFrame) -> np.ndarray:
    """uint8 [h w]: brightness as stored, of a frame in any pixel format."""
    parts = frame.format.components
    planar = frame.format.name.startswith(("yuv", "gray", "nv")) and not frame.format.is_big_endian
    if not planar or parts[0].bits not in (8, 10, 12) or frame.planes[0].line_size < frame.width:
        return frame.reformat(format="gray").to_ndarray()
    plane, wide = frame.planes[0], parts[0].bits > 8
    pixels = np.frombuffer(plane, np.uint16 if wide else np.uint8)
    step = plane.line_size // (2 if wide else 1)
    if step < frame.width or pixels.size < step * frame.height:  # packed formats such as yuyv422 interleave chroma
        return frame.reformat(format="gray").to_ndarray()
    pixels = pixels[: step * frame.height].reshape(frame.height, step)[:, : frame.width]
    return (pixels >> (parts[0].bits - 8)).astype(np.uint8) if wide else pixels.copy()


def _converter(frame: av.VideoFrame, pixel_aspect: float) -> FrameConverter:
    height, width = orientation_of(frame).size(*square_size(frame.height, frame.width, pixel_aspect))
    ratio = min(1.0, ANALYSIS_SIDE / max(height, width))
    size = (max(8, round(height * ratio)), max(8, round(width * ratio)))
    return FrameConverter(size=size, fit="stretch", pixel_aspect=pixel_aspect)


def _exact(seconds: float, clock: Fraction) -> Fraction:
    """A time that was a whole number of ticks of the clock before it became a float."""
    one, second = clock.numerator, clock.denominator
    ticks = round(seconds * second / one)
    if abs(ticks * one / second - seconds) < 1e-7:
        return Fraction(ticks * one, second)
    return Fraction(seconds).limit_denominator(10**7)


def frames_from_array(frames: np.ndarray, fps: float) -> Iterator[AnalysisFrame]:
    """What `read_frames` would give of a video in memory: uint8 [t h w 3] RGB at `fps` frames a second."""
    rate = Fraction(fps).limit_denominator(1001)
    convert = None
    for index, image in enumerate(frames):
        raw = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
        convert = convert or _converter(raw, 1.0)
        yield AnalysisFrame(index, index / rate, (index + 1) / rate, convert(raw), raw)
