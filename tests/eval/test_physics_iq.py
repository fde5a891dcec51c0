"""Physics-IQ: its four measures, its score and its files."""

import numpy as np
import pytest

from vdit import worlds
from vdit.cli.main import main
from vdit.errors import DataError, ShapeError
from vdit.eval.physics_iq import compare_takes, motion_masks, physics_iq_score, read_benchmark
from vdit.video.read import write_video

REAL = "split-videos/testing-videos/8FPS/{id}_testing-videos_8FPS_perspective-{view}_take-{take}_trimmed-{name}.mp4"


@pytest.fixture(scope="module")
def scenes():
    world = worlds.make("bounce", size=(64, 64), frames=17)
    return [world[i].video for i in range(4)]


def test_masks_are_where_things_move():
    video = np.full((6, 48, 48, 3), 40, np.uint8)
    for t in range(6):
        video[t, 16:32, 4 + 6 * t : 16 + 6 * t] = 200
    masks = motion_masks(video)
    assert not masks[0].any()
    assert masks[1:, 16:32].any((1, 2)).all()
    assert not masks[:, :10].any()
    assert not masks[:, 40:].any()
    assert not motion_masks(np.repeat(video[:1], 6, axis=0)).any()


def test_equal_videos_agree_wholly_and_others_less(scenes):
    same, other = compare_takes(scenes[0], scenes[0]), compare_takes(scenes[0], scenes[1])
    assert same.spatial_iou == same.weighted_spatial_iou == 1
    assert (same.spatiotemporal_iou == 1).all()
    assert (same.mse == 0).all()
    assert other.weighted_spatial_iou < other.spatial_iou < 1
    assert other.mse.shape == (17,)
    assert other.mse.mean() == pytest.approx(np.square((scenes[0] - 1.0 * scenes[1]) / 255).mean(), rel=1e-5)
    late = compare_takes(scenes[0][:-2], scenes[0][2:])
    assert late.spatiotemporal_iou[1:].mean() < late.spatial_iou  # the right places at the wrong times
    with pytest.raises(ShapeError):
        compare_takes(scenes[0], scenes[0][1:])


def test_the_score_is_100_for_what_differs_as_real_takes_do():
    takes = {"spatial_iou": 0.6, "spatiotemporal_iou": 0.5, "weighted_spatial_iou": 0.4, "mse": 0.01}
    assert physics_iq_score(takes, takes) == pytest.approx(100)
    half = {name: value / 2 for name, value in takes.items()} | {"mse": 0.02}
    assert physics_iq_score(half, takes) == pytest.approx(49)
    assert physics_iq_score(dict.fromkeys(takes, 0.0) | {"mse": 1.0}, takes) == 0
    with pytest.raises(ShapeError):
        physics_iq_score(takes, takes | {"spatial_iou": 0.0})


def test_the_benchmarks_files_are_found_and_scored_by_one_command(scenes, tmp_path, capsys):
    benchmark = tmp_path / "benchmark"
    generated = {kind: tmp_path / kind for kind in ("good", "bad")}
    rng = np.random.default_rng(0)
    for i, (name, view) in enumerate([("ball", "left"), ("ball-two", "right")]):
        for take in (1, 2):
            file = benchmark / REAL.format(id=f"{i + 1 + 100 * (take - 1):04}", view=view, take=take, name=name)
            file.parent.mkdir(parents=True, exist_ok=True)
            shake = rng.integers(0, 3, scenes[i].shape).astype(np.uint8)
            write_video(file, np.roll(scenes[i], take - 1, axis=2) // 2 * 2 + shake // 2, fps=8)
        for kind, folder in generated.items():
            folder.mkdir(exist_ok=True)
            video = scenes[i] if kind == "good" else np.repeat(scenes[i][:1], 17, axis=0)
            write_video(folder / f"{i + 1:04}_perspective-{view}_trimmed-{name}.mp4", video, fps=8)
    found = read_benchmark(benchmark, 8)
    assert [(scene.id, scene.view, scene.name) for scene in found] == [
        ("0001", "perspective-left", "trimmed-ball"), ("0002", "perspective-right", "trimmed-ball-two")
    ]  # fmt: skip
    out = tmp_path / "out"
    command = ["eval", *map(str, generated.values()), "--physics-iq", str(benchmark), "--fps", "8", "--out", str(out)]
    assert main([*command, "--metrics", "physics_iq,physics_iq_takes"]) == 0
    score = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("physics_iq_score"))
    good, bad = (float(word) for word in score.split() if word.replace(".", "").isdigit())
    assert bad < 60 < 90 < good <= 100
    next((benchmark / REAL.format(id="x", view="x", take=1, name="x")).parent.glob("*take-2*")).unlink()
    with pytest.raises(DataError, match="take 2"):
        read_benchmark(benchmark, 8)
    with pytest.raises(DataError, match="30FPS"):
        read_benchmark(benchmark, 30)
