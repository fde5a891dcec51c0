"""The latents stage: as a user starts it, and what a worker does."""

import dataclasses
import os
import types

import numpy as np
import pytest

from data_pipelines import encode
from tests.data.test_folder import write_film
from tests.tiny import make_whole_base
from vdit.data import DataConfig, FolderSource, LatentStore, open_source
from vdit.data.changes import Changes, find_changes, look_at_videos, read_record
from vdit.errors import DataError
from vdit.generate import load_vae
from vdit.models.vae import denormalise
from vdit.train.workspace import Workspace


def halve(video):
    """A VAE that needs no weights: [1 t h w 3] -> [1 t h/8 w/8 3]."""
    return video[:, :, ::8, ::8].astype(np.float32) / 255


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Forty latents of two films, one more is broken and one held out."""
    films = tmp_path / "films"
    films.mkdir()
    for name in "abc":
        write_film(films / f"{name}.mp4")
    (films / "broken.mp4").write_bytes(b"no film")
    data = DataConfig(source=FolderSource(path=str(films)), pixel_budgets=(32 * 32,), frames=(1, 5), fps=(6.0,),
                      threads=1)  # fmt: skip
    vae = types.SimpleNamespace(encode=halve, params={"w": np.ones(3)})
    monkeypatch.setattr(encode, "load", lambda run: (vae, None))
    return encode.LatentsJob(run="run", out=str(tmp_path / "out"), data=data, holdout=("a.mp4",), samples=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "run"
    make_whole_base(root)
    return root


def test_the_command_encodes_with_the_vae_and_the_settings_of_a_run(run, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--samples=4", "--data.frames=9,", "--data.aspects=1.0,"]
    assert encode.main([str(run), str(out), *words]) == 0, capsys.readouterr().err
    store, space = LatentStore(out), Workspace(run)
    assert len(store) == 4
    config = space.experiment().vae
    assert {store[i]["latent"].shape for i in range(4)} == {(3, 4, 4, config.latent_channels)}
    data = dataclasses.replace(space.experiment().data, frames=(9,), aspects=(1.0,))
    source, vae = open_source(data, seed=space.experiment().seed), load_vae(run)
    # What is stored is what the VAE gives before it is normalised by the run's statistics.
    expected = denormalise(vae.encode(source[3]["video"][None]), vae.statistics)[0]
    np.testing.assert_allclose(store[3]["latent"].astype(np.float32), expected, rtol=1e-3, atol=5e-3)


def test_what_is_held_out_stays_out_and_a_broken_file_costs_itself(job):
    lines = []
    watch = types.SimpleNamespace(tell=lambda label, words: lines.append((label, words)), update=lambda *about: None)
    index = encode.encode_latents(job, watch=watch)
    assert index["count"] == 40
    store = LatentStore(job.out)
    assert {store[i]["id"] for i in range(40)} == {"b.mp4", "c.mp4"}
    assert any(label == "skipped" and "broken.mp4" in words for label, words in lines)
    assert find_changes(read_record(job.out), look_at_videos(job.data, job.holdout)) == Changes()
    with pytest.raises(DataError, match="exists already"):
        encode.encode_latents(job)


def test_a_stopped_pipeline_makes_only_what_is_missing_and_the_same_latents(job, monkeypatch, tmp_path):
    made, real = [], encode.encode_part

    def dies(source, function, parts, part, spec):
        if part == 1:
            raise OSError("killed")
        made.append(part)
        return real(source, function, parts, part, spec)

    monkeypatch.setattr(encode, "encode_part", dies)
    with pytest.raises(Exception, match="killed"):
        encode.encode_latents(job)
    assert not os.path.exists(job.out)
    first = list(made)
    monkeypatch.setattr(encode, "encode_part", lambda *args, **more: (made.append(args[3]), real(*args, **more)))
    encode.encode_latents(job)
    assert sorted(made) == [0, 1, 2]
    assert set(made[len(first) :]) == {0, 1, 2} - set(first)
    whole = encode.encode_latents(dataclasses.replace(job, out=str(tmp_path / "whole")))
    assert whole == LatentStore(job.out).index


@pytest.mark.parametrize(
    ("options", "named"), [(["--frames=9"], "--frames"), (["--data.framez=9"], "framez"), (["--data.frames"], "frames")]
)
def test_what_is_not_known_is_refused(run, tmp_path, capsys, options, named):
    assert encode.main([str(run), str(tmp_path / "out"), *options]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
