"""A model of one's own as a folder: what it holds, that it makes the same videos, and the one that ships."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import vdit
from tests.conftest import run_vdit
from vdit.config import to_dict
from vdit.data.data_source import FolderSource
from vdit.errors import WeightsError
from vdit.paths import shipped
from vdit.pretrained.model import import_model, open_model
from vdit.pretrained.native import without_places
from vdit.quickstart.config import experiment as quickstart

PROMPT = "a red circle moves to the left"
SHORT = {"frames": 5, "size": (32, 32), "steps": 2}


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory, compile_cache):
    """The run's model, as `vdit export` writes it."""
    out = tmp_path_factory.mktemp("native") / "model"
    done = run_vdit("export", tiny_run, out, cache=compile_cache)
    assert done.returncode == 0, done.stderr
    assert f"wrote {out}" in done.stderr
    return out


def test_it_makes_the_videos_of_the_run(tiny_run, exported):
    expected = vdit.load(tiny_run)(PROMPT, **SHORT)
    np.testing.assert_array_equal(vdit.load(exported)(PROMPT, **SHORT), expected)


def test_half_the_bytes_make_nearly_the_same(tiny_run, exported, tmp_path, compile_cache):
    done = run_vdit("export", tiny_run, tmp_path / "half", "--dtype", "float16", cache=compile_cache)
    assert done.returncode == 0, done.stderr
    size = lambda folder: sum(file.stat().st_size for file in folder.rglob("*.safetensors"))  # noqa: E731
    assert size(tmp_path / "half") < 0.6 * size(exported)
    halved = vdit.load(tmp_path / "half")(PROMPT, **SHORT).astype(int)
    expected = vdit.load(exported)(PROMPT, **SHORT).astype(int)
    assert np.abs(halved - expected).mean() < 1


def test_it_names_no_place_of_the_training(exported):
    assert json.loads((exported / "model.json").read_text())["name"] == "quickstart"
    assert not (exported / "logs").exists()
    experiment = quickstart()
    folder = dataclasses.replace(experiment.data, source=FolderSource(path="/home/someone/films"))
    trained = dataclasses.replace(experiment, data=folder, start_from="/home/someone/base")
    assert "someone" in json.dumps(to_dict(trained))
    assert "someone" not in json.dumps(to_dict(without_places(trained)))


def test_it_is_imported_as_a_run(exported, tmp_path):
    import_model(exported, tmp_path / "run")
    same = vdit.load(tmp_path / "run")(PROMPT, **SHORT)
    np.testing.assert_array_equal(same, vdit.load(exported)(PROMPT, **SHORT))


@pytest.mark.parametrize("harm", ["flip", "remove", "no statistics"])
def test_damage_is_found(exported, tmp_path, harm):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    weights = folder / "dit" / "model.safetensors"
    if harm == "flip":
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(bytes(data))
    else:
        (weights if harm == "remove" else folder / "statistics.json").unlink()
    with pytest.raises(WeightsError, match="statistics" if harm == "no statistics" else "dit"):
        open_model(folder)


def test_diffusers_has_no_such_model(tiny_run, tmp_path, compile_cache):
    done = run_vdit("export", tiny_run, tmp_path / "out", "--layout", "diffusers", cache=compile_cache)
    assert done.returncode == 2
    assert "--layout vdit" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_of_ones_own_comes_before_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped("runs/mine") == "runs/mine"
    assert shipped("demo") != "demo"
    (tmp_path / "demo").mkdir()
    assert shipped("demo") == "demo"
