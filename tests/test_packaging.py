"""The names under which vdit is installed, and what a wheel holds."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT
from tools.minima import minima
from vdit.cli.train import find_experiment, shipped_experiments
from vdit.errors import DISTRIBUTION, install_command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_messages_name_the_distribution_and_extras_that_there_are():
    assert PROJECT["name"] == DISTRIBUTION
    asked = set()
    for path in (ROOT / "vdit").rglob("*.py"):
        asked |= set(re.findall(r"install_command\(['\"](\w+)['\"]\)", path.read_text()))
    assert asked
    assert asked <= set(EXTRAS)


def test_nothing_tells_a_user_to_install_the_other_project_of_our_import_name():
    for path in [*ROOT.glob("*.md"), *(ROOT / "vdit").rglob("*.py"), *(ROOT / "experiments").rglob("*.*")]:
        if path.suffix in (".md", ".py", ".ipynb", ".sh", ".yaml"):
            text = path.read_text().replace("`pip install vdit` would install another project", "")
            assert not re.search(r"install (-\w+ )*['\"]?vdit(?![\w-])", text), path


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'vdit-jax[tpu]'"),
        ({"url": "file:///src/my%20vdit", "dir_info": {"editable": True}}, "pip install -e '/src/my vdit[tpu]'"),
        ({"url": "file:///src/vdit", "dir_info": {}}, "pip install '/src/vdit[tpu]'"),
        ({"url": "file:///tmp/vdit_jax-1-py3-none-any.whl", "archive_info": {}},
         "pip install '/tmp/vdit_jax-1-py3-none-any.whl[tpu]'"),
        ({"url": "https://host/vdit.git", "vcs_info": {"vcs": "git"}},
         "pip install 'vdit-jax[tpu] @ git+https://host/vdit.git'"),
    ],
)  # fmt: skip
def test_extras_are_installed_from_where_vdit_came_from(monkeypatch, origin, command):
    class Installed:
        def read_text(self, name):
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    assert install_command("tpu") == command


def test_an_experiment_is_found_by_its_name():
    assert set(shipped_experiments()) == {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert find_experiment("clips") == find_experiment(str(ROOT / "experiments" / "clips.py"))


def test_a_wheel_holds_the_experiments_and_trains_them_by_name(tmp_path):
    source = tmp_path / "source"  # building leaves folders beside the sources
    for name in ("vdit", "experiments", "data_pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, source],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    # Installed, and run outside of the checkout.
    options = ["--no-deps", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, wheel], check=True)
    done = subprocess.run([sys.executable, "-m", "vdit.cli.main", "train", "clips", "--help-config"], cwd=tmp_path,
                          env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin"}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--cfg.name" in done.stdout
    assert "clips" in done.stdout
    assert (tmp_path / "site" / "data_pipelines" / "curate.py").is_file()  # vdit curate imports it


def test_every_dependency_has_one_minimum():
    assert len(minima([])) == len(PROJECT["dependencies"])
    assert len(minima(["data", "test"])) > len(minima([]))


@pytest.mark.parametrize("name", ["orbax-checkpoint"])
def test_what_is_used_by_private_names_has_an_upper_bound(name):
    (requirement,) = (each for each in PROJECT["dependencies"] if each.startswith(name))
    assert ",<" in requirement
