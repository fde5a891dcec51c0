"""Extend: canvases that know the video's end or beginning, and as many of them as the wanted length takes."""

import numpy as np
import pytest

from vdit.errors import ShapeError
from vdit.generate.known import backward, backward_windows, forward, forward_windows
from vdit.sampling.canvas import Grouping

GROUPINGS = [Grouping(first=1, step=1), Grouping(first=1, step=2), Grouping(first=1, step=4), Grouping(first=5, step=8)]


def video(frames, batch=2):
    return np.random.default_rng(0).uniform(-1, 1, (batch, frames, 2, 3, 3)).astype(np.float32)


def test_forward_begins_with_the_end_and_backward_ends_with_the_beginning():
    given = forward(video(12), context=5)
    np.testing.assert_array_equal(given.video, video(12)[:, -5:])
    assert given.known.all()
    given = backward(video(12), context=8, frames=17)
    np.testing.assert_array_equal(given.video[:, 9:], video(12)[:, :8])
    np.testing.assert_array_equal(given.video[:, :9], np.repeat(video(12)[:, :1], 9, axis=1))
    assert given.level.shape == (2, 17, 1, 1)
    np.testing.assert_array_equal(given.level[1, :, 0, 0], [1.0] * 9 + [0.0] * 8)


@pytest.mark.parametrize("plan", [forward_windows, backward_windows])
@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
def test_windows_of_every_length_make_enough_and_know_what_there_is(plan, grouping):
    ahead = plan is forward_windows
    known_of, made_of = (grouping.head, grouping.passage) if ahead else (grouping.tail, grouping.canvas)
    for window in (grouping.canvas(13), grouping.canvas(30)):
        for has in range(grouping.first if ahead else grouping.step, 40, 3):
            for wanted in range(1, 50):
                for context in (None, known_of(max(9, grouping.first, grouping.step))):
                    if context is not None and context >= window - grouping.first:
                        continue
                    windows = plan(wanted, has=has, window=window, grouping=grouping, context=context)
                    made = [canvas.frames - canvas.context for canvas in windows]
                    assert sum(made) >= wanted
                    assert sum(made[:-1]) < wanted  # none too many
                    assert min(made) > 0
                    for canvas in windows:
                        assert grouping.head(canvas.frames) == canvas.frames <= window
                        assert known_of(canvas.context) == canvas.context > 0
                    assert windows[0].context <= has
                    assert len(set(windows[1:])) <= 1  # few programs
                    if len(windows) == 1:
                        assert made == [made_of(wanted)]


def test_the_context_is_what_the_window_leaves_and_half_of_it_for_long_videos():
    grouping = GROUPINGS[2]
    plan = lambda wanted, **more: forward_windows(wanted, **({"has": 99, "window": 33, "grouping": grouping} | more))  # noqa: E731
    assert [(w.frames, w.context) for w in plan(4)] == [(33, 29)]
    assert [(w.frames, w.context) for w in plan(4, context=9)] == [(13, 9)]
    assert [(w.frames, w.context) for w in plan(40)] == [(33, 13)] * 2
    assert [(w.frames, w.context) for w in plan(40, has=3)] == [(33, 1), (33, 13)]


@pytest.mark.parametrize(("plan", "options", "named"), [
    (forward_windows, {"window": 4}, "window=1 holds no known frames and new ones: give 5 or more"),
    (forward_windows, {"wanted": 0}, "0 frames to make: give 1 or more"),
    (forward_windows, {"has": 0}, "a video of 0 frames is too short to be continued: give 1 or more"),
    (backward_windows, {"has": 3}, "a video of 3 frames is too short to be continued: give 4 or more"),
    (forward_windows, {"context": 14}, "context=14: in a window of 17 frames give 1 to 13"),
    (backward_windows, {"context": 3}, "context=3: in a window of 17 frames give 4 to 16"),
])  # fmt: skip
def test_what_cannot_be_is_told(plan, options, named):
    usual = {"wanted": 8, "has": 9, "window": 17, "grouping": GROUPINGS[2]} | options
    with pytest.raises(ShapeError, match=named):
        plan(usual.pop("wanted"), **usual)
