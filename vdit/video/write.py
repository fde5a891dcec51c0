"""Frames to a video file: .mp4 (H.264), .webm (VP9), .gif, .mkv (FFV1); the file appears whole or not at all.

- Frames are uint8 in 0..255 or floats in [-1, 1], RGB, and come as an array [t h w 3], or as any
  iterable of frames [h w 3] or chunks [t h w 3]; an iterable is encoded as it comes, in flat memory.
- mp4 and webm are BT.709, limited range, and tagged so; readers that obey the tags get the colours
  back. Both are 4:2:0, as every browser plays, but for one case: 4:2:0 H.264 has no odd sizes, so an
  mp4 with an odd side is 4:4:4 (which Chromium plays), and keeps its exact size.
- mkv is lossless: reading it gives the bytes that were written. Browsers do not play it.
- gif has a palette of its own for each frame, and times in 1/100 s, so at most 50 frames a second.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from vdit import paths
from vdit.errors import ShapeError, VideoError, reason
from vdit.outputs import check_output, files_given, note_written, write_whole
from vdit.pixels import check_pixels
from vdit.video.sound import SoundPart, add_sound

_BT709, _LIMITED, _FULL = 1, 1, 2
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Format:
    container: str
    codec: str
    options: dict[str, str]
    container_options: dict[str, str] = dataclasses.field(default_factory=dict)


_FORMATS = {
    "mp4": _Format(
        container="mp4",
        codec="libx264",
        options={"crf": "17", "preset": "medium"},
        container_options={"movflags": "+faststart"},
    ),
    "webm": _Format(
        container="webm",
        codec="libvpx-vp9",
        options={"crf": "20", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    ),
    "gif": _Format(container="gif", codec="gif", options={}),
    "mkv": _Format(container="matroska", codec="ffv1", options={"level": "3", "slicecrc": "1"}),
}

# x264 chooses by threads, and its assembly for macroblock trees by what lies in memory.
_REPEATABLE = {"x264-params": "mbtree=0", "preset": "veryfast", "crf": "15"}


def write_video(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float | Fraction = 24,
    *,
    sound: Callable[[], Sequence[SoundPart]] | None = None,
    metadata: Mapping[str, str] | None = None,
    repeatable: bool = False,
) -> None:
    """Writes a .mp4, .webm, .gif or lossless .mkv file. It appears, or replaces an older one, when it is complete.

    Args:
        path: the file; its folder must exist.
        frames: [t h w 3], uint8 or float in [-1, 1], or an iterable of frames or of arrays of them, encoded as they
            come.
        fps: frames per second.
        sound: called once all frames have come; gives the file's sound, in step with them (vdit.video.sound).
        metadata: texts in the file's own metadata: "title", "comment". A .gif has none.
        repeatable: the same frames always give the same bytes, on one thread; an .mp4 is then encoded with x264's
            quick settings at a finer step: about the same quality in half the time, in a larger file. Otherwise x264
            gives other bytes at times.

    Raises:
        OutputError: this process has read that file (read_video, ...) and did not write it: give another name.
        VideoError: the format or the frames cannot be encoded.

    Example:
        vdit.write_video("out.mp4", videos[0], fps=8)
    """
    path = paths.path(path)
    kind = _kind(path.suffix.lower().lstrip("."), str(path))
    rate = _checked_rate(fps, kind)
    if isinstance(path, Path) and not path.parent.is_dir():
        raise VideoError(f"{path}: folder {path.parent} does not exist")
    check_output(path, given=files_given())
    try:
        form = kind, rate, metadata, repeatable
        write_whole(path, lambda part: _write(part, path, form, _frames(frames), sound), replace=True)
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be encoded: {reason(error)}") from error
    note_written(path)


def write_image(path: str | Path, frame: np.ndarray) -> None:
    """Writes one frame [h w 3] (uint8, or float in [-1, 1]) to a .png or .jpg file, whole or not at all.

    The folder must exist. An existing file is replaced, as `write_video` does.

    Raises:
        VideoError: the frame has another type, range or values that are not finite, or the file cannot be written.
    """
    path = paths.path(path)
    pixels = next(_frames(np.asarray(frame)[None]))
    quality = {} if path.suffix.lower() == ".png" else {"quality": 95}
    check_output(path, given=files_given())
    try:
        write_whole(path, lambda part: Image.fromarray(pixels).save(part, **quality), replace=True)
    except OSError as error:
        raise VideoError(f"{path}: cannot be written: {reason(error)}") from error
    note_written(path)


def encode_bytes(
    frames: np.ndarray | Iterable[np.ndarray], fps: float | Fraction = 24, format: str = "mp4"
) -> bytes:
    """The bytes of the file that `write_video` would write; format is "mp4", "webm", "gif" or "mkv"."""
    kind = _kind(format, "<bytes>")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video.{kind}"
        write_video(path, frames, fps)
        return path.read_bytes()


def write_growing(
    path: str | Path, frames: Iterable[np.ndarray], fps: float | Fraction = 24
) -> Iterator[np.ndarray]:
    """Gives frames on, and writes them meanwhile to an .mp4 that can be played while it grows.

    A fragment follows every frame. The file is there from the first frame on, and whole once all have been taken.

    Args:
        path: the file; its folder must exist.
        frames: float32 in [-1, 1] or uint8, [t h w 3], some frames at a time; all of one size.
        fps: frames per second.

    Returns:
        The same pieces.

    Raises:
        VideoError: the frames cannot be encoded.
    """
    rate, form = _checked_rate(fps, "mp4"), _FORMATS["mp4"]
    flags = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
    count, swscale, stream = 0, VideoReformatter(), None
    with av.open(str(path), "w", format="mp4", container_options=flags) as out:
        for piece in frames:
            for frame in _frames(piece):
                if stream is None:
                    options = {"crf": "20", "preset": "veryfast", "tune": "zerolatency"}
                    stream = out.add_stream(form.codec, rate=rate, options=options)
                    stream.height, stream.width = frame.shape[:2]
                    odd = stream.height % 2 or stream.width % 2
                    stream.pix_fmt = "yuv444p" if odd else "yuv420p"
                    stream.codec_context.time_base = 1 / rate
                    _tag_bt709(stream.codec_context)
                image = _in_yuv(swscale, frame, stream.pix_fmt)
                image.pts, image.time_base = count, 1 / rate
                out.mux(stream.encode(image))
                count += 1
            yield piece
        if stream is not None:
            out.mux(stream.encode(None))


def _kind(kind: str, name: str) -> str:
    if kind not in _FORMATS:
        raise VideoError(f"{name}: format {kind!r} is not written, only {', '.join(_FORMATS)}")
    return kind


def _checked_rate(fps: float | Fraction, kind: str) -> Fraction:
    most = 50 if kind == "gif" else 1000
    if not (math.isfinite(fps) and 0 < fps <= most):
        raise VideoError(f"fps is {fps}, must be above 0 and at most {most} for .{kind}")
    # 1001 turns 29.97002997 into 30000/1001 and leaves the rates of everyday use exact.
    return Fraction(fps).limit_denominator(1001) or Fraction(fps).limit_denominator(10**6)


def _frames(frames: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """uint8 [h w 3] frames, all of the first one's size, from an array or an iterable of either shape."""
    if getattr(frames, "ndim", 4) != 4:
        raise VideoError(f"frames are an array of shape {frames.shape}, must be [t h w 3]")
    if not isinstance(frames, Iterable):
        raise VideoError(f"frames are a {type(frames).__name__}, must be an array [t h w 3] or an iterable")
    first, count = None, 0
    for item in frames:
        item = np.asarray(item)
        for frame in item if item.ndim == 4 else [item]:
            first = frame.shape if first is None else first
            if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
                raise VideoError(f"frame {count} has shape {frame.shape}, must be [h w 3]")
            if frame.shape != first:
                raise VideoError(f"frame {count} has shape {frame.shape}, must be {first} like frame 0")
            yield _as_uint8(frame, count)
            count += 1
    if not count:
        raise VideoError("there are no frames to write")


def _as_uint8(frame: np.ndarray, index: int) -> np.ndarray:
    if frame.dtype == np.uint8:
        return np.ascontiguousarray(frame)
    if not (np.issubdtype(frame.dtype, np.floating) or frame.dtype.name == "bfloat16"):
        raise VideoError(f"frame {index} is {frame.dtype}, must be uint8 in 0..255 or float in [-1, 1]")
    frame = frame.astype(np.float32)
    try:
        check_pixels(frame, f"frame {index}")
    except ShapeError as error:
        raise VideoError(str(error)) from None
    return np.round(np.clip(frame * 127.5 + 127.5, 0, 255)).astype(np.uint8)


def _write(
    part: Path, path: paths.AnyPath, form: tuple[str, Fraction, Mapping[str, str] | None, bool],
    frames: Iterator[np.ndarray], sound: Callable[[], Sequence[SoundPart]] | None,
) -> None:  # fmt: skip
    """Fills `part`, which will be `path`. form: kind of file, frame rate, metadata, repeatable."""
    kind = form[0]
    if sound is None or kind == "gif":
        _encode(str(part), str(path), frames, form)
        return
    with tempfile.TemporaryDirectory(prefix=".vdit-", dir=part.parent) as folder:
        silent = Path(folder) / f"silent.{kind}"
        _encode(str(silent), str(path), frames, form)
        if not add_sound(silent, part, sound()):
            silent.replace(part)


def _encode(
    target: str, name: str, frames: Iterator[np.ndarray], wanted: tuple[str, Fraction, Mapping[str, str] | None, bool]
) -> None:
    kind, rate, metadata, repeatable = wanted
    # The first frame is drawn before anything is opened, so that bad input never leaves a muxer half open.
    first = next(frames)
    form = _FORMATS[kind]
    with av.open(target, "w", format=form.container, container_options=form.container_options) as out:
        fixed = _REPEATABLE if repeatable and form.codec == "libx264" else {}
        stream = out.add_stream(form.codec, rate=rate, options=form.options | fixed)
        stream.height, stream.width = first.shape[:2]
        if repeatable:
            stream.codec_context.thread_count = 1
        if kind == "gif":
            images = _paletted(first, frames, rate)
            stream.pix_fmt = "pal8"
        elif kind == "mkv":
            images = _rgb(first, frames)
            stream.pix_fmt = "bgr0"
        else:
            odd = kind == "mp4" and (stream.height % 2 or stream.width % 2)
            stream.pix_fmt = "yuv444p" if odd else "yuv420p"
            _tag_bt709(stream.codec_context)
            images = _yuv(first, frames, stream.pix_fmt)
        stream.codec_context.time_base = _clock(kind, rate)
        out.metadata.update({} if kind == "gif" else metadata or {})
        for index, image in enumerate(images):
            image.time_base = _clock(kind, rate)
            image.pts = round(index / rate / image.time_base)
            out.mux(stream.encode(image))
        out.mux(stream.encode(None))


def _clock(kind: str, rate: Fraction) -> Fraction:
    return Fraction(1, 100) if kind == "gif" else 1 / rate


def _tag_bt709(context: av.VideoCodecContext) -> None:
    context.colorspace = _BT709
    context.color_primaries = _BT709
    context.color_trc = _BT709
    context.color_range = _LIMITED


def _yuv(first: np.ndarray, rest: Iterator[np.ndarray], pixels: str) -> Iterator[av.VideoFrame]:
    swscale = VideoReformatter()
    for frame in _chain(first, rest):
        yield _in_yuv(swscale, frame, pixels)


def _in_yuv(swscale: VideoReformatter, frame: np.ndarray, pixels: str) -> av.VideoFrame:
    image = swscale.reformat(
        av.VideoFrame.from_ndarray(frame, format="rgb24"),
        format=pixels,
        src_color_range=_FULL,
        dst_colorspace=_BT709,
        dst_color_range=_LIMITED,
        interpolation=_EXACT,
        threads=1,
    )
    image.colorspace, image.color_range = _BT709, _LIMITED
    image.color_primaries, image.color_trc = _BT709, _BT709
    return image


def _rgb(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[av.VideoFrame]:
    swscale = VideoReformatter()
    for frame in _chain(first, rest):
        yield swscale.reformat(av.VideoFrame.from_ndarray(frame, format="rgb24"), format="bgr0", threads=1)


def _paletted(first: np.ndarray, rest: Iterator[np.ndarray], rate: Fraction) -> Iterator[av.VideoFrame]:
    """Frames with 256 colours each: one palette for all would need all frames before the first is written."""
    height, width = first.shape[:2]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=1 / rate)
    split = graph.add("split")
    make = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(make, 0, 0)
    split.link_to(use, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for index, frame in enumerate(_chain(first, rest)):
        image = av.VideoFrame.from_ndarray(frame, format="rgb24")
        image.pts, image.time_base = index, 1 / rate
        graph.push(image)
        yield from _ready(graph)
    graph.push(None)
    yield from _ready(graph)


def _ready(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest
