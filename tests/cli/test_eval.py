"""`vdit eval` from end to end: folders, a run, VBench's files, and what cannot be measured."""

import json

import numpy as np
import pytest
from scipy import ndimage

from vdit import worlds
from vdit.cli.main import main
from vdit.errors import EX_USAGE
from vdit.eval.vbench import read_results
from vdit.video.read import read_video, write_video


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of videos: real, the same blurred, others; names and captions are those of the scenes."""
    root = tmp_path_factory.mktemp("videos")
    world = worlds.make("moving", size=(48, 48), frames=9)
    for i in range(10):
        scene = world[i]
        blurred = np.stack([ndimage.gaussian_filter(frame, (1.5, 1.5, 0)) for frame in scene.video])
        for name, video in {"real": scene.video, "blurred": blurred, "others": world[50 + i].video}.items():
            (root / name).mkdir(exist_ok=True)
            stem = f"scene{i}" if name != "others" else f"other{i // 2}-{i % 2}"
            write_video(root / name / f"{stem}.mp4", video, fps=8)
            with (root / name / "captions.jsonl").open("a") as file:
                file.write(json.dumps({"file": f"{stem}.mp4", "caption": scene.caption}) + "\n")
    return root


def evaluate(*arguments):
    assert main(["eval", *map(str, arguments)]) == 0
    out = arguments[arguments.index("--out") + 1]
    data = json.loads((out / "evaluation.json").read_text())
    return {one["name"]: one["figures"] for one in data["sets"]}, data, (out / "evaluation.html").read_text()


def test_folders_are_compared_with_real_videos_by_names_and_by_features(folders, tmp_path, capsys):
    command = [folders / "blurred", folders / "others", "--real", folders / "real", "--out", tmp_path / "out"]
    found, data, page = evaluate(*command)
    blurred, others, real = (found[name] for name in ("blurred", "others", "real"))
    assert blurred["psnr"]["n"] == 10
    assert "psnr" not in others
    assert blurred["ssim"]["low"] <= blurred["ssim"]["value"] <= blurred["ssim"]["high"] < 1
    assert len(blurred["ssim"]["curve"]) == 9
    assert blurred["sharpness"]["value"] < 0.8 * real["sharpness"]["value"]
    assert blurred["retrieval"]["value"] > 0.5
    assert others["diversity"]["value"] > 0  # other0-0 and other0-1 are of one group
    for figures in (blurred, others):
        assert figures["frechet"]["value"] > 0
        for share in ("precision", "recall"):
            assert 0 <= figures[share]["low"] <= figures[share]["value"] <= figures[share]["high"] <= 1
    assert 0 <= blurred["retrieval"]["low"] <= blurred["retrieval"]["high"] <= 1
    gap = data["differences_from_first"]["real"]["sharpness"]
    assert gap["low"] > 0
    assert page.count("video/mp4;base64") >= 16
    lines = capsys.readouterr().out
    assert "frechet" in lines
    assert "n=10" in lines


def test_files_that_differ_in_their_endings_alone_are_videos_of_their_own(tiny_run, tmp_path):
    world = worlds.make("moving", size=(48, 48), frames=9)
    for folder in ("real", "made"):
        (tmp_path / folder).mkdir()
        for index, name in enumerate(("dog.mkv", "dog.mp4")):
            write_video(tmp_path / folder / name, world[index].video, fps=8)
            with (tmp_path / folder / "captions.jsonl").open("a") as file:
                file.write(json.dumps({"file": name, "caption": world[index].caption}) + "\n")
    options = ["--real", tmp_path / "real", "--metrics", "psnr", "--features", "none", "--frames", 5]
    found, _, _ = evaluate(tmp_path / "made", *options, "--out", tmp_path / "out")
    assert found["made"]["psnr"]["n"] == 2
    assert found["made"]["psnr"]["value"] > 40  # each with its own
    found, _, _ = evaluate(tiny_run, *options, "--given", 1, "--out", tmp_path / "other")
    (name,) = set(found) - {"real"}
    assert found[name]["psnr"]["n"] == 2


def test_half_of_a_set_is_nearer_than_a_damaged_one(folders, tmp_path):
    halves = {name: tmp_path / name for name in ("one", "two", "damaged")}
    for folder in halves.values():
        folder.mkdir()
    for i, file in enumerate(sorted((folders / "real").glob("*.mp4"))):
        (halves["one" if i % 2 else "two"] / file.name).symlink_to(file)
        if i % 2 == 0:
            (halves["damaged"] / file.name).symlink_to(folders / "blurred" / file.name)
    command = [halves["two"], halves["damaged"], "--real", halves["one"], "--metrics", "mmd,frechet,sharpness"]
    found, _, _ = evaluate(*command, "--out", tmp_path / "out")
    away = {name: abs(figures["sharpness"]["value"] - found["real"]["sharpness"]["value"])
            for name, figures in found.items()}  # fmt: skip
    assert away["two"] < away["damaged"]
    assert all(found[name][figure]["value"] > 0 for name in ("two", "damaged") for figure in ("mmd", "frechet"))


def test_a_run_is_measured_on_scenes_that_it_did_not_see(tiny_run, tmp_path):
    found, data, _ = evaluate(tiny_run, "--videos", 3, "--batch", 2, "--out", tmp_path / "out", "--features", "none")
    (name,) = set(found) - {"real"}
    assert found[name]["attributes"]["n"] == 3
    assert found["real"]["attributes"]["value"] == 1  # the true scenes
    assert "psnr" not in found[name]  # a prompt does not determine a video
    assert "--videos 3 --batch 2" in data["about"]["command"].replace(" --features none", "")


def test_a_run_goes_on_from_given_frames(tiny_run, tmp_path):
    command = [tiny_run, "--videos", 2, "--given", 1, "--seeds", 2, "--metrics", "psnr,trajectory,join,best_of"]
    found, _, _ = evaluate(*command, "--out", tmp_path / "out")
    (name,) = set(found) - {"real"}
    assert found[name]["psnr"]["n"] == 4
    assert len(found[name]["psnr"]["curve"]) == 4  # of 5 frames one was given
    assert found[name]["best_of_n"]["value"] <= found[name]["mean_of_n"]["value"]


def test_videos_of_prompts_are_written_for_vbench_and_its_results_are_read(tiny_run, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red circle moves up\n\na blue cross\n")
    evaluate(tiny_run, "--vbench", prompts, "--seeds", 2, "--metrics", "flicker", "--out", out)
    (folder,) = (out / "vbench").iterdir()
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["a blue cross-0.mp4", "a blue cross-1.mp4", "a red circle moves up-0.mp4",
                     "a red circle moves up-1.mp4"]  # fmt: skip
    assert len(read_video(folder / names[0]).frames) == 5
    results = tmp_path / "r_eval_results.json"
    videos = [{"video_path": f"x/{name}", "video_results": score} for name, score in zip(names, (0.9, 0.7, 0.8, 0.6))]
    results.write_text(json.dumps({"motion_smoothness": [0.75, videos], "dynamic_degree": [0.5, [
        {"video_path": "x/a.mp4", "video_results": True}, {"video_path": "x/b.mp4", "video_results": False}]]}))
    command = [folder, "--vbench-results", results, "--metrics", "flicker", "--out", tmp_path / "again"]
    found, _, _ = evaluate(*command)
    assert found[folder.name]["vbench_motion_smoothness"]["value"] == 0.75
    assert found[folder.name]["vbench_motion_smoothness"]["low"] < 0.75
    assert found[folder.name]["vbench_dynamic_degree"]["value"] == 0.5
    assert [figure.name for figure in read_results(results)] == ["vbench_motion_smoothness", "vbench_dynamic_degree"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["nowhere"], "nowhere"),
        (["real", "--metrics", "psnr"], "--real"),
        (["real", "--metrics", "sharpnes"], "sharpness"),
        (["real", "--given", "3"], "--given"),
        (["real", "--vbench-results", "a", "--vbench-results", "b"], "--vbench-results"),
        (["real", "--features", "real"], "config.json"),
        (["real", "--physics-iq", "blurred"], "30FPS"),
    ],
)
def test_what_cannot_be_measured_is_one_line(folders, tmp_path, monkeypatch, capsys, arguments, names):
    monkeypatch.chdir(folders)
    assert main(["eval", *arguments, "--out", str(tmp_path / "out")]) == EX_USAGE
    error = capsys.readouterr().err.strip().splitlines()
    assert names in error[-1]
    assert not (tmp_path / "out" / "evaluation.json").exists()
