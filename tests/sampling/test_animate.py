"""Animate: the images stand where they were put, and fill what is made at once with them."""

import numpy as np
import pytest

from vdit.errors import ShapeError
from vdit.generate.known import animate
from vdit.sampling.canvas import Grouping

FOURS = Grouping(first=1, step=4)


def pictures(count, batch=1):
    return np.random.default_rng(0).uniform(-1, 1, (batch, count, 4, 6, 3)).astype(np.float32)


def test_one_image_at_the_start_is_one_frame():
    images = pictures(1)
    given = animate(images, frames=17, grouping=FOURS)
    np.testing.assert_array_equal(given.video, images)
    assert given.level.shape == (1, 1, 1, 1)
    assert given.known.all()


@pytest.mark.parametrize(("first", "step"), [(1, 1), (1, 2), (1, 4), (3, 4)])
@pytest.mark.parametrize("times", [(0,), (16,), (0, 7), (6, 0), (2, 9, 16)])
def test_each_image_is_at_its_time_and_known_where_it_is_alone_in_what_is_made_at_once(first, step, times):
    images, grouping = pictures(len(times), batch=2), Grouping(first=first, step=step)
    given = animate(images, times=times, frames=17, grouping=grouping)
    index = grouping.index(given.video.shape[1])
    assert grouping.head(len(index)) == len(index)
    for k, time in enumerate(times):
        np.testing.assert_array_equal(given.video[:, time], images[:, k])
    groups = {index[time]: k for k, time in enumerate(times)}
    for frame, group in enumerate(index):
        known = group in groups
        assert (given.level[:, frame] == (0 if known else 1)).all()
        nearest = groups[group] if known else np.abs(np.array(times) - frame).argmin()
        np.testing.assert_array_equal(given.video[:, frame], images[:, nearest])


def test_models_told_of_single_frames_are_told_of_the_images_own():
    given = animate(pictures(2), times=(0, 6), frames=9, grouping=FOURS, alone=True)
    np.testing.assert_array_equal(np.flatnonzero(given.known[0, :, 0, 0]), [0, 6])


@pytest.mark.parametrize(("count", "times", "named"), [
    (1, (17,), "time 17 is not in a video of 17 frames: use 0 to 16"),
    (1, (-1,), "time -1 is not"),
    (2, (5, 8), r"times 5, 8: two of them lie within 4 frames"),
    (2, (3, 3), "times 3, 3: two"),
    (2, (0,), "for 1 times"),
    (0, (), "for 0 times"),
])  # fmt: skip
def test_times_that_cannot_be_are_told(count, times, named):
    with pytest.raises(ShapeError, match=named):
        animate(pictures(count), times=times, frames=17, grouping=FOURS)
