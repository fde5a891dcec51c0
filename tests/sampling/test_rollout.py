"""How a canvas slides, and what it knows then; prompts over time."""

import numpy as np
import pytest

from vdit.errors import ConfigError, ShapeError
from vdit.sampling.canvas import Grouping
from vdit.sampling.rollout import Script, Slide, beginning, going_on

EACH_ALONE, FOURS, PAIRS = Grouping(first=1, step=1), Grouping(first=1, step=4), Grouping(first=3, step=4)


@pytest.mark.parametrize("grouping", [EACH_ALONE, FOURS, PAIRS], ids=str)
@pytest.mark.parametrize("groups", [3, 4, 9])
def test_a_later_canvas_holds_known_and_new_groups_at_positions_of_the_first(grouping, groups):
    window = grouping.first + (groups - 1) * grouping.step
    alone = grouping.first == grouping.step
    slides = [Slide.of(grouping, window=window)]
    slides += [Slide.of(grouping, window=window, context=c * grouping.step) for c in range(1, groups - 1 + alone)]
    for slide in slides:
        assert slide.window == groups
        assert slide.context >= 1
        assert slide.new >= 1
        assert slide.first == (0 if alone else 1)
        assert slide.first + slide.context + slide.new == groups
    anchored = Slide.of(grouping, window=window, anchor=True)
    assert (anchored.first, anchored.known) == (0, 1 + anchored.context)
    assert anchored.known + anchored.new == groups
    for context in (0, grouping.step - 1, (groups + alone - 1) * grouping.step):
        with pytest.raises(ShapeError, match=f"context={context}: .* give {grouping.step} to"):
            Slide.of(grouping, window=window, context=context)


def test_a_window_too_short_to_slide_is_refused_with_the_least_that_is_not():
    for grouping, short, least in ((EACH_ALONE, 1, 2), (FOURS, 5, 9), (PAIRS, 7, 11)):
        with pytest.raises(ShapeError, match=f"window={short}: .* give {least} or more"):
            Slide.of(grouping, window=short)
        assert Slide.of(grouping, window=least).new == 1


def test_canvases_know_what_was_made_last_and_nothing_else():
    rng = np.random.default_rng(0)
    head = rng.normal(size=(1, 2, 3, 3, 4)).astype(np.float32)
    canvas = beginning(head, 3, patch=2)
    np.testing.assert_array_equal(canvas.latents[:, :2], head)
    np.testing.assert_array_equal(canvas.level[0, :, 0, 0], [0, 0, 1, 1, 1, 1])
    assert canvas.first == 0
    made = rng.normal(size=(1, 6, 3, 3, 4)).astype(np.float32)
    canvas = going_on(made, Slide(window=4, context=2, first=1), begun=head, patch=2)
    np.testing.assert_array_equal(canvas.latents, np.concatenate([made[:, -4:], np.zeros_like(made[:, :2])], axis=1))
    np.testing.assert_array_equal(canvas.level[0, :, 0, 0], [0, 0, 0, 0, 1, 1])
    assert canvas.first == 1
    canvas = going_on(made, Slide(window=4, context=1, first=0, anchor=True), begun=head, patch=2)
    np.testing.assert_array_equal(canvas.latents[:, :4], np.concatenate([head, made[:, -2:]], axis=1))
    np.testing.assert_array_equal(canvas.level[0, :, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    assert canvas.first == 0


def test_a_prompt_holds_until_the_next():
    script = Script.of([(0, "a"), (0.5, "b"), (3.25, "c")])
    assert [script.at(time) for time in (0, 0.49, 0.5, 3.2, 3.25, 100)] == ["a", "a", "b", "b", "c", "c"]
    assert script.at(12 / 24 - 1e-9) == "b", "times are those of frames, but for rounding"
    assert Script.of("a").at(7) == "a"
    for wrong in ([], ["a", "b"], [(0, 1)], [(0.0, "a", "b")]):
        with pytest.raises(ConfigError, match="give a text, or pairs"):
            Script.of(wrong)
    for times in ((1,), (0, 2, 2), (0, 3, 2), (0, float("nan"))):
        with pytest.raises(ConfigError, match="the first must be at 0, and each later"):
            Script.of([(time, "a") for time in times])
