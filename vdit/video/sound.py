"""The sound of videos that were given, in step with the frames of the video that is written.

    parts = [SoundPart(seconds=1.5), SoundPart(path="dog.mp4", seconds=10.0), SoundPart(seconds=2.0)]
    add_sound("without.mp4", "longer.mp4", parts)

- One file's sound from its start is copied, where the container takes it: no quality is lost. Anything else (silence
  before or after it, several files, a part) is decoded, put together to the sample, and encoded: AAC in .mp4, Opus in
  .webm, FLAC in .mkv. A .gif has no sound.
- Time 0 of a file's sound is that of its first video frame.
- Of several sound tracks the first is taken. More than two channels become two where the sound is encoded.
- Sound that cannot be decoded becomes silence, and a VditWarning says from when on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vdit.errors import VditWarning
from vdit.video.source import decoding, open_container

# What players expect in each container.
_COPIED = {
    ".mp4": {"aac", "mp3", "mp3float", "ac3", "eac3", "alac"}, ".webm": {"opus", "vorbis"},
    ".mkv": {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "vorbis", "flac", "pcm_s16le"},
}  # fmt: skip
_ENCODED = {".mp4": "aac", ".webm": "libopus", ".mkv": "flac"}
_OPUS_RATE = 48000
_BLOCK = 4096  # samples that are put together at a time
_GAP = 0.05  # seconds without sound that are filled with silence; less is how packets are rounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundPart:
    """A stretch of sound: of a file from `start` seconds on, or silence where there is no path."""

    seconds: float
    path: str | Path | None = None
    start: float = 0.0


def add_sound(video: str | Path, out: str | Path, parts: Sequence[SoundPart]) -> bool:
    """Writes the video's own packets and, beside them, the sound of the parts, one after the other.

    Args:
        video: a file that vdit.video.write has written, without sound.
        out: the file to be written; its suffix says the container.

    Returns: whether the file has sound. Without any in the parts, nothing is written.
    """
    video, out = Path(video), Path(out)
    parts = [part for part in parts if part.seconds > 0]
    kinds = [None if part.path is None else _kind(part.path) for part in parts]
    if not any(kinds) or out.suffix not in _ENCODED:
        return False
    parts = [part if kind else dataclasses.replace(part, path=None) for part, kind in zip(parts, kinds)]
    options = {"movflags": "+faststart"} if out.suffix == ".mp4" else {}
    container = {".mp4": "mp4", ".webm": "webm", ".mkv": "matroska"}[out.suffix]
    with av.open(str(video)) as source, av.open(str(out), "w", format=container, container_options=options) as made:
        pictures = source.streams.video[0]
        stream = made.add_stream_from_template(pictures)
        first = parts[0]
        copied = len(parts) == 1 and first.start == 0 and kinds[0].name in _COPIED[out.suffix]
        with contextlib.closing(_copied(made, first) if copied else _encoded(made, out.suffix, parts, kinds)) as sound:
            next(sound)  # adds its stream, which must be there before the first packet
            reached = next(sound, None)
            for packet in source.demux(pictures):
                if packet.dts is None:
                    continue
                time = float(packet.dts * packet.time_base)
                while reached is not None and reached <= time:
                    reached = next(sound, None)
                packet.stream = stream
                made.mux(packet)
            while reached is not None:
                reached = next(sound, None)
    return True


@dataclasses.dataclass(frozen=True)
class _Kind:
    name: str
    rate: int
    channels: int


def _kind(path: str | Path) -> _Kind | None:
    """What the first sound track of a file is; None without one that can be decoded."""
    with decoding(path), open_container(path) as container:
        if not container.streams.audio:
            return None
        context = container.streams.audio[0].codec_context
        if context is None or not context.sample_rate:
            line = f"{path}: its sound is of a kind that is not decoded, and is left out"
            warnings.warn(line, VditWarning, stacklevel=4)
            return None
        return _Kind(context.codec.canonical_name, context.sample_rate, context.channels)


def _origin(container: av.container.InputContainer) -> float:
    """When the first video frame is shown, on the clock of the container."""
    stream = container.streams.video[0]
    return 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)


def _copied(made: av.container.OutputContainer, part: SoundPart) -> Iterator[float]:
    """Yields how far the sound has come, in seconds."""
    with decoding(part.path), open_container(part.path) as container:
        sound = container.streams.audio[0]
        stream = made.add_stream_from_template(sound)
        yield 0.0
        origin = round(_origin(container) / sound.time_base)
        for packet in container.demux(sound):
            if packet.dts is None or packet.pts is None:
                continue
            time = float((packet.pts - origin) * packet.time_base)
            if time >= part.seconds:
                return
            if time + float((packet.duration or 0) * packet.time_base) <= 0 and packet.pts < origin and origin > 0:
                continue
            packet.pts, packet.dts = packet.pts - origin, packet.dts - origin
            packet.stream = stream
            made.mux(packet)
            yield time


def _encoded(
    made: av.container.OutputContainer, suffix: str, parts: Sequence[SoundPart], kinds: Sequence[_Kind | None]
) -> Iterator[float]:
    """Yields how far the sound has come, in seconds."""
    there = [kind for kind in kinds if kind is not None]
    rate = _OPUS_RATE if suffix == ".webm" else max(kind.rate for kind in there)
    layout = "mono" if all(kind.channels == 1 for kind in there) else "stereo"
    stream = made.add_stream(_ENCODED[suffix], rate=rate, layout=layout)
    yield 0.0
    at, end = 0, 0.0
    for part in parts:
        # Lengths are rounded where parts end, not each by itself: errors do not add up.
        end += part.seconds
        for samples in _samples(part, round(end * rate) - at, rate, layout):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            made.mux(stream.encode(frame))
            at += samples.shape[1]
            yield at / rate
    made.mux(stream.encode(None))


def _samples(part: SoundPart, count: int, rate: int, layout: str) -> Iterator[np.ndarray]:
    """float32 [channels n], `count` samples in all."""
    channels, done = 1 if layout == "mono" else 2, 0
    silence = lambda n: np.zeros((channels, n), np.float32)  # noqa: E731
    if part.path is not None:
        try:
            for at, samples in _decoded(part, rate, layout):
                if at > done + _GAP * rate:
                    for n in _blocks(min(at, count) - done):
                        yield silence(n)
                        done += n
                samples = samples[:, max(0, -at) if done == 0 else 0 :][:, : count - done]
                if samples.shape[1]:
                    yield samples
                    done += samples.shape[1]
                if done >= count:
                    return
        except av.FFmpegError as error:
            reason = getattr(error, "strerror", None) or str(error)
            line = f"{part.path}: its sound cannot be decoded after {done / rate:.4g} s ({reason}): silence follows"
            warnings.warn(line, VditWarning, stacklevel=5)
    for n in _blocks(count - done):
        yield silence(n)


def _blocks(count: int) -> Iterator[int]:
    while count > 0:
        yield min(count, _BLOCK)
        count -= _BLOCK


def _decoded(part: SoundPart, rate: int, layout: str) -> Iterator[tuple[int, np.ndarray]]:
    """(its place in samples from the part's start, float32 [channels n]) of what is decoded, in turn."""
    with decoding(part.path), open_container(part.path) as container:
        sound, origin = container.streams.audio[0], _origin(container)
        if part.start:
            container.seek(int((origin + part.start) * av.time_base))
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        at: int | None = None
        for frame in container.decode(sound):
            time = None if frame.pts is None else float(frame.pts * frame.time_base) - origin - part.start
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray()
                if at is None or (time is not None and time * rate > at + _GAP * rate):
                    at = round((time or 0.0) * rate)
                if at + samples.shape[1] > 0:
                    yield at, samples
                at += samples.shape[1]
        for piece in resampler.resample(None):
            samples = piece.to_ndarray()
            yield at or 0, samples
            at = (at or 0) + samples.shape[1]
