"""The keep expression: what it means, and that nothing else can be written."""

import pytest

from data_pipelines.keep import Keep
from vdit.errors import ConfigError

CLIP = {"motion": 0.1, "duration": 4.0, "codec": "h264", "sound": True, "text_area": None, "width": 320}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", None),
        ("motion > 0.02 and duration >= 2", None),
        ("motion > 0.02 and duration >= 5", "duration >= 5"),
        ("motion > 0.5 and duration >= 5", "motion > 0.5"),
        ("motion > 0.5 or duration >= 4", None),
        ("2 <= duration < 4", "2 <= duration < 4"),
        ("not sound", "not sound"),
        ("sound", None),
        ("codec == 'h264'", None),
        ("sound == true and codec != 'vp9'", None),
        ("min(motion * 10, duration) == 1.0", None),
        ("abs(motion - 1) > 0.8", None),
        ("width / 2 - 60 == -(-100)", None),
        ("text_area < 0.05", "text_area < 0.05 (text_area is not known)"),
        ("motion > 0.02\n  and   duration >= 5", "duration >= 5"),
    ],
)
def test_the_first_rule_that_is_not_true_is_the_reason(text, reason):
    assert Keep.parse(text).reason(CLIP) == reason


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "motion.real > 0", "motion[0] > 1", "(lambda: 1)() > 0",
        "motion if 1 else 2",
        "[x for x in (1, 2)] == 1", "f'{motion}' == ''", "motion := 3", "open('a') == 1", "print(motion) > 1",
        "min(motion, key=abs) > 0", "min() > 0", "motion ** 9 > 1", "2 << 9 > motion", "motion", "motion + 1", "3",
        "motion >", "motion > 1; motion", "motion is 3", "b'a' == codec", "1j > motion", "duration in (1, 2)",
        "*motion > 1", "(" * 300 + "motion" + ")" * 300, "-" * 60 + "motion > 1",
        "motion > 1 and " * 400 + "motion > 1",
    ],
)  # fmt: skip
def test_what_is_not_of_the_language_is_refused(text):
    if text == "motion":  # a column alone may be true or false
        assert Keep.parse(text).reason(CLIP) == "motion"
        return
    with pytest.raises(ConfigError) as error:
        Keep.parse(text)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["codec > 3", "motion / 0 > 1", "codec * 2 == 1", "min(codec, motion) > 1"])
def test_what_cannot_be_computed_names_the_rule(text):
    with pytest.raises(ConfigError, match="keep") as error:
        Keep.parse(text).reason(CLIP)
    assert text.split()[0].split("(")[0] in str(error.value)


def test_unknown_columns_are_found_before_anything_is_measured():
    keep = Keep.parse("motoin > 0.1 and duration > 1")
    with pytest.raises(ConfigError, match=r"motoin.*nearest: motion"):
        keep.check(CLIP)
    Keep.parse("motion > 0.1").check(CLIP)


def test_rules_name_their_columns_and_bounds():
    keep = Keep.parse("0.02 < motion < 0.9 and not (duration < 2 or width >= -3)")
    assert keep.columns == ("duration", "motion", "width")
    assert [rule.bounds for rule in keep.rules] == [{"motion": [0.02, 0.9]}, {"duration": [2.0], "width": [-3.0]}]
