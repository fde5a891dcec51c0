"""A backbone and a condition of a user's own, outside of vdit, in one run: train, sample, plan.

Their code, and the options that use them, stand in docs/how_to and are taken from there.
"""

import json

import jax
import numpy as np
import pytest

import vdit
from tests.conftest import ROOT, TINY
from tests.doors.test_doors import overrides_of, write_plugin
from vdit import registry
from vdit.cli.main import main
from vdit.data import LatentStore
from vdit.data.clips import ClipView
from vdit.dist.mesh import make_mesh
from vdit.plan.programs import train_program
from vdit.train.workspace import Workspace
from vdit.video.write import write_video

PAGES = [ROOT / "docs" / "how_to" / f"{name}.md" for name in ("backbone", "condition")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run on four videos, each with a depth video."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "videos").mkdir()
    (folder / "depth").mkdir()
    rng = np.random.default_rng(0)
    for item in range(4):
        depth = np.broadcast_to(np.linspace(0, 1, 48), (9, 48, 48)) * (item + 1)
        np.save(folder / "depth" / f"v{item}.npy", np.float32(depth))
        write_video(folder / "videos" / f"v{item}.mp4", rng.integers(0, 255, (9, 48, 48, 3), np.uint8), fps=8)
        (folder / "videos" / f"v{item}.txt").write_text("noise on the left")
    experiment = folder / "experiment.py"
    experiment.write_text("from vdit.quickstart.config import experiment as config\n")
    overrides = [text for text in TINY if not text.startswith("data.source")]
    overrides = [text for text in overrides if not text.startswith("backbone.")]
    overrides += [
        "data.source=folder", f"data.source.path={folder / 'videos'}", f"conditions.my_depth.folder={folder / 'depth'}",
        "backbone.width=16", "latents.dtype=float32", "vae_train.steps=1",
    ]  # fmt: skip
    plugins = [write_plugin(page, folder) for page in PAGES]
    chosen = [option for page in PAGES for option in overrides_of(page)]
    arguments = [*plugins, str(experiment), "--workdir", str(folder / "run"), "--no-tensorboard"]
    assert main(["train", *arguments, *chosen, *(f"--cfg.{text}" for text in overrides)]) == 0
    return folder / "run", plugins


@pytest.fixture
def run(made):
    return made[0]


def test_depth_is_read_with_the_crop_and_stored_with_latents(run):
    """A ramp from left to right keeps its place: each latent has the mean of the columns that it shows."""
    store = LatentStore(run / "latents")
    for index in range(len(store)):
        sample = store[index]
        t, h, w, _ = sample["latent"].shape
        assert sample["depth"].shape == (t, h, w, 2)
        scale = int(sample["id"][1]) + 1
        ramp = scale * np.linspace(0, 1, 48)[np.arange(32) * 48 // 32].reshape(w, -1).mean(1)
        np.testing.assert_allclose(sample["depth"][..., 0], np.broadcast_to(ramp, (t, h, w)), rtol=1e-5)


def test_a_mirrored_crop_is_cut_like_the_video():
    view = ClipView(id="a", times=np.zeros(1), resize=(4, 8), offset=(1, 2), size=(2, 4), mirrored=True)
    whole = np.arange(32).reshape(1, 4, 8, 1)
    np.testing.assert_array_equal(view.apply(whole)[0, ..., 0], whole[0, 1:3, 2:6, 0][:, ::-1])


def test_sampling_follows_the_depth_and_its_absence_is_the_dropped_one(run):
    """The backbone begins at zero, so its head is filled in before it is asked."""
    generator = vdit.load(run)
    head = generator.params["dit"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(0), head["kernel"].shape)
    depth = registry.get("conditioner", "my_depth")().values(np.ones((5, 32, 32, 1)))[None]
    ask = lambda **more: np.asarray(generator("noise", frames=5, steps=2, guidance=2.0, latents=True, **more))  # noqa: E731
    plain, told, dropped = ask(), ask(conditions={"depth": depth}), ask(conditions={"depth": 0 * depth})
    np.testing.assert_allclose(plain, dropped, atol=1e-6)
    assert np.abs(plain - told).max() > 1e-3
    with pytest.raises(vdit.errors.ShapeError, match="depth"):
        ask(conditions={"depth": depth[:, :, :1]})


def test_the_run_is_sampled_by_the_command(made, tmp_path, capsys):
    (run, plugins), out, depth = made, tmp_path / "a.mp4", tmp_path / "depth.npy"
    np.save(depth, np.ones((2, 4, 4, 2), np.float32))
    assert main(["sample", str(run), "noise", *plugins, "--out", str(out), f"--condition=depth={depth}"]) == 0
    assert out.exists()
    capsys.readouterr()
    assert main(["sample", str(run), "noise", *plugins, f"--condition=height={depth}"]) == 2
    assert "'height'" in capsys.readouterr().err
    np.save(depth, np.array([None]), allow_pickle=True)
    assert main(["sample", str(run), "noise", *plugins, f"--condition=depth={depth}"]) == 2
    assert "holds no array" in capsys.readouterr().err


def test_plan_traces_the_training_step_of_the_backbone(run):
    experiment = Workspace(run).experiment()
    program = train_program(experiment, make_mesh())
    assert program.model_flops > 0
    assert json.loads((run / "experiment.json").read_text())["backbone"]["kind"] == "my_uvit"
