"""A data source, a loss and an evaluator of a user's own, outside of vdit: one `vdit train` uses all three.

Their code, and the options that use them, stand in docs/how_to and are taken from there.
"""

import io
import json
import math
import re
import shlex
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import vdit
from tests.conftest import ROOT, TINY
from vdit import registry
from vdit.checkpoint import load_params
from vdit.cli.main import main
from vdit.video.write import write_video

PAGES = [ROOT / "docs" / "how_to" / f"{name}.md" for name in ("data_source", "loss", "evaluator")]


def write_plugin(page: Path, folder: Path) -> str:
    """Writes the file that a page shows, and returns the option that imports it."""
    text, name = re.search(r"```python\n(# (\S+\.py)\n.*?)```", page.read_text(), re.DOTALL).groups()
    (folder / name).write_text(text)
    return f"--plugin={folder / name}"


def overrides_of(page: Path) -> list[str]:
    """The --cfg options of the command that a page shows."""
    command = re.search(r"^vdit train .*$", page.read_text(), re.MULTILINE)[0]
    return [word for word in shlex.split(command) if word.startswith("--cfg.")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two tar files of three videos each, with captions."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for item in range(3):
                name = f"clip_{shard}{item}"
                write_video(folder / "clip.mp4", rng.integers(0, 255, (9, 48, 48, 3), np.uint8), fps=8)
                tar.add(folder / "clip.mp4", f"{name}.mp4")
                text = tarfile.TarInfo(f"{name}.txt")
                text.size = len(caption := f"noise number {item}".encode())
                tar.addfile(text, io.BytesIO(caption))
    (folder / "clip.mp4").unlink()
    return folder


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """The folder of a run that was trained with all three."""
    folder = tmp_path_factory.mktemp("doors")
    experiment = folder / "experiment.py"
    experiment.write_text("from vdit.quickstart.config import experiment as config\n")
    sizes = [f"--cfg.{text}" for text in TINY if not text.startswith("data.source")]
    own = [word for page in PAGES for word in overrides_of(page)]
    more = [f"--cfg.data.source.path={shards}", '--cfg.holdout=("clip_12",)', "--cfg.vae_train.steps=1"]
    arguments = [str(experiment), "--workdir", str(folder / "run"), "--no-tensorboard"]
    plugins = [write_plugin(page, folder) for page in PAGES]
    assert main(["train", *plugins, *arguments, *sizes, *own, *more]) == 0
    return folder / "run"


def lines_of(run):
    return [json.loads(line) for line in (run / "logs" / "dit.jsonl").read_text().splitlines()]


def test_the_loss_has_its_term(run):
    losses = [line for line in lines_of(run) if "loss" in line]
    assert len(losses) == 2
    for line in losses:
        assert line["loss"] == pytest.approx(line["mse"] + 0.5 * line["feature_gap"], rel=1e-5)
        assert line["feature_gap"] > 0


def test_the_evaluator_is_asked_every_step(run):
    figures = {line["step"]: line["eval/my_evaluator/variation"] for line in lines_of(run) if "loss" not in line}
    assert set(figures) == {1, 2}
    assert all(math.isfinite(value) for value in figures.values())
    best = json.loads((run / "dit" / "best.json").read_text())
    assert best["best"] == min(figures, key=figures.get)


def test_the_source_gives_the_videos_of_the_tar_files_but_those_held_out(run):
    index = json.loads((run / "latents" / "index.json").read_text())
    assert index["count"] == 12  # as asked: passes over five videos
    saved = json.loads((run / "experiment.json").read_text())
    assert saved["data"]["source"]["kind"] == "my_tars"
    assert [choice["kind"] for choice in saved["evaluators"]] == ["my_evaluator"]
    source = registry.get("data_source", "my_tars")(path=saved["data"]["source"]["path"])
    from vdit.data import DataConfig

    data = DataConfig(source=source, pixel_budgets=(1024,), frames=(1, 5))
    seen, held_out = (make(data, seed=0, holdout=("clip_12",)) for make in (source.open, source.open_held_out))
    assert [seen.name(i) for i in range(len(seen))] == ["clip_00", "clip_01", "clip_02", "clip_10", "clip_11"]
    assert held_out[0]["captions"] == ["noise number 2"]


def test_a_run_without_its_plugin_is_one_clear_line(run, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_classes", {
        kind: {name: cls for name, cls in known.items() if not name.startswith("my_")}
        for kind, known in registry._classes.items()
    })  # fmt: skip
    assert main(["train", str(run)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "'my_tars'" in error
    assert "--plugin" in error


def test_the_best_checkpoint_can_be_loaded(run):
    best = json.loads((run / "dit" / "best.json").read_text())["best"]
    loaded, want = vdit.load(run, step="best").params, load_params(run / "dit", step=best)
    jax.tree.map(np.testing.assert_array_equal, dict(loaded), want)
