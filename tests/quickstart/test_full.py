"""The quickstart at its full size; about 15 minutes on two cores: pytest -m slow."""

import json

import pytest

from tests.conftest import run_vdit
from vdit.quickstart.run import BARS
from vdit.quickstart.score import PARTS


@pytest.mark.slow
def test_most_samples_of_held_out_prompts_are_right(tmp_path, compile_cache):
    done = run_vdit("quickstart", tmp_path / "run", cache=compile_cache, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(result["shares"][part] >= BARS[part] for part in PARTS), result["shares"]
    assert all(result["shuffled"][part] < 0.5 for part in PARTS), result["shuffled"]
