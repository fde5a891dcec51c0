"""The tool that measures the report's claims: its arms, its measures, its tables; and each claim once, tiny."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("experiments.recaption")

from tools.claims import common, compute, physics, sizes
from tools.claims import run as command
from vdit import worlds
from vdit.eval.detectors import framing

base = compute.config()


def test_intervals_hold_the_mean_and_are_wider_where_seeds_differ():
    alike = [np.arange(64) % 2 == 0] * 3
    mean, low, high = common.interval(alike)
    assert mean == 0.5
    assert low < 0.5 < high
    apart = [np.zeros(64, bool), np.arange(64) % 2 == 0, np.ones(64, bool)]
    assert common.interval(apart)[2] - common.interval(apart)[1] > high - low
    assert common.interval([np.ones(64, bool)] * 3) == (1.0, 1.0, 1.0)
    assert common.interval([np.where(np.arange(64) < 32, np.nan, 1.0)]) == (1.0, 1.0, 1.0)


def test_a_power_law_is_found():
    flops = np.array([1e9, 1e10, 1e11, 1e12])
    slope, offset, explained = compute.line(flops, 3.0 * flops**-0.2)
    assert slope == pytest.approx(-0.2)
    assert np.exp(offset) == pytest.approx(3.0)
    assert explained == pytest.approx(1.0)


def test_arms_of_compute_differ_in_flops_and_see_the_same_clips():
    arms = {key: compute.experiment(base, *key, 0) for key in (("48 x 2", 3), ("48 x 2", 1), ("80 x 3", 3))}
    cost = {key: compute.train_flops(made) for key, made in arms.items()}
    assert cost["48 x 2", 3] < cost["80 x 3", 3]
    assert cost["48 x 2", 3] < cost["48 x 2", 1]
    clips = {made.data.row_tokens * made.backbone.patch[1] ** 2 for made in arms.values()}
    assert len(clips) == 1


def test_framing_is_what_the_crop_did():
    scene = worlds.make("moving", seed=3, count=1, size=(48, 96), frames=9, fps=8.0, sizes=(0.22, 0.30))[0]
    assert framing(scene.video) == (1.0, 0.0)
    left = int(scene.meta["objects"][0]["position"][0, 0] * scene.meta["scale"])  # through the middle of the shape
    cropped = scene.video[:1, :, left:]
    whole, cut = framing(cropped)
    radius, border = scene.meta["objects"][0]["size"] * scene.meta["scale"], cut * min(cropped.shape[1:3])
    assert whole == 0.0
    assert radius / 2 < border <= 2 * radius + 2
    empty = framing(np.full((3, 48, 48, 3), 60, np.uint8))
    assert empty[0] == 0.0
    assert np.isnan(empty[1])


def test_arms_of_sizes_are_trained_on_the_same_scenes():
    opened = {}
    for arm in sizes.ARMS:
        made = sizes.experiment(base, arm, 0)
        opened[arm] = made.data.source.open(made.data, seed=0)
    assert len({len(source) for source in opened.values()}) == 1
    for i in range(6):
        crop, squash = opened["crop"][i], opened["squash"][i]
        assert crop["video"].shape == squash["video"].shape == (9, 48, 48, 3)
        assert crop["id"] == squash["id"] == opened["native"][i]["id"]
        assert crop["captions"][0] == squash["captions"][0]
    shapes = {opened["native"][i]["video"].shape for i in range(24)}
    assert len({shape[0] for shape in shapes}) > 2
    assert len({shape[1:3] for shape in shapes}) > 3
    shown = {arm: np.mean([framing(opened[arm][i]["video"])[0] for i in range(24)]) for arm in ("native", "crop")}
    assert shown["native"] == 1.0
    assert shown["crop"] < 0.8


def test_splits_of_motion_are_in_and_out_of_what_is_trained():
    seen = {}
    for name, kinds in physics.SPLITS.items():
        for scene in [scene for kind in kinds for scene in physics.held_out(kind, 8)]:
            ball = scene.meta["objects"][0]
            speed = float(np.linalg.norm(ball["velocity"][0]))
            pair = ("large" if ball["size"] > 0.115 else "small", int(np.digitize(speed, (0.425, 0.775))))
            seen.setdefault(name, set()).add(pair)
    assert seen["as trained"] == {("small", 0), ("large", 1)}
    assert seen["new combination"] == {("small", 1), ("large", 0)}
    assert seen["new speed"] == {("small", 2), ("large", 2)}


def test_the_truth_has_no_error_and_a_still_video_has_that_of_its_speed():
    truth = physics.measured(lambda scenes: np.stack([scene.video for scene in scenes]), 4)
    assert max(truth["velocity, new speed"]) == 0.0
    assert min(truth["permanence"]) == 1.0
    assert np.nanmax(truth["space"]) < 0.05
    still = physics.last_frame(4)
    for name, least, most in (("as trained", 0.15, 0.75), ("new speed", 0.7, 1.2)):
        assert least < np.mean(still[f"velocity, {name}"]) < most
    assert max(still["permanence"]) == 0.0


def test_worlds_take_turns():
    source = physics.InTurn(count=32).open(physics.experiment(base, "64 x 2", 32, 0).data, seed=0)
    names = [source[i]["id"].partition("[")[0] for i in range(8)]
    assert names == ["bounce", "bounce", "occluder", "orbit"] * 2
    assert len(source) == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claim", "options", "runs"),
    [
        ("compute", ["--models", "48 x 2", "--seeds", "0", "--count", "2"], 3),
        ("sizes", ["--arms", "native", "crop", "--seeds", "0", "--count", "2"], 2),
        ("physics", ["--models", "64 x 2", "--scenes", "16", "--count", "2"], 1),
    ],
)
def test_a_claim_from_nothing_to_its_table(claim, options, runs, tmp_path, monkeypatch):
    tiny = dataclasses.replace(
        base,
        vae_train=dataclasses.replace(base.vae_train, steps=2, optimizer=dataclasses.replace(
            base.vae_train.optimizer, warmup_steps=1)),
        dit_train=dataclasses.replace(base.dit_train, optimizer=dataclasses.replace(
            base.dit_train.optimizer, warmup_steps=1)),
        latents=dataclasses.replace(base.latents, samples=16),
        sample=dataclasses.replace(base.sample, steps=1),
    )  # fmt: skip
    for module in (compute, sizes, physics):
        monkeypatch.setattr(module, "config", lambda: tiny)
    command.main([claim, str(tmp_path), "--steps", "2", *options])
    folder = tmp_path / claim
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == runs
    assert (folder / "table.md").read_text().startswith("| ")
    assert (folder / "plot.png").read_bytes()[:4] == b"\x89PNG"
    before = [file.stat().st_mtime for file in sorted(folder.rglob("measured.json"))]
    command.main([claim, str(tmp_path), "--steps", "2", *options])
    assert [file.stat().st_mtime for file in sorted(folder.rglob("measured.json"))] == before
