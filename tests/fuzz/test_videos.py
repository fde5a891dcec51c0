"""A short form of `python -m tools.fuzz.videos`; seeds 297 (EXIF) and 1240 (a playlist) went wrong once."""

import pytest

from tools.fuzz import videos
from tools.fuzz.common import attempt, run_cases


@pytest.mark.parametrize("seed", [*range(24), 297, 1240])
def test_a_damaged_or_hostile_video_is_read_or_refused_in_one_line(tmp_path, seed):
    result = attempt(videos.make, seed, tmp_path)
    assert result.outcome != "failed", f"{result.kind}: {result.detail}"


def test_the_cases_run_within_their_limits():
    results = list(run_cases(videos.make, range(60, 64)))
    assert [result.outcome for result in results].count("failed") == 0
    assert {result.kind for result in results} > {"playlist"}
