"""What commands do with files: nothing given is replaced, finished videos are skipped, no two take the same name."""

import json
from pathlib import Path

import numpy as np
import pytest

import vdit
from vdit.cli import sample
from vdit.cli.batch import MANIFEST, Manifest, PromptSpec, digests, state_of
from vdit.cli.main import main, parse

FRAMES = np.zeros((5, 32, 32, 3), np.uint8)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("arguments", [
    ["sample", "run", "a", "--out", "run/old.mp4"],
    ["sample", "--model", "run", "a", "--out", "run/../run/old.mp4"],
    ["sample", "run", "a", "--image", "mine/dog.gif", "--out", "mine/dog.gif"],
    ["sample", "run", "--prompts", "p.jsonl", "--out", "mine"],
    ["sample", "--model", "run", "a", "--parts", "mine/dog.gif", "--out", "mine/dog.gif"],
    ["animate", "run", "mine/dog.gif", "a", "--out", "hard.gif"],
    ["animate", "run", "mine/dog.gif@1s", "a", "--out", "mine/dog.gif"],
    ["extend", "run", "mine/dog.mp4", "a", "--after", "4", "--out", "mine/dog.mp4"],
    ["extend", "run", "mine/dog.mp4", "a", "--after", "4", "--out", "link.mp4"],
    ["loop", "run", "mine/dog.mp4", "a", "--out", "mine/../mine/dog.mp4"],
    ["connect", "run", "mine/dog.mp4", "mine/cat.mp4", "a", "--out", "mine/cat.mp4"],
    ["edit", "run", "mine/dog.mp4", "a", "--mask", "mine/mask.mp4", "--out", "mine/mask.mp4"],
    ["inpaint", "run", "mine/dog.mp4", "a", "--mask", "mine/mask.mp4", "--out", "mine/mask.mp4"],
    ["rollout", "run", "mine/dog.mp4", "a", "--seconds", "1", "--out", "mine/dog.mp4"],
    ["simulate", "run", "mine/dog.mp4", "a", "--keys", "a", "--out", "run/old.mp4"],
    ["reconstruct", "run", "mine", "--out", "mine"],
    ["reconstruct", "run", "mine/dog.mp4", "--out", "linked"],
    ["export", "run", "run"],
    ["export", "run", "mine"],
    ["import", "mine", "mine"],
    ["train", "--data", "mine", "--workdir", "mine"],
    ["train", "--data", "run/latents", "--workdir", "run"],
    ["train", "--data", "mine", "--workdir", "site"],
    ["quickstart", "site"],
    ["quickstart", "mine/dog.mp4"],
    ["plan", "clips", "--topology", "cpu:1", "--out", "mine/dog.mp4"],
])  # fmt: skip
def test_nothing_given_is_replaced_and_it_is_told_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, arguments):
    """`run` is no model: a command that looked at it first would say so."""
    monkeypatch.chdir(tmp_path)
    for folder in ("run/latents", "mine", "site"):
        Path(folder).mkdir(parents=True)
    for name in ("dog.mp4", "cat.mp4", "mask.mp4"):
        vdit.write_video(Path("mine") / name, FRAMES, fps=8)
    vdit.write_video("mine/dog.gif", FRAMES, fps=8)
    Path("run/old.mp4").write_bytes(b"old")
    Path("run/latents/a.mp4").write_bytes(b"old")
    for name in ("report.html", "statistics.json"):
        Path("site", name).write_text("mine")
    Path("p.jsonl").write_text('{"prompt": "a", "out": "new.mp4"}\n{"prompt": "a", "out": "dog.mp4"}\n')
    Path("link.mp4").symlink_to("mine/dog.mp4")
    Path("hard.gif").hardlink_to("mine/dog.gif")
    Path("linked").symlink_to("mine", target_is_directory=True)
    before = contents(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert any(word in err for word in ("was given", "not empty", "already", "is a file", "is yours", "data folder"))
    assert contents(tmp_path) == before


def test_a_command_goes_on_and_another_seed_makes_another_file(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "a red circle", "out": "b/a.mp4"}\n"a blue cross"\n"a blue cross"\n')
    command = ["sample", str(tiny_run), "--prompts", "p.jsonl", "--out", "out.v1"]

    assert main(command) == 0
    first = contents(Path("out.v1"))
    names = {"b/a.mp4", "001-a-blue-cross-seed0.mp4", "002-a-blue-cross-seed0.mp4", MANIFEST}
    assert {str(Path(name).relative_to("out.v1")) for name in first} == names
    lines = [json.loads(line) for line in Path("out.v1", MANIFEST).read_text().splitlines()]
    assert next((line["file"], line["prompt"], line["frames"]) for line in lines) == ("b/a.mp4", "a red circle", 5)

    capsys.readouterr()
    Path("out.v1/002-a-blue-cross-seed0.mp4").unlink()
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out == "out.v1/002-a-blue-cross-seed0.mp4\n"
    assert "2 of 3 videos are finished" in err
    assert {name: data for name, data in contents(Path("out.v1")).items() if MANIFEST not in name} == {
        name: data for name, data in first.items() if MANIFEST not in name
    }
    assert main(command) == 0
    assert capsys.readouterr().out == ""

    assert main([*command, "--seed", "7"]) == 2  # the file that a line names is of another seed
    assert "b/a.mp4" in capsys.readouterr().err
    Path("p.jsonl").write_text('"a blue cross"\n')
    for arguments, name in (
        (["--seed", "7"], "000-a-blue-cross-seed7.mp4"),
        (["--seed", "7", "--steps", "2"], "000-a-blue-cross-seed7-2.mp4"),
    ):
        assert main([*command, *arguments]) == 0
        assert capsys.readouterr().out == f"out.v1/{name}\n"


def test_videos_of_other_parts_of_a_model_are_other_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.vae", "b.vae"):
        Path(name).write_bytes(b"weights")
    found = set()
    for parts in ([], ["a.vae"], ["b.vae"], ["a.vae", "b.vae"]):
        options, _ = parse(["sample", "--model", ".", "a dog", *(f"--parts={part}" for part in parts)])
        request = sample.Request(number=0, spec=PromptSpec(prompt="a dog"), seed=0, several=False)
        found.update(digests(sample._depends(options, ".", [request])))
    assert len(found) == 4


def test_ctrl_c_says_how_many_are_finished(tiny_run, tmp_path, monkeypatch, capsys):
    from vdit.generate import Generator

    calls, call = [], Generator.__call__

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, *arguments, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Generator, "__call__", interrupted)
    command = ["sample", str(tiny_run), "a", "b", "--batch", "1", "--seed", str(2**63)]
    assert main(command) == 130
    assert "1 of 2 videos are finished; the same command makes the others" in capsys.readouterr().err
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"samples/001-b-seed{2**63}.mp4\n"
    assert "1 of 2 videos are finished" in err
    assert len(calls) == 3


def test_a_manifest_counts_what_is_there(tmp_path):
    file = tmp_path / "b" / "a.mp4"
    file.parent.mkdir()
    file.write_bytes(b"12345")
    Manifest(tmp_path).add("x", file, {"prompt": "\ud800"})
    with (tmp_path / MANIFEST).open("a") as lines:
        lines.write('[1]\n{"id": 3}\nnull\n' + "[" * 100_000 + '\n{"id": "y", "file": "b/a.m')  # half a line
    Manifest(tmp_path).add("z", file, {})
    found = Manifest(tmp_path)
    assert [found.file(id) for id in "xyz"] == [file, None, file]
    file.write_bytes(b"123")  # replaced since
    assert Manifest(tmp_path).file("x") is None


def test_digests_tell_equal_items_apart_and_follow_the_model(tmp_path):
    ids = digests([{"a": 1}, {"a": 1}, {"a": 2}])
    assert len(set(ids)) == 3
    assert digests([{"a": 2}, {"a": 1}]) == [ids[2], ids[0]]
    for name in ("dit/10/weights", "logs/vae.jsonl", "experiment.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = state_of(tmp_path)
    (tmp_path / "logs" / "vae.jsonl").write_text("12")
    assert state_of(tmp_path) == before
    (tmp_path / "dit/10/weights").write_text("12")
    assert state_of(tmp_path) != before
    assert state_of(tmp_path / "absent") == []


def test_a_video_made_in_the_folder_of_the_weights_does_not_change_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_text("1")
    before = state_of(".")
    (tmp_path / "a.mp4").write_text("1")
    Manifest(tmp_path).add("x", tmp_path / "a.mp4", {})
    assert state_of(".") == before
    (tmp_path / "model.safetensors").write_text("12")
    assert state_of(".") != before
