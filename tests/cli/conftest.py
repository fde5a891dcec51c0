"""Commands that run inside the tests' own process leave its compilation cache alone."""

import pytest


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    monkeypatch.setattr("vdit.cli.process.keep_compiled", lambda: None)
