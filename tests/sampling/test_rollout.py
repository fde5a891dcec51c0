"""How a canvas windows, and what it knows then; prompts over time."""

import pytest

from vdit.errors import ConfigError, ShapeError
from vdit.sampling.canvas import Grouping
from vdit.sampling.sliding import PromptSchedule, Window

EACH_ALONE, FOURS, PAIRS = Grouping(first=1, step=1), Grouping(first=1, step=4), Grouping(first=3, step=4)


@pytest.mark.parametrize("grouping", [EACH_ALONE, FOURS, PAIRS], ids=str)
@pytest.mark.parametrize("groups", [3, 4, 9])
def test_a_later_canvas_holds_known_and_new_groups_at_positions_of_the_first(grouping, groups):
    window = grouping.first + (groups - 1) * grouping.step
    alone = grouping.first == grouping.step
    windows = [Window.of(grouping, window=window)]
    windows += [Window.of(grouping, window=window, context=c * grouping.step) for c in range(1, groups - 1 + alone)]
    for window_ in windows:
        assert window_.first == groups
        assert window_.context >= 1
        assert window_.new >= 1
        assert window_.start == (0 if alone else 1)
        assert window_.start + window_.context + window_.new == groups
    anchored = Window.of(grouping, window=window, anchor=True)
    assert 1 + anchored.context + anchored.new == groups
    for context in (0, grouping.step - 1, (groups + alone - 1) * grouping.step):
        with pytest.raises(ShapeError, match=f"context={context}: .* give {grouping.step} to"):
            Window.of(grouping, window=window, context=context)


def test_a_window_too_short_to_window__is_refused_with_the_least_that_is_not():
    for grouping, short, least in ((EACH_ALONE, 1, 2), (FOURS, 5, 9), (PAIRS, 7, 11)):
        with pytest.raises(ShapeError, match=f"window={short}: .* give {least} or more"):
            Window.of(grouping, window=short)
        assert Window.of(grouping, window=least).new == 1


def test_a_prompt_holds_until_the_next():
    schedule = PromptSchedule.of([(0, "a"), (0.5, "b"), (3.25, "c")])
    assert [schedule.at(time) for time in (0, 0.49, 0.5, 3.2, 3.25, 100)] == ["a", "a", "b", "b", "c", "c"]
    assert schedule.at(12 / 24 - 1e-9) == "b", "times are those of frames, but for rounding"
    assert PromptSchedule.of("a").at(7) == "a"
    for wrong in ([], ["a", "b"], [(0, 1)], [(0.0, "a", "b")]):
        with pytest.raises(ConfigError, match="give a text, or pairs"):
            PromptSchedule.of(wrong)
    for times in ((1,), (0, 2, 2), (0, 3, 2), (0, float("nan"))):
        with pytest.raises(ConfigError, match="the first must be at 0, and each later"):
            PromptSchedule.of([(time, "a") for time in times])
