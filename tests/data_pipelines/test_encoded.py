"""Latents and features beside curated clips: made by `curate`, and taken by a training that then encodes nothing."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from data_pipelines import encode, pipeline, report
from data_pipelines.curate import Settings, curate
from data_pipelines.encoded import EncodeOptions
from tests import tiny
from tests.data_pipelines.footage import write_footage
from tests.data_pipelines.test_curate import Direct
from vdit.cli.main import main
from vdit.cli.train import folder_experiment
from vdit.data import LatentStore
from vdit.data.data_source import CuratedSource
from vdit.data.texts import TextStore
from vdit.errors import CheckpointError, ConfigError
from vdit.experiment.experiment import LatentsConfig
from vdit.experiment.training import TrainConfig
from vdit.models.vae.video import VideoVAE
from vdit.train import stages
from vdit.train.texts import TextEncoding
from vdit.train.workspace import Workspace

SAMPLES = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pipeline, "Isolated", Direct)
    monkeypatch.setattr(report, "write", lambda *given: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "base"
    tiny.make_whole_base(root)
    return str(root)


@pytest.fixture(scope="module")
def encoded(base, tmp_path_factory):
    place = tmp_path_factory.mktemp("encoded")
    settings = Settings(encoding=EncodeOptions(run=base, samples=SAMPLES, text=True))
    films = write_footage(place / "films")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Isolated", Direct)
        return films, place / "out", settings, curate(str(films), str(place / "out"), settings)


def no_encoding(monkeypatch):
    """From here on, whatever encodes anything fails."""
    def refuse(*given, **more):
        raise AssertionError("something was encoded again")

    monkeypatch.setattr(VideoVAE, "encode", refuse)
    monkeypatch.setattr(TextEncoding, "__call__", refuse)
    monkeypatch.setattr(stages, "_train", refuse)


def test_clips_become_latents_and_captions_features(encoded):
    _, out, _, outcome = encoded
    assert (outcome.written, outcome.latents, outcome.texts) == (3, SAMPLES, 3)
    store, texts = LatentStore(out / "latents"), TextStore(out / "texts")
    assert len(store) == SAMPLES
    assert {caption for i in range(SAMPLES) for caption in store[i]["captions"]} == {"waves move", "other waves"}
    assert {store[i]["latent"].shape[0] for i in range(SAMPLES)} <= {1, 2}
    assert "waves move" in texts
    assert len(texts.features("")) == 1


def test_what_is_there_is_not_encoded_again_and_what_changed_is(encoded, tmp_path, monkeypatch):
    films, out, settings, _ = encoded
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    with monkeypatch.context() as patch:
        no_encoding(patch)
        patch.setattr(encode, "encode_part", None)
        assert curate(str(films), str(copy), settings).latents == SAMPLES
    before = LatentStore(copy / "latents").index
    strict = dataclasses.replace(settings, keep="duration >= 1.8")
    curate(str(films), str(copy), strict)
    after = LatentStore(copy / "latents")
    assert after.index["key"] != before["key"]
    assert {caption for i in range(SAMPLES) for caption in after[i]["captions"]} == {"other waves"}


def test_a_training_takes_vae_latents_and_features_and_encodes_nothing(encoded, base, tmp_path, monkeypatch):
    """A model of its own takes the VAE; a LoRA of the base takes the features, too."""
    _, out, _, _ = encoded
    no_encoding(monkeypatch)
    own = folder_experiment(str(out))
    space = Workspace(tmp_path / "own")
    stages.run(own, space, stages=("vae", "latents"), logging=tiny.QUIET)
    store, theirs = LatentStore(space.latents), LatentStore(out / "latents")
    np.testing.assert_array_equal(space.statistics()["mean"], np.asarray(theirs.mean))
    for i in range(SAMPLES):
        np.testing.assert_array_equal(store[i]["latent"], theirs[i]["latent"])
    stages.run(own, space, stages=("vae", "latents"), logging=tiny.QUIET)  # again: nothing is to be done

    lora = dataclasses.replace(
        tiny.lora_experiment(base), latents=LatentsConfig(text=True),
        **{name: getattr(Workspace(base).experiment(), name) for name in ("text", "sample")},
        data=dataclasses.replace(Workspace(base).experiment().data, source=CuratedSource(path=str(out))),
    )  # fmt: skip
    space = Workspace(tmp_path / "lora")
    stages.run(lora, space, stages=("vae", "latents"), logging=tiny.QUIET)
    assert len(TextStore(space.texts)) == 3
    np.testing.assert_array_equal(TextStore(space.texts).features("waves move"),
                                  TextStore(out / "texts").features("waves move"))  # fmt: skip


def test_held_out_clips_give_no_latents(encoded, tmp_path, monkeypatch):
    _, out, _, _ = encoded
    no_encoding(monkeypatch)
    experiment = dataclasses.replace(folder_experiment(str(out)), holdout=("a.mp4",))
    space = Workspace(tmp_path / "run")
    stages.run(experiment, space, stages=("vae", "latents"), logging=tiny.QUIET)
    store = LatentStore(space.latents)
    assert 0 < len(store) < SAMPLES
    assert {caption for i in range(len(store)) for caption in store[i]["captions"]} == {"other waves"}


@pytest.mark.parametrize("change", ["frames", "vae", "samples", "clips"])
def test_latents_of_another_kind_are_not_taken_and_the_reason_is_said(encoded, tmp_path, monkeypatch, capsys, change):
    _, out, _, _ = encoded
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    experiment, named = folder_experiment(str(copy)), f"data.{change}"
    match change:
        case "frames":
            experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, frames=(1,)))
        case "vae":
            vae = dataclasses.replace(experiment.vae, base_channels=2 * experiment.vae.base_channels)
            experiment, named = dataclasses.replace(experiment, vae=vae), "vae.base_channels"
        case "samples":
            latents, named = LatentsConfig(samples=SAMPLES + 1), "latents.samples"
            experiment = dataclasses.replace(experiment, latents=latents)
        case "clips":
            index = json.loads((copy / "index.json").read_text())
            index["shards"][0]["sha256"] = "other"
            (copy / "index.json").write_text(json.dumps(index))
            named = "have changed"
    trained = []
    monkeypatch.setattr(stages, "_train", lambda *given: trained.append(given))
    space = Workspace(tmp_path / "run")
    experiment = dataclasses.replace(experiment, vae_train=TrainConfig(steps=1, batch_size=1))
    # Its own VAE is to be trained; here nobody does, so the next stage has none.
    with pytest.raises(CheckpointError):
        stages.run(experiment, space, stages=("vae", "latents"), logging=tiny.QUIET)
    assert len(trained) == 1
    from vdit.train.encoded import encoding_of, refusal

    assert named in refusal(experiment, encoding_of(experiment))


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--vae", "no-such-run"], "no-such-run"), (["--latents", "3"], "--latents"), (["--text"], "--text"),
     (["--vae", "BASE", "--write", "none"], "none")],
)  # fmt: skip
def test_what_cannot_be_encoded_is_told_before_anything_is_read(encoded, base, tmp_path, capsys, words, named):
    films, _, _, _ = encoded
    words = [base if word == "BASE" else word for word in words]
    assert main(["curate", str(films), str(tmp_path / "out"), *words]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_are_checked():
    for wrong in ({"samples": -1}, {"dtype": "int8"}):
        with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
            EncodeOptions(run="run", **wrong)
