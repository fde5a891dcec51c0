"""train -> sample -> reconstruct through the command line, on video files that the test makes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vdit
from tests.conftest import TINY, run_vdit
from vdit.cli.main import main
from vdit.data.latents import LatentStore

OF_ANY_DATA = tuple(override for override in TINY if not override.startswith("data.source."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three small videos of different shapes with captions, and one file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for number, (height, width) in enumerate([(32, 32), (40, 64), (64, 36)]):
        ramp = np.linspace(0, 255, height * width * 3).reshape(1, height, width, 3)
        frames = np.stack([np.roll(ramp[0], shift, 1) for shift in range(9)]).astype(np.uint8)
        vdit.write_video(folder / f"{number}.mp4", frames, fps=8)
        lines.append(json.dumps({"file": f"{number}.mp4", "caption": f"a ramp, number {number}"}))
    (folder / "broken.mp4").write_bytes(b"not a video")
    lines.append(json.dumps({"file": "broken.mp4", "caption": "nothing"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def trained(folder, tiny_run, compile_cache, tmp_path_factory):
    """(run folder, output of vdit train) on the folder; same shapes as the tiny run, so little compiles."""
    run = tmp_path_factory.mktemp("train") / "run"
    overrides = [f"--cfg.{override}" for override in (*OF_ANY_DATA, f"text.tokenizer={tiny_run / 'tokenizer.model'}")]
    done = run_vdit("train", "--data", folder, "--workdir", run, "--no-tensorboard", *overrides, cache=compile_cache)
    assert done.returncode == 0, done.stdout + done.stderr
    return run, done.stdout


def test_training_tells_what_it_skipped_and_how_to_go_on(trained):
    run, output = trained
    assert output.count("data: 4 videos in ") == 1
    assert "3 used: 3 with captions, 0 without; 1 not used" in output
    assert output.count("broken.mp4: ") == 1  # once, not at each stage
    assert f"vdit sample {run}" in output
    assert {"vae", "dit", "latents", "logs", "experiment.json", "tokenizer.model"} <= {p.name for p in run.iterdir()}
    assert not list((run / "logs").rglob("events*"))  # --no-tensorboard


def test_the_trained_run_samples_and_reconstructs(trained, folder, tmp_path, capsys):
    run, _ = trained
    assert main(["sample", str(run), "a ramp", "--out", str(tmp_path / "new" / "a.mp4"), "--size", "32x48"]) == 0
    clip = vdit.read_video(tmp_path / "new" / "a.mp4")
    assert clip.frames.shape == (5, 32, 48, 3)
    assert clip.fps == 8

    assert main(["reconstruct", str(run), str(folder), "--out", str(tmp_path)]) == 2  # for the broken file
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("vdit: ") and "broken.mp4" in line]
    assert "3 of 4 files" in err
    assert "mean of 3" in out
    report = json.loads((tmp_path / "reconstruct.json").read_text())
    sizes = [(row["height"], row["width"], row["frames"]) for row in report["files"]]
    # 40x64 fits 24x40 within 32x32 pixels: its own shape to the nearest stride, and no crop to a square.
    assert sizes == [(32, 32, 9), (24, 40, 9), (40, 24, 9)]
    assert report["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in report["files"]]))
    beside = vdit.read_video(tmp_path / "1.mp4").frames
    assert beside.shape == (9, 24, 80, 3)


def test_an_edited_caption_reaches_the_latents(trained, folder, capsys):
    run, captions = trained[0], folder / "captions.jsonl"
    before = captions.read_text()
    captions.write_text(before.replace("a ramp, number 1", "another text"))
    try:
        assert main(["train", str(run), "--stage", "latents"]) == 0
        assert "1 with other captions ('1.mp4')" in capsys.readouterr().out
        store = LatentStore(run / "latents")
        assert {store[i]["captions"][0] for i in range(len(store)) if store[i]["id"] == "1.mp4"} == {"another text"}
    finally:
        captions.write_text(before)
    assert main(["train", str(run), "--stage", "latents"]) == 0  # as it was, for the tests that follow


def test_the_same_command_resumes(trained, folder, tiny_run, capsys):
    run, _ = trained
    before = (run / "logs" / "dit.jsonl").read_text()
    assert main(["train", str(run), "--stage", "vae", "--stage", "tokenizer", "--stage", "dit"]) == 0
    assert (run / "logs" / "dit.jsonl").read_text() == before


def test_samples_of_a_file_of_prompts(tiny_run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red circle\nA: blue/cross!\n\nup")
    arguments = ["sample", tiny_run, "--prompts", tmp_path / "prompts.txt", "--batch", 2, "--frames", 1]
    assert main([str(a) for a in [*arguments, "--out", tmp_path / "all"]]) == 0
    names = sorted(path.name for path in (tmp_path / "all").glob("*.png"))
    assert names == ["000-a-red-circle-seed0.png", "001-a-blue-cross-seed0.png", "002-up-seed0.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "all" / name) for name in names]
    assert Image.open(tmp_path / "all" / names[0]).size == (32, 32)


def test_a_file_of_wishes_with_many_seeds(tiny_run, tmp_path, capsys):
    """A video depends on its prompt, seed and size, not on what is made beside it, nor on the order."""
    lines = [
        {"prompt": "a red circle", "out": "first.mkv"},
        {"prompt": "a blue cross", "frames": 1, "size": "16x32"},
        {"prompt": "a red circle", "seed": 4, "negative": "a blue cross"},
        {"prompt": "a blue cross", "out": "last.mkv"},
    ]
    (tmp_path / "wishes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ["--out", str(tmp_path / "all"), "--count", "2", "--batch", "2"]
    assert main(["sample", str(tiny_run), "--prompts", str(tmp_path / "wishes.jsonl"), *options]) == 0
    out, err = capsys.readouterr()
    assert sorted(Path(line).name for line in out.splitlines()) == [
        "001-a-blue-cross-seed0.png", "001-a-blue-cross-seed1.png", "002-a-red-circle-seed4.mp4",
        "002-a-red-circle-seed5.mp4", "first-seed0.mkv", "first-seed1.mkv", "last-seed0.mkv", "last-seed1.mkv",
    ]  # fmt: skip
    assert "8/8" in err
    assert Image.open(tmp_path / "all" / "001-a-blue-cross-seed0.png").size == (32, 16)
    (tmp_path / "other.jsonl").write_text('{"prompt": "a blue cross", "seed": 1, "out": "last.mkv"}\n"up"')
    assert main(["sample", str(tiny_run), "--prompts", str(tmp_path / "other.jsonl"), "--out", str(tmp_path)]) == 0
    last = vdit.read_video(tmp_path / "last.mkv").frames.astype(int)
    apart = [np.abs(last - vdit.read_video(tmp_path / "all" / f"last-seed{k}.mkv").frames).max() for k in (0, 1)]
    assert apart[0] > 8
    assert apart[1] <= 1


def test_what_a_run_cannot_make_is_one_line(tiny_run, tmp_path, capsys):
    for arguments, named in [
        (["--size", "33x32"], "height=33 must be a multiple of 16"),
        (["--frames", "6"], "use 5 or 9"),
        (["--image", "absent.png"], "absent.png: cannot be read as an image"),
        (["--mesh", "sequnce=2"], "--mesh sequnce=2: "),
        (["--mesh", "sequence=16"], "sequence=16"),
    ]:
        assert main(["sample", str(tiny_run), "a", "--out", str(tmp_path / "a.mp4"), *arguments]) == 2
        err = capsys.readouterr().err
        assert named in err
        assert err.count("\n") == 1


def test_the_default_for_a_folder_is_an_experiment(folder, capsys):
    assert main(["train", "--data", str(folder), "--help-config"]) == 0
    text = capsys.readouterr().out
    assert f"{folder}" in text
    assert re.search(r"--cfg\.latents\.samples +int +2000\n", text)
