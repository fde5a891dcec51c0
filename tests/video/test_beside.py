"""Several videos in one."""

import numpy as np
import pytest

from vdit.errors import ShapeError
from vdit.video.beside import side_by_side, strips


def test_each_video_is_there_enlarged():
    random = np.random.default_rng(0)
    videos = {name: random.integers(0, 255, (3, 16, 20, 3), np.uint8) for name in ("emulator", "model")}
    page = side_by_side(videos, height=50)
    assert page.shape == (3, 20 + 48, 2 * 60 + 8, 3)
    np.testing.assert_array_equal(page[:, 20:, :60][:, 1::3, 1::3], videos["emulator"])
    np.testing.assert_array_equal(page[:, 20:, 68:][:, 1::3, 1::3], videos["model"])
    assert page[:, :20].max() > 200
    with pytest.raises(ShapeError):
        side_by_side({"a": videos["model"], "b": videos["model"][:2]})


def test_a_picture_has_a_row_for_each_video():
    random = np.random.default_rng(0)
    videos = {name: random.integers(0, 255, (5, 16, 20, 3), np.uint8) for name in ("emulator", "model")}
    page = strips(videos, [1, 4], height=16)
    assert page.shape == (2 * (20 + 16 + 8), 2 * 20 + 8, 3)
    np.testing.assert_array_equal(page[20:36, :20], videos["emulator"][1])
    np.testing.assert_array_equal(page[64:80, 28:48], videos["model"][4])
