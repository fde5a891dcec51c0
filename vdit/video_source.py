"""An opened video file: decoded frames with their times, and what is wrong with it.

The one place that touches demuxers and decoders. Every failure of theirs leaves as a VideoError that
names the file. Containers are never read after closing, and libav's log level is never set: with
threaded decoders and corrupt input that deadlocks.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import av

from vdit.errors import VideoError
from vdit.video_convert import MAX_FRAME_PIXELS
from vdit.video_structure import cut_short

# Native decoders drop VP8's and VP9's alpha plane; libvpx gives it.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True)
class Shown:
    """A decoded frame, when it comes on screen and for how long by its own word (seconds)."""

    time: float
    length: float
    frame: av.VideoFrame


class Source:
    """A video file while it is open; a context manager.

    name: for messages. rate: declared frames per second or None. duration: declared seconds or None.
    tick: how far times may be off by rounding. end: where the frames read so far end, in seconds.
    """

    def __init__(self, path: str | Path | bytes, *, threads: int = 1):
        self.name = "<bytes>" if isinstance(path, bytes) else str(path)
        self._path, self._threads = path, threads
        self.end = 0.0
        self._open()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> None:
        try:
            self._container = av.open(
                _openable(self._path, self.name),
                metadata_errors="replace",
                # A text file renamed to .mp4 may parse as a playlist: it must not reach the network.
                options={"protocol_whitelist": "file"},
                timeout=_TIMEOUT_S,
            )
        except (av.FFmpegError, OSError, UnicodeError) as error:
            raise VideoError(f"{self.name}: not a video that can be opened: {_reason(error)}") from error
        try:
            self._choose_stream()
        except BaseException:
            self._container.close()
            raise

    def _choose_stream(self) -> None:
        videos = [s for s in self._container.streams.video if not s.disposition & _ATTACHED_PICTURE]
        if not videos:
            kinds = sorted({s.type for s in self._container.streams}) or ["nothing"]
            raise VideoError(f"{self.name}: holds no video, only {', '.join(kinds)}")
        self.stream = stream = videos[0]
        context = stream.codec_context
        if context is None:
            raise VideoError(f"{self.name}: no decoder for its video codec is in this build of PyAV")
        if context.width * context.height > MAX_FRAME_PIXELS:
            declared = f"{context.width}x{context.height}"
            raise VideoError(
                f"{self.name}: declares frames of {declared}, the most is {MAX_FRAME_PIXELS} pixels"
            )
        context.thread_count = self._threads
        context.thread_type = "AUTO"
        self._decoder = _alpha_decoder(stream) or context
        clock = float(stream.time_base or 0)
        self.tick = min(max(clock, 1e-6), 5e-3)
        # Some containers (FLV, Matroska without a default duration) give their clock as the rate.
        rates = [float(r) for r in (stream.average_rate, stream.guessed_rate) if r]
        self.rate = next((r for r in rates if 0 < r <= 300), None)
        self.duration = _duration(self._container, stream)

    def frames(self, *, start: float = 0.0, keep: bool = False) -> Iterator[Shown]:
        """Decodes from the frame on screen at `start` (or a little before it) to the end.

        Raises VideoError at the first damage and where the file ends early; with keep it stops there.
        """
        reading = _Reading(self, keep)
        if start > 0 and (sought := self._seek(start)):
            yield from reading.run(sought)
        else:
            yield from reading.run(0.0)

    def _seek(self, start: float) -> float:
        """Moves to a key frame at or before `start`; its time, or 0.0 after starting over."""
        try:
            origin = next(self._decoded()).pts
            clock = self.stream.time_base
            self._container.seek(origin + int(start / clock), stream=self.stream)
            self._decoder.flush_buffers()
            landed = next(self._decoded())
            sought = float((landed.pts - origin) * clock)
            if landed.key_frame and 0 < sought <= start + self.tick:
                self._container.seek(origin + int(start / clock), stream=self.stream)
                self._decoder.flush_buffers()
                return sought
        except (av.FFmpegError, StopIteration, TypeError):
            pass  # an index that lies, times that are missing: reading from the front always works
        self._container.close()
        self._open()
        return 0.0

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Frames as the decoder gives them; notes how far the packets of all streams reach."""
        self.packets_end = 0.0
        for packet in self._container.demux():
            if packet.pts is not None:
                reach = (packet.pts + (packet.duration or 0)) * packet.time_base
                self.packets_end = max(self.packets_end, float(reach))
            # Not packet.stream_index: packets that flush the decoders at the end carry 0 for every stream.
            if packet.stream.index == self.stream.index:
                yield from self._decoder.decode(packet)

    def shortfall(self, count: int, *, whole: bool) -> str | None:
        """What is missing after all was read: a claim of the container that the frames do not meet."""
        stream, container = self.stream, self._container
        seconds = f"{self.end:.2f} of {self.duration:.2f} s" if self.duration else f"{self.end:.2f} s"
        frames = f"{count} of {stream.frames}" if whole and stream.frames > count else str(count)
        if stream.duration is not None:
            declared, reached = float(stream.duration * stream.time_base), self.end
        elif container.duration is not None:
            declared, reached = container.duration / av.time_base, self.packets_end
        else:
            declared, reached = 0.0, self.end
        if declared - reached > max(2.5 / (self.rate or 25.0), 0.02 * declared):
            return f"{frames} frames, {seconds}"
        indexed = stream.frames >= count and container.format.name != "gif"
        cut = None if indexed else cut_short(self._path)
        return f"{frames} frames, {seconds}; {cut}" if cut else None


class _Reading:
    """One pass over a source: times made to rise, damage and early ends found."""

    def __init__(self, source: Source, keep: bool):
        self._source, self._keep = source, keep
        self._step = 1 / (source.rate or 25.0)

    def run(self, sought: float) -> Iterator[Shown]:
        source, count = self._source, 0
        clock, before, shift, origin = float(source.stream.time_base or 0), None, 0.0, None
        try:
            for frame in source._decoded():
                if frame.is_corrupt and not self._keep:
                    damage = f"{count} frames were read, then one that the decoder flags as damaged"
                    raise VideoError(f"{source.name}: {damage}; {_MEND}")
                if frame.pts is None:
                    time = sought if before is None else before + self._step
                else:
                    origin = frame.pts if origin is None else origin
                    time = sought + (frame.pts - origin) * clock + shift
                if before is not None and time <= before:
                    late = before - time
                    time = before + (self._step if late >= 1.0 else 1e-4)
                    shift += late + self._step if late >= 1.0 else 0.0
                length = (frame.duration or 0) * clock or self._step
                before, source.end, count = time, time + length, count + 1
                yield Shown(time, length, frame)
        except av.FFmpegError as error:
            if not (self._keep and count):
                read = f"{count} frames were read ({source.end:.2f} s), then: {_reason(error)}; {_MEND}"
                reason = read if count else f"no frame can be decoded: {_reason(error)}"
                raise VideoError(f"{source.name}: {reason}") from error
            return
        if not count:
            raise VideoError(f"{source.name}: holds a video stream without a single frame")
        missing = None if self._keep else source.shortfall(count, whole=sought == 0)
        if missing:
            raise VideoError(f"{source.name}: ends early, at {missing}; {_MEND}")


_ATTACHED_PICTURE = av.stream.Disposition.attached_pic
_MEND = 'write the file anew, or read what comes before with on_error="keep"'


def _openable(path: str | Path | bytes, name: str) -> str | io.BytesIO:
    if isinstance(path, bytes):
        if not path:
            raise VideoError(f"{name}: empty, 0 bytes")
        return io.BytesIO(path)
    file = Path(path)
    if not file.exists():
        raise VideoError(f"{name}: no such file")
    if not file.is_file():
        raise VideoError(f"{name}: not a regular file")
    if file.stat().st_size == 0:
        raise VideoError(f"{name}: empty, 0 bytes")
    # The prefix keeps names with a colon, a leading dash or the like from being read as a protocol.
    return f"file:{file.absolute()}"


def _alpha_decoder(stream: av.VideoStream) -> av.VideoCodecContext | None:
    name = _ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None
    decoder = av.CodecContext.create(name, "r")
    decoder.thread_count = stream.codec_context.thread_count
    return decoder


def _duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[0].lower() + text[1:]
