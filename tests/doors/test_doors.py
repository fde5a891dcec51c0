"""A data source, a loss and an evaluator of a user's own, outside of vdit: one `vdit train` uses all three."""

import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY
from vdit import registry
from vdit.cli.main import main
from vdit.video.write import write_video

HERE = Path(__file__).parent
PLUGINS = [f"--plugin={HERE / name}.py" for name in ("my_tars", "my_loss", "my_evaluator")]


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
    overrides = [text for text in TINY if not text.startswith("data.source")]
    overrides += [
        "data.source=my_tars", f"data.source.path={shards}", 'holdout=("clip_12",)', "objective=my_loss",
        "objective.weight=0.5", "evaluators=my_evaluator", "evaluators.my_evaluator.every=1",
        "evaluators.my_evaluator.clips=2", "dit_train.best_metric=eval/my_evaluator/variation", "vae_train.steps=1",
    ]  # fmt: skip
    arguments = [*PLUGINS, str(experiment), "--workdir", str(folder / "run"), "--no-tensorboard"]
    assert main(["train", *arguments, *(f"--cfg.{text}" for text in overrides)]) == 0
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


def test_the_doors_are_short():
    for name in ("my_tars", "my_loss", "my_evaluator"):
        assert len((HERE / f"{name}.py").read_text().splitlines()) <= 80
