"""A run with everything in a bucket: its base, latents, checkpoints, logs and samples."""

import json

import jax
import numpy as np
import pytest

import vdit
from tests import tiny
from tests.loopback import serve_buckets
from vdit import buckets, paths
from vdit.checkpoint import Checkpointer, load_params
from vdit.config import to_dict
from vdit.data.latents import LatentStore
from vdit.errors import BucketError, DataError, OutputError
from vdit.models.vae.model import VAE
from vdit.outputs import check_output
from vdit.train.stages import run
from vdit.train.workspace import Workspace

NAME = "vdit-test"
server = pytest.fixture(scope="module")(serve_buckets)


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def runs(request, server, tmp_path_factory):
    """(a local LoRA run of 4 steps, the same run in a bucket, stopped after 2 and resumed)."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDIT_FILE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        server.reset()
        here, there = str(folder / "runs"), f"{request.param}://{NAME}/runs"
        base = tiny.make_base(f"{here}/base")
        video = np.zeros((1, 1 + base.vae.temporal_stride, 32, 32, 3), np.float32)
        vae = tiny.random_params(lambda key: VAE(base.vae).init(key, video)["params"])
        with Checkpointer(f"{here}/base/vae", meta={"stage": "vae", "config": to_dict(base)}) as checkpointer:
            checkpointer.save(1, {"params": {"vae": vae}})
        paths.copy_folder(f"{here}/base", f"{there}/base")
        for root in (here, there):
            tiny.make_latents(f"{root}/lora")
        experiment = tiny.lora_experiment(f"{here}/base", save_every=2, steps=4)
        run(experiment, Workspace(f"{here}/lora"), stages=("tokenizer", "dit"), logging=tiny.QUIET)
        for steps in (2, 4):
            experiment = tiny.lora_experiment(f"{there}/base", save_every=2, steps=steps)
            run(experiment, Workspace(f"{there}/lora"), stages=("tokenizer", "dit"), logging=tiny.QUIET)
        yield f"{here}/lora", f"{there}/lora"
        assert not [file for file in folder.rglob("*") if file.name in ("gs:", "s3:")], "a URL was taken for a folder"


def test_the_resumed_run_in_a_bucket_is_the_local_one_bit_for_bit(runs):
    here, there = (jax.tree.leaves(load_params(f"{root}/dit", ema=True)) for root in runs)
    for x, y in zip(here, there):
        np.testing.assert_array_equal(x, y)


def test_its_logs_hold_every_step_once(runs, server):
    scheme = runs[1].partition("://")[0]
    text = server.objects[NAME, "runs/lora/logs/dit.jsonl"].decode()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4], scheme
    assert "runs/lora/logs/hosts/host_0.log" in server.names_of(NAME)


def test_a_model_in_a_bucket_samples_what_the_local_one_samples(runs):
    videos = [vdit.load(root)(["a red disc"], frames=5, size=(32, 32), steps=2, seed=1) for root in runs]
    np.testing.assert_array_equal(*videos)


def test_latents_in_a_bucket_are_those_that_were_written(runs):
    here, there = (LatentStore(f"{root}/latents") for root in runs)
    assert len(here) == len(there)
    for i in (0, len(here) - 1):
        np.testing.assert_array_equal(here[i]["latent"], there[i]["latent"])


def test_a_video_is_written_into_a_bucket(runs, server):
    url = f"{runs[1]}/samples/a.mp4"
    vdit.write_video(url, np.zeros((4, 16, 16, 3), np.uint8), fps=8)
    assert server.objects[NAME, "runs/lora/samples/a.mp4"]
    assert vdit.read_video(url).frames.shape == (4, 16, 16, 3)


def test_a_run_in_a_bucket_that_is_not_there_is_refused_at_once(runs):
    root = runs[1].replace(NAME, "no-such-bucket")
    with pytest.raises((OutputError, BucketError), match="no-such-bucket"):
        run(tiny.base_experiment(), Workspace(root), logging=tiny.QUIET)


def test_an_output_without_the_right_to_write_is_refused_at_once(runs, server):
    server.deny = lambda method, key: method in ("PUT", "POST")
    try:
        with pytest.raises(OutputError, match="right"):
            check_output(f"{runs[1]}/a.mp4")
    finally:
        server.deny = lambda method, key: False


def test_a_folder_of_videos_and_captions_may_be_in_a_bucket(runs, server, tmp_path):
    from vdit.data.datasets import FolderDataset

    root = runs[1].rpartition("/runs")[0]
    for name in ("a.mp4", "b/c.mp4"):
        vdit.write_video(f"{root}/videos/{name}", np.full((6, 16, 16, 3), 99, np.uint8), fps=8)
    paths.write_atomic(f"{root}/videos/captions.csv", "file,caption\na.mp4,a dog\nb/c.mp4,a cat\n")
    found = FolderDataset(f"{root}/videos")
    assert [found.name(i) for i in range(len(found))] == ["a.mp4", "b/c.mp4"]
    clip = found.open(1, np.random.default_rng(0)).read(start=0.0, fps=8.0, frames=4, size=(16, 16))
    assert (clip.video.shape, clip.captions) == ((4, 16, 16, 3), ("a cat",))
    paths.write_atomic(f"{root}/videos/captions.csv", "file,caption\n../a.mp4,a dog\n")
    with pytest.raises(DataError, match=r"\.\./a\.mp4"):
        FolderDataset(f"{root}/videos")


def test_latents_of_several_parts_are_gone_on_with_in_a_bucket(runs, server):
    from vdit.data.latents import LatentParts

    url = f"{runs[1]}/more"
    items = [{"latent": np.full((1, 2, 2, 4), i, np.float32), "captions": [str(i)], "id": str(i)} for i in range(40)]
    first = LatentParts(url, samples=40, vae="v", dtype="float32")
    first.write(1, iter([items[i] for i in first.places(1)]))
    again = LatentParts(url, samples=40, vae="v", dtype="float32")
    assert 1 not in again.missing()
    for part in again.missing():
        again.write(part, iter([items[i] for i in again.places(part)]))
    assert again.finish()["count"] == 40
    np.testing.assert_array_equal(LatentStore(url)[39]["latent"], items[39]["latent"])
    assert not [key for key in server.names_of(NAME) if ".writing" in key]


def test_what_was_cached_may_go(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("VDIT_FILE_CACHE", str(tmp_path / "other"))
    assert len(LatentStore(f"{runs[1]}/latents")[0]["captions"]) == 1
    assert buckets.cache().used() > 0
    monkeypatch.setenv("VDIT_FILE_CACHE_GIB", "1e-9")
    with pytest.raises(Exception, match="VDIT_FILE_CACHE_GIB"):
        _ = LatentStore(f"{runs[1]}/latents")[0]["captions"]
