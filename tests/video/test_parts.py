"""The last frames are those of reading all; which frames a reading takes."""

import numpy as np
import pytest
from PIL import Image

from tests.data_paths import shared_data
from vdit.errors import VideoError
from vdit.video import read as video_read
from vdit.video.read import Window, frame_numbers, read_tail, read_video, write_video
from vdit.video.write import write_growing

COUNT, RATE = 60, 10


@pytest.fixture(scope="module", params=["mkv", "mp4", "gif"])
def video(request, tmp_path_factory):
    """A file of 6 s in which every frame is another."""
    path = tmp_path_factory.mktemp("tail") / f"a.{request.param}"
    noise = np.random.default_rng(0).integers(0, 200, (16, 24, 3), dtype=np.uint8)
    write_video(path, np.stack([np.roll(noise, k, 1) // 2 + 2 * k for k in range(COUNT)]).astype(np.uint8), fps=RATE)
    return path


@pytest.mark.parametrize(
    "asked",
    [{}, {"fps": 5.0}, {"fps": 30.0}, {"start": 1.3}, {"start": 0.7, "duration": 2.2}, {"fps": 7.0, "duration": 3.1}],
    ids=str,
)
def test_the_tail_is_the_end_of_the_whole(video, asked):
    whole = read_video(video, **asked)
    for frames in (1, 7, len(whole.frames), 1000):
        tail = read_tail(video, frames, **asked)
        np.testing.assert_array_equal(tail.frames, whole.frames[-frames:])
        assert tail.times[0] == 0
        assert tail.fps == pytest.approx(whole.fps, rel=0.02)


def test_the_tail_of_a_long_file_leaves_its_beginning_alone(tmp_path, monkeypatch):
    path, given = tmp_path / "long.mkv", []
    write_video(path, np.zeros((200, 16, 16, 3), np.uint8), fps=10)
    read = video_read.iter_frames
    monkeypatch.setattr(video_read, "iter_frames", lambda *a, **k: (given.append(f) or f for f in read(*a, **k)))
    assert len(read_tail(path, 5).frames) == 5
    assert len(given) < 40


def test_frames_that_come_rarely_at_the_end_are_still_found(tmp_path):
    pictures = [Image.fromarray(np.full((8, 8, 3), 4 * k, np.uint8)) for k in range(40)]
    times = [50] * 36 + [4000] * 4
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=times)
    whole = read_video(tmp_path / "a.gif").frames
    for frames in (2, 8, 40):
        np.testing.assert_array_equal(read_tail(tmp_path / "a.gif", frames).frames, whole[-frames:])


@pytest.mark.parametrize("file", ["tc_av1_video.mkv", "decord_unordered.mov", "moviepy_no_duration.webm"])
def test_the_tail_of_real_files(file):
    path = shared_data("odd_videos", file)
    whole = read_video(path, size=16)
    np.testing.assert_array_equal(read_tail(path, 4, size=16).frames, whole.frames[-4:])


def test_a_cut_file_has_no_last_frames():
    with pytest.raises(VideoError, match="ends early, at 90 of 150 frames"):
        read_tail(shared_data("odd_videos", "derived_truncated_60pct.mp4"), 4, size=16)


@pytest.mark.parametrize("asked", [{}, {"fps": 5.0}, {"fps": 30.0, "max_frames": 9}, {"start": 1.3, "duration": 1.0}])
def test_numbers_are_those_of_the_frames_read(video, asked):
    whole, part = read_video(video).frames, read_video(video, **asked).frames
    numbers, total = frame_numbers(video, Window(**asked))
    assert total == COUNT
    np.testing.assert_array_equal(whole[numbers], part)


def test_a_file_that_grows_can_be_read_before_its_end(tmp_path):
    """And the pieces are given on as they came."""
    path = tmp_path / "grows.mp4"
    pieces = [np.full((4, 16, 24, 3), 40 * k, np.uint8) for k in range(4)]
    counts = []
    for piece, given in zip(write_growing(path, iter(pieces), 8), pieces):
        np.testing.assert_array_equal(piece, given)
        if path.stat().st_size:
            counts.append(len(read_video(path, on_error="keep").frames))
    assert counts == sorted(counts)
    assert 4 < counts[-1] <= 16
    whole = read_video(path)
    assert (len(whole.frames), whole.fps) == (16, 8)
