"""What was compiled is kept, apart for each jax and each kind of CPU, and a user's own choice stands."""

import os
import subprocess
import sys
from pathlib import Path

from vdit.cli.cache import cache_folder

CODE = "from vdit.cli import cache; cache.keep_compiled(); import jax; print(jax.config.jax_compilation_cache_dir)"


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
