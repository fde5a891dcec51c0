"""The runner of fuzz scripts: what it calls ok, refused and failed, and that it goes on after each."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.fuzz.common import Limits, Wrong, main, run_cases, summary
from vdit.errors import DataError, VditError

CASES = ("ok", "refused", "crash", "wrong", "hang", "memory", "dies", "making", "ok")


class Ugly(VditError):
    def __str__(self):
        return "two\nlines"


def make(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    kind = CASES[seed]
    if kind == "making":
        raise KeyError("the input")
    return f"{kind}: a case", lambda: _call(kind, folder)


def _call(kind: str, folder: Path) -> None:
    if kind == "refused":
        raise DataError(f"{folder}: is empty")
    if kind == "crash":
        raise ZeroDivisionError("no")
    if kind == "wrong":
        raise Wrong("another video")
    if kind == "hang":
        time.sleep(60)
    if kind == "memory":
        _ = b"x" * (1 << 30)
    if kind == "dies":
        os._exit(3)
    (folder / "file").write_text("x")


def make_ugly(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    def call() -> None:
        raise Ugly if seed else DataError("fine")

    return "one line", call


@pytest.fixture(scope="module")
def results():
    return list(run_cases(make, range(len(CASES)), limits=Limits(seconds=1.5, wall=1.5, memory=200 << 20)))


def test_each_outcome_is_told_and_the_next_case_runs(results):
    outcomes = ["ok", "refused", *["failed"] * 6, "ok"]
    assert [result.outcome for result in results] == outcomes
    words = ["", "is empty", "ZeroDivision", "another", "1.5 s", "emory", "3", "KeyError", ""]
    for result, word in zip(results, words):
        assert word in result.detail
    assert all(result.seconds < 5 for result in results)


def test_a_message_of_two_lines_fails():
    assert [r.outcome for r in run_cases(make_ugly, (0, 1))] == ["refused", "failed"]


def test_the_table_counts_all(results):
    assert summary(results).splitlines()[-3].split() == ["all", "9", "2", "1", "6"]


def test_the_exit_code_says_whether_a_case_failed(capsys):
    assert main(make, cases=2, description="", argv=[]) == 0
    assert main(make, cases=1, description="", argv=["--first", "2"]) == 1
    assert "seed 2" in capsys.readouterr().out
    assert main(make, cases=1, description="", argv=["--seed", "1"]) == 0
