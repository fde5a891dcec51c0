"""Where the tests find real clips, odd files and tokenizers."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("VDIT_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def shared_data(*parts: str) -> Path:
    """The path of a shared test file or folder; skips the test, with the reason, when it is absent."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)!r} not found: set VDIT_TEST_DATA to the folder that has it")
    return path
