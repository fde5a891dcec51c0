"""Video files to frames: read whole, stream, read the last frames, probe. vdit.video.write writes them.

What counts as a frame is what a player shows: edit lists and discarded frames are obeyed, and times
are those of presentation. What a frame looks like is settled in vdit.video.convert (colour, HDR,
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

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vdit.errors import VideoError
from vdit.pixels import Clip
from vdit.video.convert import MAX_FRAME_PIXELS, Fit, FrameConverter, Size, check_size, orientation_of, square_size
from vdit.video.source import Shown, Source, decoding, name_of
from vdit.video.write import encode_bytes, write_image, write_video

__all__ = [
    "MAX_FRAME_PIXELS",
    "Reading",
    "VideoInfo",
    "Window",
    "encode_bytes",
    "frame_numbers",
    "iter_frames",
    "probe",
    "read_tail",
    "read_video",
    "write_image",
    "write_video",
]

OnError = Literal["raise", "keep"]
_MARGIN = 2.0  # seconds read before where the last frames should begin: containers round, and claim too much


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Which frames of a video are wanted.

    fps: one for each 1 / fps seconds, the one on screen then; None for each frame once. start: seconds from the file's
    first frame. duration: seconds from there; None reads to the end. max_frames: at most so many; None for all.
    """

    fps: float | None = None
    start: float = 0.0
    duration: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise VideoError(f"fps is {self.fps}, must be above 0 and at most 1000, or None for every frame")
        if not 0 <= self.start < math.inf:
            raise VideoError(f"start is {self.start}, must be a number of seconds from 0 up")
        if self.duration is not None and not self.duration > 0:
            raise VideoError(f"duration is {self.duration}, must be above 0 seconds, or None for all")
        if self.max_frames is not None and self.max_frames < 1:
            raise VideoError(f"max_frames is {self.max_frames}, must be at least 1, or None for all")

    @property
    def stop(self) -> float:
        """Seconds from the file's first frame; infinity for its end."""
        return math.inf if self.duration is None else self.start + self.duration

    @property
    def most(self) -> float:
        """Frames; infinity for all."""
        return math.inf if self.max_frames is None else self.max_frames

    def choose(self, shown: Iterator[Shown], tick: float) -> Iterator[tuple[float, Any]]:
        """(time, frame) of each frame wanted, a frame as often as the grid meets it."""
        count, held = 0, None
        for now in shown:
            if held is not None:
                for item in self._during(held, now.time, count, tick):
                    yield item
                    count += 1
            if count >= self.most or now.time >= self.stop - tick:
                return
            held = now
            if self.fps is None and count + 1 >= self.most and now.time >= self.start:
                break  # the last one wanted: what follows it need not decode
        if held is not None:
            yield from self._during(held, held.time + held.length, count, tick)

    def _during(self, held: Shown, until: float, count: int, tick: float) -> Iterator[tuple[float, Any]]:
        if self.fps is None:
            if until > self.start + tick:
                yield held.time, held.frame
            return
        for k in range(count, count + max(0, math.ceil((until - self.start) * self.fps)) + 1):
            time = self.start + k / self.fps
            if time + tick >= until or time >= self.stop - tick or k >= self.most:
                return
            yield k / self.fps, held.frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(Window):
    """How a video is read: which frames, of what size, and what is done about damage.

    size: (height, width), or the length of the short side; None keeps the displayed size. fit: "cover" crops frames to
    the shape of `size`, "stretch" distorts them. background: RGB behind transparent pixels. on_error: "raise", or
    "keep" the frames before damage. threads: of the decoder; 0 lets it choose. Callers that read many files at once
    want 1.
    """

    size: Size | None = None
    fit: Fit = "cover"
    background: tuple[int, int, int] = (255, 255, 255)
    on_error: OnError = "raise"
    threads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_error not in ("raise", "keep"):
            raise VideoError(f'on_error is {self.on_error!r}, must be "raise" or "keep"')
        check_size(self.size, self.fit)


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
    path: str | Path | bytes, reading: Reading | None = None, **options: Any
) -> Iterator[tuple[float, np.ndarray]]:
    """Streams what is on screen in [start, start + duration).

    Args:
        path: a video file, or its bytes.
        reading: how it is read; None is the default.
        options: fields of `Reading` (fps, start, duration, max_frames, size, fit, background, on_error, threads) that
            replace those of `reading`.

    Returns:
        An iterator of (seconds from the first frame given out, uint8 [h w 3]).

    Raises:
        VideoError: an option is out of range, at once; the file cannot be read, while it is.
    """
    return _stream(path, dataclasses.replace(reading or Reading(), **options))


def read_video(
    path: str | Path | bytes, reading: Reading | None = None, *, max_bytes: int = 4 * 2**30, **options: Any
) -> Clip:
    """Reads a whole clip.

    Args:
        path: a video file, or its bytes.
        reading: how it is read; None is the default.
        max_bytes: bound of the decoded size.
        options: fields of `Reading` that replace those of `reading`:
            fps: resample to this rate by time; None keeps the file's frames.
            start: seconds from the beginning.
            duration: seconds; None reads to the end.
            max_frames: at most so many frames; None for all.
            size: (height, width), or the length of the short side; None keeps the displayed size.
            fit: "cover" crops frames to the shape of `size`, "stretch" distorts them.
            background: RGB behind transparent pixels.
            on_error: "raise", or "keep" the frames before damage.
            threads: of the decoder.

    Returns:
        A Clip: frames uint8 [t h w 3], times in seconds from 0, and fps: the one asked for, else the container's
        average where it agrees to 1% with the frames' times, else theirs.

    Raises:
        VideoError: the file cannot be read, holds no such frames, or is larger than max_bytes.

    Example:
        clip = vdit.read_video("in.mp4", fps=8, size=(64, 96), max_frames=17)
    """
    reading = dataclasses.replace(reading or Reading(), **options)
    declared: list[float | None] = []
    times, frames = [], []
    for time, frame in _stream(path, reading, declared):
        times.append(time)
        frames.append(frame)
        if len(frames) * frame.nbytes > max_bytes:
            raise VideoError(
                f"{name_of(path)}: decodes to more than max_bytes = {max_bytes} after {len(frames)} frames of"
                f" {frame.shape[0]}x{frame.shape[1]}: give size, duration or max_frames, or use iter_frames"
            )
    return make_clip(times, frames, fps=reading.fps, declared=declared[0])


def _stream(
    path: str | Path | bytes, reading: Reading, declared: list[float | None] | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """As `iter_frames`. declared: a list to which the container's rate is appended."""
    with decoding(path), Source(path, threads=reading.threads) as source:
        if declared is not None:
            declared.append(source.rate)
        convert = FrameConverter(
            size=reading.size, fit=reading.fit, background=reading.background, pixel_aspect=source.pixel_aspect
        )
        first, last, image = None, None, None
        shown = source.frames(start=reading.start, keep=reading.on_error == "keep")
        for time, frame in reading.choose(shown, source.tick):
            if frame is not last:
                last, image = frame, convert(frame)
            first = time if first is None else first
            yield time - first, image
        if first is None:
            raise VideoError(f"{source.name}: start = {reading.start} s is past its end at {source.end:.3f} s")


def read_tail(path: str | Path, frames: int, reading: Reading | None = None, **options: Any) -> Clip:
    """The last frames of what `read_video` reads with the same arguments.

    Begins to decode a little before them where the file can be sought, and never holds more frames than these.

    Args:
        path: a video file.
        frames: how many; fewer are returned if there are no more.
        reading: how it is read, without max_frames; None is the default.
        options: fields of `Reading` that replace those of `reading`.

    Returns:
        A Clip; its times begin at 0.

    Raises:
        VideoError: `frames` is below 1, max_frames is given, or as of `read_video`.
    """
    if frames < 1:
        raise VideoError(f"frames is {frames}, must be at least 1")
    reading = dataclasses.replace(reading or Reading(), **options)
    if reading.max_frames is not None:
        raise VideoError(f"max_frames is {reading.max_frames}, must be None for the last frames: give duration")
    info = probe(path)
    late = _late_start(frames, reading, info)
    kept = collections.deque(maxlen=frames)
    for begin in (late, reading.start):
        length = None if reading.duration is None else reading.stop - begin
        try:
            kept.extend(iter_frames(path, reading, start=begin, duration=length))
        except VideoError:
            if begin == reading.start:
                raise
            kept.clear()  # where the container lies about its end, reading from the front tells why
        if len(kept) == frames or begin == reading.start:
            break
        kept.clear()
    times = np.array([time for time, _ in kept])
    return make_clip(times - times[0], [frame for _, frame in kept], fps=reading.fps, declared=info.fps)


def _late_start(frames: int, reading: Reading, info: VideoInfo) -> float:
    """From when to read for the last `frames`: `start`, or later, on the grid that `fps` lays from it."""
    rate, start = reading.fps or info.fps, reading.start
    if not rate:
        return start
    late = min(reading.stop, info.duration or 0.0) - start - frames / rate - _MARGIN
    if late <= 0:
        return start
    return start + (math.floor(late * reading.fps) / reading.fps if reading.fps else late)


def frame_numbers(path: str | Path, window: Window) -> tuple[np.ndarray, int]:
    """Which frames of a file a window takes. Decodes all of the file, converts nothing, holds one frame.

    Args:
        path: a video file.
        window: which frames are wanted.

    Returns:
        (the frames that `iter_frames` gives out, int64 [t], counted from 0; how many frames the file holds).
    """
    with decoding(path), Source(path) as source:
        count = itertools.count()
        numbered = (dataclasses.replace(shown, frame=next(count)) for shown in source.frames())
        wanted = [number for _, number in window.choose(numbered, source.tick)]
        for _ in numbered:
            pass
        return np.array(wanted, np.int64), next(count)


def make_clip(times: Sequence[float], frames: list[np.ndarray], *, fps: float | None, declared: float | None) -> Clip:
    """A clip of frames uint8 [h w 3], a list that is emptied, and their times [t] in seconds from the first.

    fps: the rate asked for; declared: the container's. Where none was asked for, it is the container's if that
    agrees to 1% with the times, else theirs.
    """
    rate = fps or _rate(np.asarray(times), declared)
    return Clip(frames=_gather(frames), times=np.asarray(times, np.float64), fps=float(rate))


def _gather(frames: list[np.ndarray]) -> np.ndarray:
    """Stacks [h w 3] frames, letting go of each as it is copied so that the peak stays near one clip."""
    out = np.empty((len(frames), *frames[0].shape), np.uint8)
    for i in range(len(frames)):
        out[i], frames[i] = frames[i], None
    return out


def _rate(times: np.ndarray, declared: float | None) -> float:
    if len(times) < 2:
        return declared or 25.0
    measured = (len(times) - 1) / times[-1]
    return declared if declared and abs(declared / measured - 1) < 0.01 else measured
