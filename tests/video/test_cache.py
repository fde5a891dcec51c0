"""Decoded frames kept in memory: the same clips as from the file, within a bound."""

import dataclasses

import numpy as np
import pytest

from tests.data.test_folder import write_film
from tests.data_paths import shared_data
from vdit.data import DataConfig, FolderSource, open_source
from vdit.errors import ConfigError, VideoError
from vdit.video import cache as cache_module
from vdit.video.cache import FrameCache
from vdit.video.read import read_video

# A constant rate, a screen recording in WebM, 10 bit, times that do not begin at 0.
FILES = (
    "moviepy_airplane.mp4", "mdn_flower.webm", "exo_portrait_bracelet_hevc10.mp4", "torchcodec_park_nonzero_start.mp4"
)  # fmt: skip


@pytest.fixture
def decodings(monkeypatch):
    """The files that are opened to be decoded, in order."""
    opened = []

    class Counted(cache_module.Source):
        def __init__(self, path, **options):
            opened.append(str(path))
            super().__init__(path, **options)

    monkeypatch.setattr(cache_module, "Source", Counted)
    monkeypatch.setattr("vdit.video.read.Source", Counted)
    return opened


@pytest.mark.parametrize("name", FILES)
def test_a_kept_file_gives_the_clips_that_the_file_gives(name, decodings):
    path, size = shared_data("clips", name), (32, 48)
    cache = FrameCache(1 << 28)
    for start, fps, frames in ((0.0, 8.0, 5), (0.21, 24.0, 4), (0.13, 100.0, 7)):
        direct = read_video(path, start=start, fps=fps, max_frames=frames, size=size)
        kept = cache.read_video(path, start=start, fps=fps, max_frames=frames, size=size)
        assert np.array_equal(kept.frames, direct.frames)
        assert np.array_equal(kept.times, direct.times)
        assert kept.fps == direct.fps
    assert len(decodings) == 3 + 1


def test_what_does_not_fit_is_read_from_the_file(tmp_path, decodings):
    write_film(tmp_path / "a.mp4", frames=24)
    one = 16 * 16 * 3
    for room, opened in ((24 * one, 1), (22 * one, 1 + 2)):  # looked at once, then read twice
        cache = FrameCache(8 * room)
        decodings.clear()
        for start in (0.0, 1.0):
            clip = cache.read_video(tmp_path / "a.mp4", start=start, fps=12, max_frames=4, size=(16, 16))
            assert clip.frames.shape == (4, 16, 16, 3)
        assert len(decodings) == opened


def test_the_whole_cache_has_a_bound(tmp_path, decodings):
    one = 16 * 16 * 3
    cache = FrameCache(40 * one)
    for number in range(10):
        write_film(tmp_path / f"{number}.mp4", frames=5)
    for _ in range(2):
        for number in range(10):
            cache.read_video(tmp_path / f"{number}.mp4", start=0.0, fps=12, max_frames=4, size=(16, 16))
    assert len(decodings) == 8 + 2 * (1 + 2)  # eight are kept; two were tried once and are read twice


def test_a_file_that_breaks_off_is_read_as_without_the_cache(tmp_path):
    write_film(tmp_path / "a.mp4", frames=48)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole)
    with (tmp_path / "b.mp4").open("r+b") as file:
        file.seek(len(whole) // 2)
        file.write(b"\xff" * (len(whole) // 4))
    cache, arguments = FrameCache(1 << 24), dict(fps=12.0, max_frames=40, size=(16, 16))
    with pytest.raises(VideoError) as direct:
        read_video(tmp_path / "b.mp4", start=0.0, **arguments)
    with pytest.raises(VideoError) as kept:
        cache.read_video(tmp_path / "b.mp4", start=0.0, **arguments)
    assert str(kept.value) == str(direct.value)
    with pytest.raises(VideoError, match="past its end"):
        cache.read_video(tmp_path / "a.mp4", start=99.0, **arguments)


def test_a_folder_gives_the_same_samples_with_and_without(tmp_path, decodings):
    for name in ("a.mp4", "b.mp4"):
        write_film(tmp_path / name)
    data = DataConfig(source=FolderSource(path=str(tmp_path)), pixel_budgets=(32 * 32,), frames=(9,), fps=(6.0, 12.0))
    plain = open_source(data, seed=3)
    kept = open_source(dataclasses.replace(data, source=FolderSource(path=str(tmp_path), cache_gib=0.5)), seed=3)
    decodings.clear()
    clips = [kept[i]["video"] for i in range(6)]
    assert len(decodings) == 2
    assert all(np.array_equal(clip, plain[i]["video"]) for i, clip in enumerate(clips))
    with pytest.raises(ConfigError, match="cache_gib=-1"):
        FolderSource(cache_gib=-1)
