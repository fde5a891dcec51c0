"""ClipRecord: exact times, the way to JSON and back, and what is refused."""

import json
from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.records import ClipRecord
from vdit.errors import DataError

RECORD = ClipRecord(path="a/б.mp4", start=Fraction(1001, 30000), end=Fraction(7, 3), size=(270, 480),
                    measures={"motion": 0.25, "text": None, "sound": True}, signature=b"\x00\xff")  # fmt: skip


def test_json_and_back_is_the_same_record():
    line = json.dumps(RECORD.to_json(), allow_nan=False)
    assert ClipRecord.from_json(json.loads(line)) == RECORD


def test_times_are_exact():
    third = ClipRecord(path="a", end=Fraction(1, 3))
    assert ClipRecord.from_json(third.to_json()).end * 3 == 1


def test_id_is_of_the_place_alone():
    assert RECORD.with_measures(motion=9).id == RECORD.id
    assert len({RECORD.id, RECORD.replace(end=Fraction(5)).id, RECORD.replace(path="b").id}) == 3


def test_numpy_scalars_become_plain():
    assert RECORD.with_measures(motion=np.float32(0.5)).to_json()["measures"]["motion"] == 0.5


@pytest.mark.parametrize(("field", "value"), [
    ("start", "-1"), ("start", "1e999999"), ("start", 0.5), ("end", "0"), ("size", [3]), ("size", [0, 4]),
    ("path", None), ("measures", []), ("measures", {"a": [1]}), ("measures", {"a": float("nan")}),
    ("signature", "*"), ("error", 3),
])  # fmt: skip
def test_a_wrong_field_is_refused(field, value):
    with pytest.raises(DataError):
        ClipRecord.from_json({**RECORD.to_json(), field: value})


def test_a_missing_field_is_named():
    values = RECORD.to_json()
    del values["end"]
    with pytest.raises(DataError, match="end"):
        ClipRecord.from_json(values)


def test_the_first_reason_stays():
    assert RECORD.failed("first").failed("second").error == "first"
