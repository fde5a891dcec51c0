"""An opened video file: decoded frames with their times, and what is wrong with it.

The one place that touches demuxers and decoders. Every failure of theirs leaves as a VideoError that
names the file, whatever exception it was: one bad file never ends a training. Containers are never
read after closing, and libav's log level is never set: with threaded decoders and corrupt input that
deadlocks.

Only the file itself is read. Playlists (HLS, DASH, concat, SDP, ...) name other files or addresses;
they are refused by their content, whatever their name. Three rules hold that, each alone: only the
self-contained formats of `_FORMATS` are opened, libav gets an open file without a name, and it may use
no protocol of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av

from vdit.errors import VditError, VideoError
from vdit.outputs import note_read
from vdit.paths import local_copy, open_regular
from vdit.video.convert import MAX_FRAME_PIXELS
from vdit.video.structure import cut_short, names_other_files

# Native decoders drop VP8's and VP9's alpha plane; libvpx gives it.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_TIMEOUT_S = 60.0
# Formats of FFmpeg that hold their pictures themselves. Not image2, mlv, vobsub, concat, hls, dash, ...: they open
# other files.
_FORMATS = (
    "apng,asf,av1,avi,dirac,dnxhd,dv,flv,gif,h261,h263,h264,hevc,ivf,jpegxl_anim,live_flv,m4v,matroska,mjpeg,mov,mpeg,"
    "mpeg1video,mpeg2video,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,swf,vc1,vvc,webm,wtv,yuv4mpegpipe,"
    "bmp_pipe,jpeg_pipe,pbm_pipe,pgm_pipe,png_pipe,ppm_pipe,tiff_pipe,webp_pipe"
)
_HEIF = {"heic", "heix", "heim", "heis", "hevc", "hevx"}
_AVIF = {"avif", "avis"}


@contextlib.contextmanager
def decoding(path: str | Path | bytes) -> Iterator[None]:
    """Around all that is done with a file: an exception that nobody foresaw becomes a VideoError that names the file.

    Decoders meet files that nobody has tried, and libraries raise ValueError, KeyError and more.
    """
    try:
        yield
    except VditError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise VideoError(
            f"{name_of(path)}: cannot be decoded ({type(error).__name__}: {reason}); write the file again"
        ) from error


def name_of(path: str | Path | bytes) -> str:
    """For messages."""
    return "<bytes>" if isinstance(path, bytes) else str(path)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A decoded frame, when it comes on screen and for how long by its own word (seconds)."""

    time: float
    length: float
    frame: av.VideoFrame


@contextlib.contextmanager
def open_container(path: str | Path | bytes) -> Iterator[av.container.InputContainer]:
    """A file as libav opens it, by the rules of this module; VideoError where it cannot be."""
    name = name_of(path)
    with contextlib.ExitStack() as closing:
        file = closing.enter_context(_opened(path, name))
        if kind := names_other_files(file):
            raise VideoError(
                f"{name}: is a playlist ({kind}), which names other files; they are never opened: give the video itself"
            )
        try:
            container = closing.enter_context(av.open(
                _Unnamed(file),
                metadata_errors="replace",
                options={"protocol_whitelist": "none", "format_whitelist": _FORMATS},
                timeout=_TIMEOUT_S,
            ))  # fmt: skip
        except av.ArgumentError as error:
            raise VideoError(
                f"{name}: of a format that is not read, or its header is damaged: give a whole .mp4, .mov, .webm, "
                ".mkv, .gif or the like"
            ) from error
        except (av.FFmpegError, OSError, UnicodeError) as error:
            raise VideoError(f"{name}: not a video that can be opened: {_reason(error)}") from error
        yield container


class Source:
    """A video file while it is open; a context manager.

    name: for messages. rate: declared frames per second; None for still pictures, or where it is not declared.
    duration: declared seconds or None. pixel_aspect: width over height of a stored pixel; within 1% it is 1.
    sound: whether there is any. streams: how many videos there are.
    tick: how far times may be off by rounding. end: where the frames read so far end, in seconds.
    """

    def __init__(self, path: str | Path | bytes, *, threads: int = 1):
        self.name = name_of(path)
        self._path, self._threads = path, threads
        self.end = 0.0
        self._open()
        if not isinstance(path, bytes):
            note_read(path)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _open(self) -> None:
        with contextlib.ExitStack() as closing:
            self._container = closing.enter_context(open_container(self._path))
            self._choose_stream()
            self._closing = closing.pop_all()

    def _choose_stream(self) -> None:
        videos = [s for s in self._container.streams.video if not s.disposition & _ATTACHED_PICTURE]
        if not videos:
            kinds = sorted({s.type for s in self._container.streams}) or ["nothing"]
            raise VideoError(f"{self.name}: holds no video, only {', '.join(kinds)}")
        self.sound = bool(self._container.streams.audio)
        self.stream = stream = self._moving(videos)
        self.streams = 1 if self._brands & _AVIF else len(videos)
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
        pipe = self._container.format.name.endswith("_pipe")
        if pipe or (self._brands & _AVIF and stream.frames == 1 and stream.duration is None):
            self.rate, self.duration = None, None  # a still picture; what is given there is made up
        aspect = float(stream.sample_aspect_ratio or 1)
        # Sizes rounded to even numbers give such: to stretch 332 rows to 333 would only blur them.
        self.pixel_aspect = 1.0 if abs(aspect - 1) < 0.01 else aspect

    @property
    def _brands(self) -> set[str]:
        """What an MP4-like file calls itself."""
        brands = self._container.metadata.get("compatible_brands", "")
        return {self._container.metadata.get("major_brand"), *(brands[k : k + 4] for k in range(0, len(brands), 4))}

    def _moving(self, videos: list[av.VideoStream]) -> av.VideoStream:
        """The stream to read: the first, but of an animated AVIF, which begins with a still picture, the animation."""
        if self._brands & _HEIF and not self._brands & _AVIF:
            raise VideoError(f"{self.name}: HEIF pictures are not read: write it as .jpg or .png")
        if not self._brands & _AVIF:
            return videos[0]
        most = max(stream.frames for stream in videos)
        color, *others = [stream for stream in videos if stream.frames == most]
        if most > 1 and others:
            raise VideoError(
                f"{self.name}: is an animated AVIF with transparency, which is not read: write it as .gif or .webm"
            )
        return color

    def frames(self, *, start: float = 0.0, keep: bool = False) -> Iterator[Shown]:
        """Decodes from the frame on screen at `start` (or a little before it) to the end.

        Raises VideoError at the first damage and where the file ends early; with keep it stops there.
        """
        return _Reading(self, keep).run(self._seek(start) if start > 0 else 0.0)

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
        self._closing.close()
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


class _Unnamed:
    """An open file as libav sees it. It has no name, for a name such as "a%d.png" stands for others."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


_ATTACHED_PICTURE = av.stream.Disposition.attached_pic
_MEND = "write the file again (from Python, read_video's on_error reads what comes before)"


def _opened(path: str | Path | bytes, name: str) -> BinaryIO:
    if isinstance(path, bytes):
        if not path:
            raise VideoError(f"{name}: empty, 0 bytes")
        return io.BytesIO(path)
    file = local_copy(path, error=VideoError)
    if not file.exists():
        raise VideoError(f"{name}: no such file")
    if not file.is_file():
        raise VideoError(f"{name}: not a regular file")
    if file.stat().st_size == 0:
        raise VideoError(f"{name}: empty, 0 bytes")
    return open_regular(file, error=VideoError)


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
