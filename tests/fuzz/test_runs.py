"""Files of a run that a sample depends on: all are under checksums; and a short form of tools.fuzz.runs."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

import vdit
from tests.conftest import run_vdit
from tools.fuzz import runs
from tools.fuzz.common import run_cases
from vdit.checkpoint import MANIFEST, write_manifest
from vdit.errors import CheckpointError, WeightsError
from vdit.pretrained.export import export_model
from vdit.pretrained.model import open_model
from vdit.train.workspace import FILES, Workspace


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(an imported run, another of the same form), for this process and those that it starts."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(runs.SHARED, str(root))
        runs._runs.cache_clear()
        yield runs._runs()
        runs._runs.cache_clear()


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "run")


def test_damaged_runs_are_named_or_sample_the_same(whole):
    assert not [result for result in run_cases(runs.make, range(1, 13)) if result.outcome == "failed"]


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def a_setting(run):
    values = json.loads((run / "experiment.json").read_text())
    values["sample"]["steps"] += 1
    (run / "experiment.json").write_text(json.dumps(values, indent=2))


HARM = {
    "a setting": (a_setting, "experiment.json"),
    "another experiment": (lambda run: Workspace(run).save_experiment(deeper(run)), "backbone.depth"),
    "statistics missing": (lambda run: (run / "statistics.json").unlink(), "statistics.json"),
    "statistics": (lambda run: edit(run / "statistics.json", mean=[0.1, -0.2, 0.3, 0.001]), "statistics.json"),
    "statistics a pipe": (lambda run: pipe(run / "statistics.json"), "statistics.json"),
    "tokenizer": (lambda run: flip(run / "tokenizer.model", -1), "tokenizer.model"),
    "tokenizer missing": (lambda run: (run / "tokenizer.model").unlink(), "tokenizer.model"),
}


def deeper(run):
    experiment = Workspace(run).experiment()
    return dataclasses.replace(experiment, backbone=dataclasses.replace(experiment.backbone, depth=3))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", HARM)
def test_what_a_sample_depends_on_is_checked(run, what):
    harm, named = HARM[what]
    harm(run)
    with pytest.raises(CheckpointError, match=named):
        vdit.load(run)


def test_the_networks_of_another_run_are_refused(run, whole):
    shutil.rmtree(run / "vae")
    shutil.copytree(whole[1] / "vae", run / "vae")
    with pytest.raises(CheckpointError, match="vae"):
        vdit.load(run)


def test_a_run_of_old_loads_and_says_that_its_files_are_not_protected(run, whole, capsys):
    values = json.loads((run / "experiment.json").read_text())
    del values["sha256"]
    (run / "experiment.json").write_text(json.dumps(values))
    (step,) = (run / "dit").iterdir()
    meta = json.loads((step / "meta" / "meta.json").read_text())
    del meta[FILES], meta["vae"]
    (step / "meta" / "meta.json").write_text(json.dumps(meta))
    (step / MANIFEST).unlink()
    write_manifest(step)
    generator = vdit.load(run)
    said = capsys.readouterr().err
    assert said.count("checksums") == 1
    assert str(run) in said
    assert runs._state(generator) == runs._state(vdit.load(whole[0]))
    assert "checksums" not in capsys.readouterr().err
    (run / "statistics.json").unlink()
    with pytest.raises(CheckpointError, match="statistics"):
        vdit.load(run)


def test_exports_are_under_checksums(run, tmp_path):
    generator = vdit.load(run)
    export = (Workspace(run), generator.experiment, generator.params, generator.vae.params)
    export_model(*export, tmp_path / "out")
    same = vdit.load(tmp_path / "out", compute="float32")
    np.testing.assert_array_equal(same.vae.statistics["mean"], generator.vae.statistics["mean"])
    flip(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors", -3)
    with pytest.raises(WeightsError, match=r"vae/diffusion_pytorch_model.safetensors is damaged"):
        open_model(tmp_path / "out")
    flip(run / "public" / "scheduler" / "scheduler_config.json", 40)
    with pytest.raises(CheckpointError, match=r"scheduler_config.json"):
        export_model(*export, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_trained_run_without_its_statistics_samples_nothing(tiny_run, tmp_path, compile_cache):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("latents", "logs"))
    flip(run / "tokenizer.model", -1)
    done = run_vdit("sample", run, "a red disc", "--out", tmp_path / "x.mp4", cache=compile_cache)
    assert (done.returncode, "tokenizer.model" in done.stderr, done.stderr.count("\n")) == (2, True, 1)
    shutil.copy(tiny_run / "tokenizer.model", run)
    (run / "statistics.json").unlink()
    done = run_vdit("sample", run, "a red disc", "--out", tmp_path / "x.mp4", cache=compile_cache)
    assert (done.returncode, "statistics.json" in done.stderr, done.stderr.count("\n")) == (2, True, 1)
    assert not (tmp_path / "x.mp4").exists()
