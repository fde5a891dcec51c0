"""The crop, start, frame rate and length of a sample."""

import dataclasses

import numpy as np
import pytest

from vdit.data.clips import Clips, draw_crop, draw_cut, fit_size, may_flip
from vdit.data.config import DataConfig
from vdit.data.data_source import WorldsSource
from vdit.data.datasets import ArrayHandle
from vdit.errors import ConfigError, DataError

SHAPES = [(720, 1280), (1280, 720), (480, 640), (288, 352), (332, 800), (480, 480), (2160, 3840)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("area", [96 * 96, 128 * 128, 192 * 192, 480 * 832])
def test_sizes_keep_the_aspect_within_the_area(shape, area):
    h, w = fit_size(*shape, area, 16)
    assert h % 16 == w % 16 == 0
    assert 0.6 * area < h * w <= area
    lost = 1 - min(h / w * shape[1] / shape[0], w / h * shape[0] / shape[1])
    assert lost < 0.07


@dataclasses.dataclass(kw_only=True)
class Films:
    """A library of videos in memory."""

    footage: list
    broken: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.footage)

    def name(self, item):
        return self.footage[item].id

    def open(self, item, rng):
        return self.footage[item]


def film(frames=40, height=90, width=160, fps=10.0, caption="a dog runs"):
    """Frame number in red, row in green, column in blue."""
    t, y, x = np.indices((frames, height, width))
    video = np.stack([t, y, x], -1).astype(np.uint8)
    return ArrayHandle(video=video, captions=(caption,), id="film", fps=fps)


CONFIG = DataConfig(pixel_budgets=(48 * 48, 64 * 64, 400 * 400), frames=(1, 9, 17, 81), fps=(5.0, 10.0, 30.0))


def test_a_cut_has_room_in_the_video():
    footage, seen = film(), set()
    for seed in range(60):
        cut = draw_cut(footage, CONFIG, np.random.default_rng(seed))
        assert cut.fps in (5.0, 10.0)
        assert cut.frames in (1, 9, 17)
        assert cut.start + (cut.frames - 1) / cut.fps <= 3.9 + 1e-9
        assert cut.size[0] * cut.size[1] <= 64 * 64
        seen.add((cut.fps, cut.frames, cut.size))
    assert len(seen) == 12  # all that fit: 81 frames, 30 fps and 400 x 400 do not


def test_a_video_too_short_or_too_slow_gives_the_most_it_can():
    config = DataConfig(pixel_budgets=(64 * 64,), frames=(17, 33), fps=(8.0, 24.0))
    cut = draw_cut(film(frames=8, fps=4.0), config, np.random.default_rng(0))
    assert cut.fps == 8.0
    assert cut.frames == 13  # 1 + 4 * 3 frames at 8 fps in the 7 / 4 seconds between first and last
    assert draw_cut(film(frames=1), config, np.random.default_rng(0)).frames == 1


def test_a_video_smaller_than_every_area_keeps_its_own():
    cut = draw_cut(film(height=30, width=40), CONFIG, np.random.default_rng(0))
    assert cut.size == (16, 16) or cut.size[0] * cut.size[1] <= 1200
    with pytest.raises(DataError, match="smaller than one block"):
        draw_cut(film(height=10, width=20), CONFIG, np.random.default_rng(0))


def test_frames_follow_time_and_the_whole_picture_is_seen():
    config = dataclasses.replace(CONFIG, fps=(5.0,), frames=(9,))
    clips = Clips(Films(footage=[film()]), config, seed=0)
    sample = clips[3]
    video = sample["video"].astype(float)
    red = video[..., 0].mean((1, 2))
    np.testing.assert_allclose(np.diff(red), 2.0, atol=0.1)  # 5 of 10 frames a second
    assert red[0] == pytest.approx(np.floor(sample["start"] * 10 + 1e-3), abs=0.1)
    # The centre stays in the centre, and less than a seventh of each side is trimmed.
    for axis, extent in ((1, 90), (2, 160)):
        line = video[0, ..., axis].mean(2 - axis)
        assert line.mean() == pytest.approx((extent - 1) / 2, abs=1.5)
        assert line[-1] - line[0] > extent * 0.82


def test_the_same_index_is_the_same_cut_and_another_pass_another():
    clips = Clips(Films(footage=[film(), film()]), CONFIG, seed=1)
    again = Clips(Films(footage=[film(), film()]), CONFIG, seed=1)
    for i in range(6):
        np.testing.assert_array_equal(clips[i]["video"], again[i]["video"])
    assert len({(clips[2 * e]["start"], clips[2 * e]["video"].shape) for e in range(5)}) == 5


def test_crops_are_windows_of_the_size_asked_even_of_small_videos():
    clips = Clips(Films(footage=[film(), film(height=20, width=200)]), CONFIG, seed=1)
    offsets = set()
    for i in range(20):
        assert clips.crops(size=(32, 48), frames=5)[i]["video"].shape == (5, 32, 48, 3)
        cut = draw_crop(film(), CONFIG, np.random.default_rng(i), size=(32, 48), frames=5)
        assert all(o + s <= r for o, s, r in zip(cut.offset, cut.size, cut.resize))
        offsets.add(cut.offset)
    assert len(offsets) > 10


def test_a_short_video_gives_its_own_frames_to_a_crop():
    cut = draw_crop(film(frames=9), dataclasses.replace(CONFIG, fps=(5.0,)), np.random.default_rng(0),
                    size=(32, 32), frames=9)
    assert (cut.fps, cut.start) == (10.0, 0.0)


def test_a_video_too_short_for_a_crop_is_skipped_and_reported():
    clips = Clips(Films(footage=[film(frames=3), film()]), CONFIG, seed=1)
    assert clips.crops(size=(32, 32), frames=9)[0]["video"].shape[0] == 9
    assert "too short for 9 frames" in clips.report()["film"]


def test_mirror_images_only_where_captions_permit():
    config = dataclasses.replace(CONFIG, hflip=0.5, frames=(1,))
    for caption, share in (("a dog runs", (0.25, 0.75)), ("a dog runs to the left", (0, 0))):
        clips = Clips(Films(footage=[film(caption=caption)]), config, seed=0)
        flipped = [clips[i]["video"][0, 0, 0, 2] > clips[i]["video"][0, 0, -1, 2] for i in range(40)]
        assert share[0] <= np.mean(flipped) <= share[1]


@pytest.mark.parametrize(("caption", "allowed"), [
    ("a ball moves to the right", False), ("the leftmost cup", False), ("it turns clockwise", False),
    ("a sign that reads OPEN", False), ("driving westward", False), ("colourful letter blocks", False),
    ("a bright field", True), ("an upright piano", True), ("a red square moves up", True),
])
def test_captions_that_name_a_side_forbid_mirroring(caption, allowed):
    assert may_flip([caption]) is allowed


@pytest.mark.parametrize(("changes", "message"), [
    ({"frames": (1, 16)}, r"frames has 16: each must be 1 \+ 4 \* k, give 17"),
    ({"pixel_budgets": ()}, "at least one value"), ({"pixel_budgets": (100,)}, "at least data.size_multiple squared"),
    ({"hflip": 2.0}, "a probability"), ({"row_tokens": 0}, "at least 1"),
])
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**changes)


def test_a_world_option_without_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"'gravity'.*write key=value"):
        WorldsSource(options=("gravity",))


def test_world_options_become_arguments():
    config = DataConfig(source=WorldsSource(options=("gravity=9.8", "kind=elastic", "size=(32, 48)")))
    assert config.source.arguments() == {"gravity": 9.8, "kind": "elastic", "size": (32, 48)}
