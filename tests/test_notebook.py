"""The notebooks run from their first cells to their last, shrunk, and are stored without outputs."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

import vdit
from tests import tiny
from tests.conftest import ROOT, TINY

NEEDS = "the notebook test needs nbclient and ipykernel: pip install -e '.[test]'"
nbformat = pytest.importorskip("nbformat", reason=NEEDS)
nbclient = pytest.importorskip("nbclient", reason=NEEDS)
pytest.importorskip("ipykernel", reason=NEEDS)

NOTEBOOKS = sorted((ROOT / "experiments" / "colab").glob("*.ipynb"))
STEER = (
    "data.source.count=12", "latents.samples=12", "vae.base_channels=8", "backbone.width=16", "backbone.heads=1",
    "backbone.depth=1", "vae_train.steps=2", "vae_train.batch_size=2", "dit_train.steps=2", "sample.steps=1",
    "vae_train.optimizer.warmup_steps=0", "dit_train.optimizer.warmup_steps=0", "dit_train.save_every=2",
    "dit_train.log_every=1", "vae_train.log_every=1",
)  # fmt: skip
LORA = """
import dataclasses
from pathlib import Path

from tests import tiny
from vdit.data.data_source import FolderSource


def config():
    e = tiny.lora_experiment(Path({base!r}))
    data = dataclasses.replace(
        e.data, source=FolderSource(path="videos"), pixel_budgets=(1024,), size_multiple=16, frames=(1, 5), threads=1
    )
    return dataclasses.replace(e, data=data, latents=dataclasses.replace(e.latents, samples=6))
"""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(ROOT / "experiments" / "colab" / "quickstart.ipynb", as_version=4)


def execute(path: Path, folder: Path, cache: Path, **environment: str) -> str:
    """What a notebook prints; its page is opened and closed."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT), "KEEP_PAGE": "0",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    } | environment  # fmt: skip
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(nbformat.read(path, as_version=4), timeout=900, resources=resources)
    done = client.execute(env=environment)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("<iframe" in output.get("data", {}).get("text/html", "") for output in outputs) == 1  # the page
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.slow
def test_your_own_videos(tmp_path: Path, compile_cache: Path):
    mine = " ".join(one for one in TINY if not one.startswith(("data.source.", "latents.")))
    execute(
        ROOT / "experiments" / "colab" / "your_videos.ipynb", tmp_path, compile_cache,
        VDIT_OVERRIDES=mine, VDIT_CLIPS="6",
    )  # fmt: skip
    assert vdit.read_video(tmp_path / "sample.mp4").frames.shape == (5, 32, 32, 3)


@pytest.mark.slow
def test_a_world_model(tmp_path: Path, compile_cache: Path):
    path = ROOT / "experiments" / "colab" / "world_model.ipynb"
    said = execute(path, tmp_path, compile_cache, VDIT_OVERRIDES=" ".join(STEER))
    assert "(9, 32, 32, 3)" in said  # the first frame, and one for each key
    assert vdit.read_video(tmp_path / "played.mp4").frames.shape == (9, 32, 32, 3)


@pytest.mark.slow
def test_public_weights_and_a_lora(tmp_path: Path, compile_cache: Path):
    base, videos = tmp_path / "base", tmp_path / "videos"
    tiny.make_vae(base, tiny.make_base(base))
    videos.mkdir()
    for k in range(4):
        frames = np.random.default_rng(k).integers(0, 255, (9, 32, 32, 3), np.uint8)
        vdit.write_video(videos / f"{k}.mp4", frames, fps=8)
        (videos / f"{k}.txt").write_text(tiny.CAPTIONS[k % 3])
    (tmp_path / "small_lora.py").write_text(LORA.format(base=str(base)))
    execute(
        ROOT / "experiments" / "colab" / "public_weights_lora.ipynb", tmp_path, compile_cache, VDIT_MODEL=str(base),
        VDIT_FRAMES="5", VDIT_VIDEOS=str(videos), VDIT_EXPERIMENT=str(tmp_path / "small_lora.py"),
    )  # fmt: skip
    before, after = (vdit.read_video(tmp_path / name).frames for name in ("base.mp4", "styled.mp4"))
    assert before.shape == after.shape
    assert (before != after).any()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_stored_without_outputs_and_end_with_the_page(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert any("vdit.playground(" in cell.source for cell in notebook.cells[-4:])
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.usefixtures("tiny_run")  # trains the same experiment first, so that little is left to compile
def test_it_runs_to_the_end(notebook, tmp_path: Path, compile_cache: Path):
    environment = os.environ | {
        "VDIT_OVERRIDES": " ".join(TINY),
        "VDIT_PROMPTS": "4",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": str(ROOT),
        "KEEP_PAGE": "0",
    }
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    done = client.execute(env=environment)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data.get("text/html", "") for output in outputs if output.output_type == "display_data"]
    pages = [html for html in shown if "<iframe srcdoc" in html]
    assert len(pages) == 4
    assert sum(page.count("data:video/mp4") for page in pages) == 4 + 2 + 8
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    for name in ("shares", "rendered", "shuffled", "chance"):
        assert re.search(rf"^{name} .*'direction': '\d+%'", text, re.MULTILINE)
    assert (tmp_path / "sample.mp4").exists()
    assert (tmp_path / "runs" / "notebook" / "dit" / "2").is_dir()
