"""The model that ships: small, named by one word, and right about what it is asked for."""

import pytest

import vdit
from tests.conftest import run_vdit
from tools.demo_report import right
from vdit.paths import shipped


def test_it_is_at_most_12_mb():
    assert sum(file.stat().st_size for file in shipped("demo").rglob("*") if file.is_file()) <= 12_000_000


def test_it_samples_by_its_name(tmp_path, compile_cache):
    out = tmp_path / "shape.mp4"
    done = run_vdit("sample", "demo", "a red circle moves to the left", "--steps", 2, "--frames", 17, "--out", out,
                    cache=compile_cache)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert vdit.read_video(out).frames.shape == (17, 64, 64, 3)


@pytest.mark.slow
def test_it_shows_what_the_prompts_say():
    found = right(vdit.load("demo"), 32, 8)
    assert found["colour"] >= 0.9
    assert found["direction"] >= 0.9
