"""Runs of version 0.1.0 (made by tools/fixture_run.py): they load, go on training, and give the same videos."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import vdit
from tools import fixture_run
from vdit.cli.main import main
from vdit.cli.train import find_experiment, with_overrides
from vdit.data.latents import LatentStore
from vdit.train.workspace import Workspace

FIXTURE = Path(__file__).parent / "fixtures" / "run_v1"
# Of 255. The samplers' sums in another order change some pixels by one; a wrong weight or seed changes most by tens.
WORST, MEAN = 3, 0.05


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs and the inputs of the cases. Read it; do not write to it."""
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(FIXTURE / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    fixture_run.make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def golden():
    with np.load(FIXTURE / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(autouse=True)
def _here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setattr("vdit.cli.process.keep_compiled", lambda: None)


# Cases whose command and kind of canvas another case has too.
DUPLICATES = ("edit", "edit_structure", "outpaint")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in DUPLICATES)) for name in fixture_run.CASES]
)
def test_the_same_video(golden, tmp_path, name):
    out = tmp_path / "out.mkv"
    assert main(fixture_run.words(fixture_run.CASES[name], out)) == 0
    frames = vdit.read_video(out).frames
    assert frames.shape == golden[name].shape
    apart = np.abs(frames.astype(int) - golden[name])
    assert apart.max() <= WORST
    assert apart.mean() <= MEAN


@pytest.mark.slow
@pytest.mark.parametrize("name", fixture_run.SLIDING)
def test_long_videos_keep_what_is_given(tmp_path, name):
    case = fixture_run.SLIDING[name]
    out = tmp_path / "out.mkv"
    assert main(fixture_run.words(case.case, out)) == 0
    frames = vdit.read_video(out).frames
    assert frames.shape == (case.frames, 16, 16, 3)
    if case.given is not None:
        given = vdit.read_video(f"{case.given}.mkv").frames
        np.testing.assert_array_equal(frames[case.first : case.first + len(given)], given)
    assert frames.std() > 1


def test_the_same_reconstruction(golden, tmp_path):
    assert main(fixture_run.words(fixture_run.RECONSTRUCTED, tmp_path)) == 0
    report = json.loads((tmp_path / "reconstruct.json").read_text())
    assert report["mean"]["psnr"] == pytest.approx(float(golden["psnr"]), abs=1e-3)


# clips multiplies in bfloat16. Its losses are 3e-4 apart between two machines; the cause is not established: fewer
# instruction sets (--xla_cpu_max_isa=AVX2) change nothing. steer, in float32, agrees.
@pytest.mark.parametrize(("name", "rtol"), [("clips", 1e-3), ("steer", 1e-5)])
def test_training_goes_on_as_it_would_have(golden, runs, tmp_path, name, rtol):
    """Weights, optimizer, average, the place in the data and the noise of each step: all are in the losses."""
    shutil.copytree(runs / name, tmp_path / name)
    assert main(["train", str(tmp_path / name), "--stage", "latents", "--stage", "dit", "--no-tensorboard"]) == 0
    losses = fixture_run.resumed_losses(tmp_path / name / "logs" / "dit.jsonl")
    np.testing.assert_allclose(losses, golden[f"losses_{name}"], rtol=rtol)


@pytest.mark.parametrize(("name", "base", "own"), [
    ("clips", "worlds_small", fixture_run.CLIPS), ("steer", "worlds_steer", fixture_run.STEER),
])  # fmt: skip
def test_old_configs_and_old_keys_mean_the_same_today(runs, tmp_path, name, base, own):
    saved = Workspace(runs / name).experiment()
    told = with_overrides(find_experiment(base), [*fixture_run.COMMON, *own])
    assert dataclasses.replace(told, text=saved.text) == saved
    space = Workspace(tmp_path)
    space.save_experiment(saved)
    assert space.experiment() == saved


def test_old_latents(runs):
    store = LatentStore(runs / "clips" / "latents")
    assert len(store) == 16
    latents = [np.asarray(store[i]["latent"]) for i in range(len(store))]
    assert {latent.shape for latent in latents} <= {(1, 4, 4, 4), (2, 4, 4, 4), (3, 4, 4, 4)}
    assert all(np.isfinite(latent).all() and latent.std() > 0.1 for latent in latents)
