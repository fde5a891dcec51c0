"""Connect: both ends known, the passage between; a blend is free in the middle and close at its ends."""

import numpy as np
import pytest

from vdit.errors import ShapeError
from vdit.generate.known import blend, connect, contexts
from vdit.sampling.canvas import Grouping

GROUPINGS = [Grouping(first=1, step=1), Grouping(first=1, step=2), Grouping(first=1, step=4), Grouping(first=5, step=8)]
FOURS = GROUPINGS[2]


def video(frames, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (1, frames, 2, 3, 3)).astype(np.float32)


def test_a_passage_lies_between_the_end_of_one_and_the_beginning_of_the_other():
    first, second = video(20), video(30, seed=1)
    given = connect(first, second, frames=8, before=5, after=4)
    np.testing.assert_array_equal(given.video[:, :5], first[:, 15:])
    np.testing.assert_array_equal(given.video[:, 13:], second[:, :4])
    np.testing.assert_array_equal(given.video[:, 5:9], np.repeat(first[:, -1:], 4, axis=1))
    np.testing.assert_array_equal(given.video[:, 9:13], np.repeat(second[:, :1], 4, axis=1))
    np.testing.assert_array_equal(given.level[0, :, 0, 0], [0] * 5 + [1] * 8 + [0] * 4)


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
def test_known_ends_fill_the_window_as_far_as_the_videos_go(grouping):
    step, first = grouping.step, grouping.first
    for window in (grouping.canvas(1), grouping.canvas(20), grouping.canvas(41)):
        for frames in range(step, window + step, step):
            for has in [(first, step), (first, 99), (99, step), (99, 99), (17, 23)]:
                found = contexts(frames, has=has, window=window, grouping=grouping)
                if frames > window - first - step:
                    assert found is None
                    continue
                before, after = found
                assert grouping.head(before) == before <= has[0]
                assert grouping.tail(after) == after <= has[1]
                assert grouping.head(before + frames + after) == before + frames + after <= window
                if min(has) > window:
                    assert before + frames + after == window
                    assert abs(before - after) <= first + step


@pytest.mark.parametrize("has", [(0, 8), (5, 3)])
def test_a_video_too_short_to_be_known_is_told(has):
    with pytest.raises(ShapeError, match=r"a video of \d frames is too short \w+ a passage: give [14] or more"):
        contexts(4, has=has, window=33, grouping=FOURS)


@pytest.mark.parametrize("frames", [4, 8, 16])
def test_a_blend_follows_both_videos_at_its_ends_and_is_free_in_the_middle(frames):
    first, second = video(20), video(30, seed=1)
    given = blend(first, second, frames=frames, before=4 - 3, after=4, strength=0.9, grouping=FOURS)
    level = given.level[0, :, 0, 0]
    np.testing.assert_array_equal(given.video[:, :1], first[:, 20 - frames - 1 : 20 - frames])
    np.testing.assert_array_equal(given.video[:, -4:], second[:, frames : frames + 4])
    assert (level[[0, -4, -3, -2, -1]] == 0).all()
    inside = level[1:-4].reshape(-1, 4)
    assert (inside == inside[:, :1]).all()  # frames that are made at once begin at one level
    np.testing.assert_allclose(inside, inside[::-1], atol=1e-6)
    assert 0 < inside.min() <= inside.max() <= 0.9
    assert inside.max() == inside[len(inside) // 2].max()
    share = np.linspace(0, 1, frames + 2)[1:-1, None, None, None]
    mix = (1 - share) * first[0, -frames:] + share * second[0, :frames]
    np.testing.assert_allclose(given.video[0, 1:-4], mix, atol=1e-6)


@pytest.mark.parametrize("strength", [0, 1, -0.5, float("nan")])
def test_a_blends_strength_is_told(strength):
    with pytest.raises(ShapeError, match=r"strength=.*more than 0 and less than 1"):
        blend(video(9), video(9), frames=4, before=1, after=4, strength=strength, grouping=FOURS)
