"""Sound in step with frames: copied where the whole is kept, cut and padded to the sample where it is not."""

import itertools

import av
import numpy as np
import pytest

from tests.data_paths import shared_data
from vdit.video.read import probe, read_video
from vdit.video.sound import SoundPart
from vdit.video.write import write_video

SIZE, FPS = (32, 48), 10
BEEP = 0.5  # seconds of tone, then as long silent, and so on


def pictures(seconds):
    return np.zeros((round(seconds * FPS), *SIZE, 3), np.uint8)


def loudness(path, *, rate=8000, step=0.1):
    """How loud each tenth of a second is, from the first video frame on."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        origin = float((container.streams.video[0].start_time or 0) * container.streams.video[0].time_base)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        out, first = [], None
        for frame in itertools.chain(container.decode(container.streams.audio[0]), [None]):
            if frame is not None and first is None:
                first = float(frame.pts * frame.time_base) - origin
            out += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
    samples = np.concatenate(out)
    start = round(first * rate)
    samples = samples[-start:] if start < 0 else np.concatenate([np.zeros(start, np.float32), samples])
    whole = samples[: len(samples) // round(step * rate) * round(step * rate)].reshape(-1, round(step * rate))
    return np.sqrt((whole**2).mean(1))


@pytest.fixture(scope="module")
def beeping(tmp_path_factory):
    """4 seconds whose sound is a tone in every first half of a second."""
    folder = tmp_path_factory.mktemp("beeping")
    silent, path, rate = folder / "silent.mkv", folder / "beeping.mkv", 16000
    write_video(silent, pictures(4), fps=FPS)
    time = np.arange(4 * rate) / rate
    tone = np.float32(0.5 * np.sin(2 * np.pi * 440 * time) * (time % 1 < BEEP))[None]
    with av.open(str(silent)) as source, av.open(str(path), "w") as made:
        video = made.add_stream_from_template(source.streams.video[0])
        sound = made.add_stream("flac", rate=rate, layout="mono")
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                made.mux(packet)
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        made.mux(sound.encode(frame))
        made.mux(sound.encode(None))
    return path


def test_the_whole_of_a_files_sound_is_copied(beeping, tmp_path):
    out = tmp_path / "out.mkv"
    write_video(out, pictures(4), fps=FPS, sound=lambda: [SoundPart(path=beeping, seconds=4.0)])
    packets = []
    for path in (beeping, out):
        with av.open(str(path)) as container:
            packets.append([bytes(packet) for packet in container.demux(audio=0) if packet.size])
    assert packets[0] == packets[1]
    np.testing.assert_array_equal(read_video(out).frames, pictures(4))


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv"])
def test_silence_before_and_after_moves_the_sound_with_its_frames(beeping, tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    parts = [SoundPart(seconds=1.2), SoundPart(path=beeping, seconds=2.5), SoundPart(seconds=1.3)]
    write_video(out, pictures(5), fps=FPS, sound=lambda: parts)
    loud = loudness(out)[:50]
    expected = np.zeros(50, bool)
    for second in range(3):
        expected[12 + 10 * second : 12 + 10 * second + 5] = True
    expected[37:] = False
    away = np.abs(np.arange(50)[:, None] - np.flatnonzero(np.diff(expected.astype(int)))).min(1) > 1  # codecs smear
    np.testing.assert_array_equal((loud > 0.1)[away], expected[away])
    assert abs(len(loudness(out)) - 50) <= 1
    assert probe(out).fps == pytest.approx(FPS)


def test_a_part_from_the_middle_and_another_file_after_it(beeping, tmp_path):
    out = tmp_path / "out.mkv"
    parts = [SoundPart(path=beeping, start=1.25, seconds=1.0), SoundPart(path=beeping, seconds=0.5)]
    write_video(out, pictures(1.5), fps=FPS, sound=lambda: parts)
    np.testing.assert_array_equal(loudness(out, step=0.05) > 0.1, [True] * 5 + [False] * 10 + [True] * 15)


def test_without_sound_and_as_a_gif_nothing_is_added(beeping, tmp_path):
    silent = tmp_path / "silent.mp4"
    write_video(silent, pictures(1), fps=FPS)
    out = tmp_path / "out.mp4"
    write_video(out, pictures(1), fps=FPS, sound=lambda: [SoundPart(path=silent, seconds=1.0)])
    assert loudness(out) is None
    write_video(tmp_path / "out.gif", pictures(1), fps=FPS, sound=lambda: [SoundPart(path=beeping, seconds=1.0)])


@pytest.mark.parametrize("name", ["mdn_friday.mp4", "mdn_flower.webm", "moviepy_sintel_snow.mp4", "sam2_01_dog.mp4"])
@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_real_files(tmp_path, name, suffix):
    """The sound is as loud, tenth of a second by tenth, as in the file; copied or encoded."""
    path, out = shared_data("clips", name), tmp_path / f"out.{suffix}"
    write_video(out, pictures(1.5), fps=FPS, sound=lambda: [SoundPart(path=path, seconds=1.5)])
    given, kept = loudness(path)[:14], loudness(out)[:14]
    np.testing.assert_allclose(kept, given, atol=0.02 + 0.15 * given.max())
