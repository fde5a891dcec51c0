"""Video files to frames: read, stream, probe. `write_video` and `encode_bytes` live in video_write.

What counts as a frame is what a player shows: edit lists and discarded frames are obeyed, and times
are those of presentation. What a frame looks like is settled in video_convert (colour, HDR,
transparency, rotation, size). The rules of reading:

- Time starts at 0 with the first frame shown. Time that stands still or steps back by less than a
  second is moved 0.1 ms past the frame before; a larger step back is taken for a spliced recording
  and goes on one frame later. So times always rise.
- A clip's end is its last frame's time plus that frame's duration.
- With `fps`, frame k is the one on screen at time k / fps: the last whose time is at most k / fps, up
  to one tick of the stream's clock (5 ms at most), because containers round times to ticks.
- Nothing is short in silence. By default a VideoError tells of data that does not decode, of frames
  that the decoder flags as damaged, and of a file that ends before its container says;
  `on_error="keep"` returns the frames up to there. A file without any frame is always an error.
- Memory: one frame is held at a time; frames above 8192 x 8192 are refused, and so is a clip that
  decodes to more than `max_bytes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from vdit.errors import VideoError
from vdit.types import Clip
from vdit.video.convert import MAX_FRAME_PIXELS, Fit, FrameConverter, Size, orientation_of, square_size
from vdit.video.source import Source, decoding, name_of
from vdit.video.window import Window, make_clip
from vdit.video.write import encode_bytes, write_image, write_video

__all__ = [
    "MAX_FRAME_PIXELS",
    "VideoInfo",
    "encode_bytes",
    "iter_frames",
    "probe",
    "read_video",
    "write_image",
    "write_video",
]

OnError = Literal["raise", "keep"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a container and its first frame say; frames, fps and duration are claims, not counts.

    width, height: pixels as displayed, made square (`pixel_aspect`), after rotation.
    rotation: degrees counterclockwise (-90, 0, 90 or 180) that the stored frame is turned by.
    mirrored: whether left and right are exchanged before that turn.
    fps: average rate, or None for a still picture and where the container gives none that makes sense.
    duration: seconds, or None. frames: the declared count, or None.
    pixel_aspect: width over height of one stored pixel.
    hdr: None, "pq" or "hlg". interlaced: whether the first frame is two half pictures, which are not woven apart.
    sound: whether the file has sound, which is not read. streams: how many videos it has; the first is read.
    """

    width: int
    height: int
    rotation: int
    mirrored: bool
    fps: float | None
    duration: float | None
    frames: int | None
    codec: str
    pixel_format: str
    pixel_aspect: float
    hdr: str | None
    interlaced: bool
    sound: bool
    streams: int


def probe(path: str | Path | bytes) -> VideoInfo:
    """Describes a video from its container and its first frame."""
    with decoding(path), Source(path) as source:
        frame = next(source.frames(keep=True)).frame
        stream = source.stream
        orientation = orientation_of(frame)
        height, width = orientation.size(*square_size(frame.height, frame.width, source.pixel_aspect))
        return VideoInfo(
            width=width,
            height=height,
            rotation=orientation.rotation,
            mirrored=orientation.mirrored,
            fps=source.rate,
            duration=source.duration,
            frames=stream.frames or None,
            codec=stream.codec_context.codec.canonical_name,
            pixel_format=frame.format.name,
            pixel_aspect=source.pixel_aspect,
            hdr={16: "pq", 18: "hlg"}.get(int(frame.color_trc)),
            interlaced=bool(frame.interlaced_frame),
            sound=source.sound,
            streams=source.streams,
        )


def iter_frames(
    path: str | Path | bytes,
    *,
    fps: float | None = None,
    start: float = 0.0,
    duration: float | None = None,
    max_frames: int | None = None,
    size: Size | None = None,
    fit: Fit = "cover",
    background: tuple[int, int, int] = (255, 255, 255),
    on_error: OnError = "raise",
    threads: int = 1,
) -> Iterator[tuple[float, np.ndarray]]:
    """Streams (time, uint8 [h w 3]) of what is on screen in [start, start + duration).

    path: a file, or the bytes of one. Times are seconds from the first frame given out.
    fps: resample by time; None gives each frame once. start: seconds from the file's first frame.
    size: (height, width) or the shorter side, with fit; None keeps the displayed size.
    threads: of the decoder; 0 lets it choose. Callers that read many files at once want 1.
    """
    window = Window.checked(fps=fps, start=start, duration=duration, max_frames=max_frames)
    if on_error not in ("raise", "keep"):
        raise VideoError(f'on_error is {on_error!r}, must be "raise" or "keep"')
    convert = FrameConverter(size=size, fit=fit, background=background)
    return _stream(path, window, convert, on_error, threads)


def read_video(
    path: str | Path | bytes,
    *,
    fps: float | None = None,
    start: float = 0.0,
    duration: float | None = None,
    max_frames: int | None = None,
    size: Size | None = None,
    fit: Fit = "cover",
    background: tuple[int, int, int] = (255, 255, 255),
    on_error: OnError = "raise",
    threads: int = 1,
    max_bytes: int = 4 * 2**30,
) -> Clip:
    """Reads a whole clip.

    Args:
        path: a video file, or its bytes.
        fps: resample to this rate by time; None keeps the file's frames.
        start: seconds from the beginning.
        duration: seconds; None reads to the end.
        max_frames: at most so many frames; None for all.
        size: (height, width), or the length of the short side; None keeps the displayed size.
        fit: "cover" crops frames to the shape of `size`, "stretch" distorts them.
        background: RGB behind transparent pixels.
        on_error: "raise", or "keep" the frames before damage.
        threads: of the decoder.
        max_bytes: bound of the decoded size.

    Returns:
        A Clip: frames uint8 [t h w 3], times in seconds from 0, and fps: the one asked for, else the container's
        average where it agrees to 1% with the frames' times, else theirs.

    Raises:
        VideoError: the file cannot be read, holds no such frames, or is larger than max_bytes.

    Example:
        clip = vdit.read_video("in.mp4", fps=8, size=(64, 96), max_frames=17)
    """
    window = Window.checked(fps=fps, start=start, duration=duration, max_frames=max_frames)
    if on_error not in ("raise", "keep"):
        raise VideoError(f'on_error is {on_error!r}, must be "raise" or "keep"')
    convert = FrameConverter(size=size, fit=fit, background=background)
    declared: list[float | None] = []
    times, frames = [], []
    for time, frame in _stream(path, window, convert, on_error, threads, declared):
        times.append(time)
        frames.append(frame)
        if len(frames) * frame.nbytes > max_bytes:
            raise VideoError(
                f"{name_of(path)}: decodes to more than max_bytes = {max_bytes} after {len(frames)} frames of"
                f" {frame.shape[0]}x{frame.shape[1]}: give size, duration or max_frames, or use iter_frames"
            )
    return make_clip(times, frames, fps=fps, declared=declared[0])


def _stream(path, window, convert, on_error, threads, declared=None) -> Iterator[tuple[float, np.ndarray]]:
    with decoding(path), Source(path, threads=threads) as source:
        if declared is not None:
            declared.append(source.rate)
        convert.pixel_aspect = source.pixel_aspect
        first, last, image = None, None, None
        shown = source.frames(start=window.start, keep=on_error == "keep")
        for time, frame in window.choose(shown, source.tick):
            if frame is not last:
                last, image = frame, convert(frame)
            first = time if first is None else first
            yield time - first, image
        if first is None:
            raise VideoError(f"{source.name}: start = {window.start} s is past its end at {source.end:.3f} s")
