"""What was compiled is kept, apart for each jax and each kind of CPU, and a user's own choice stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vdit.cli.process import cache_folder

CODE = "from vdit.cli import process; process.keep_compiled(); import jax; print(jax.config.jax_compilation_cache_dir)"


def chosen(**variables) -> Path:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | variables, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def test_the_folder_depends_on_jax_and_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = cache_folder("1")
    assert here.parent == tmp_path / "vdit"
    assert cache_folder("1") == here != cache_folder("2")
    monkeypatch.setattr("platform.machine", lambda: "another")
    assert cache_folder("1") != here


def test_a_set_folder_stands(tmp_path):
    assert chosen(XDG_CACHE_HOME=str(tmp_path)).parent == tmp_path / "vdit"
    assert chosen(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == tmp_path / "mine"


def test_a_folder_that_cannot_be_written_costs_one_line_and_no_work():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": "/dev/null/x", "JAX_PLATFORMS": "cpu"}
    code = f"{CODE}; print(float(jax.jit(lambda x: x + 1)(1.0)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("2.0\n")
    assert done.stderr.count("\n") == 1
    assert "/dev/null/x" in done.stderr


@pytest.mark.parametrize(("platform", "command"), [
    ("cuda", ["quickstart", "/dev/null/run"]), ("no-such", ["sample", "/dev/null/run", "a dog"]),
])  # fmt: skip
def test_a_platform_that_is_not_there_is_one_line_of_what_is(platform, command):
    done = subprocess.run(
        [sys.executable, "-m", "vdit.cli.main", *command],
        env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"vdit: JAX_PLATFORMS={platform}: ")
    assert "cpu" in done.stderr
    assert done.stderr.count("\n") == 1
