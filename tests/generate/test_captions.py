"""A captioner from end to end: trained by `vdit train` for a few steps, resumed, and used by `vdit caption --run`."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vdit.cli.main import main
from vdit.config import load_config
from vdit.data.captions import read_captions
from vdit.data.data_source import WorldsSource
from vdit.errors import ConfigError, LanguageError
from vdit.experiment.captioning import Captioning
from vdit.experiment.training import OptimizerConfig
from vdit.generate.captions import clip_row, fit_frames, load_captioner
from vdit.language.base import Frames, GenerationOptions, Request, user
from vdit.models.captioner import CaptionerModel
from vdit.models.vae.config import preset as vae_preset
from vdit.train.stages import Logging, run
from vdit.train.workspace import Workspace
from vdit.video.read import write_video

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = GenerationOptions(max_tokens=8)


def small():
    """worlds_captioner at a size that trains in seconds."""
    e = load_config(ROOT / "experiments" / "worlds_captioner.py")
    lm = dataclasses.replace(e.backbone.lm, vocab_size=300, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=32)
    train = {"batch_size": 2, "save_every": 2, "log_every": 1, "ema_decay": None, "optimizer": OptimizerConfig()}
    return dataclasses.replace(
        e,
        data=dataclasses.replace(e.data, source=WorldsSource(world="moving", count=8), row_tokens=48, frames=(5,),
                                 max_text_per_row=64, pixel_budgets=(32 * 32,), threads=0, read_ahead=0, prefetch=0,
                                 streams=1, buffer_rows=2),
        vae=vae_preset("tiny", latent_channels=4, base_channels=8),
        vae_clips=dataclasses.replace(e.vae_clips, size=(32, 32)),
        vae_train=dataclasses.replace(e.vae_train, steps=1, **train),
        latents=dataclasses.replace(e.latents, samples=8),
        text=dataclasses.replace(e.text, vocab_size=300, max_length=24, width=8, heads=2),
        backbone=dataclasses.replace(e.backbone, in_channels=4, width=16, depth=1, heads=2, lm=lm),
        objective=Captioning(text_steps=1, connector_steps=1),
        dit_train=dataclasses.replace(e.dit_train, steps=3, **train),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    run(small(), Workspace(folder), logging=Logging(tensorboard=False, console=Console(file=io.StringIO())))
    return folder


def test_it_trains_and_goes_on(trained):
    lines = [json.loads(line) for line in (trained / "logs" / "dit.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["skipped"] == 0 and 0 <= line["accuracy"] <= 1 for line in lines)


def test_it_answers_about_frames_alone_and_the_same_beside_others(trained):
    model = load_captioner(trained)
    clips = [np.random.default_rng(i).integers(0, 255, (5, 32, 32, 3), np.uint8) for i in range(2)]
    requests = [Request(messages=(user(Frames(pixels=clip), "short | detailed"),)) for clip in clips]
    both = model.complete(requests, OPTIONS)
    assert both == [model.complete([request], OPTIONS)[0] for request in requests]
    assert set(json.loads(both[0].text)) == {"short", "detailed", "camera"}
    assert all(0 <= one.tokens_out <= 8 for one in both)
    with pytest.raises(LanguageError, match="one video"):
        model.complete([Request(messages=(user("hello"),))], OPTIONS)


def test_frames_are_fitted_to_what_it_was_trained_on():
    e = small()
    ramp = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 96, 3), np.uint8)
    fitted = fit_frames(ramp, e)
    assert len(fitted) == 5
    assert fitted.shape[1] * fitted.shape[2] <= 32 * 32
    assert fitted[:, 0, 0, 0].tolist() == [0, 10, 20, 29, 39]
    assert fit_frames(ramp[:2], e).shape[0] == 5  # too few are repeated


def test_a_folder_is_captioned_by_a_run(trained, tmp_path, capsys):
    for i in range(2):
        write_video(tmp_path / f"{i}.mp4", np.full((9, 32, 48, 3), 99 * i, np.uint8), fps=8)
    code = main(["caption", str(tmp_path), "--run", str(trained), "--language", "any", "--max-tokens", "8"])
    assert code in (0, 2)  # what three steps taught is hardly a caption
    records = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [record["file"] for record in records] == ["0.mp4", "1.mp4"]
    assert all(record["provenance"]["model"] == trained.name for record in records)
    assert all(("caption" in record) != ("problem" in record) for record in records)
    if any("caption" in record for record in records):
        assert len(read_captions(tmp_path).entries) == 2
    assert main(["caption", str(tmp_path), "--run", str(trained), "--prompt", "mine.md"]) == 2
    assert "--prompt" in capsys.readouterr().err


def test_a_run_of_another_model_is_refused(trained, tmp_path):
    del trained
    e = load_config(ROOT / "experiments" / "pod_tiny.py")
    Workspace(tmp_path).save_experiment(e)
    with pytest.raises(ConfigError, match="captioner"):
        load_captioner(tmp_path)


def test_it_writes_what_training_scores_highest(trained):
    """Greedy tokens, one at a time with a cache, are the likeliest ones in a packed row of training."""
    model = load_captioner(trained)
    frames = Frames(pixels=np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8))
    written = []
    with pytest.MonkeyPatch.context() as patch:
        decode = type(model.tokenizer).decode
        patch.setattr(type(model.tokenizer), "decode", lambda self, ids: written.append(list(ids)) or decode(self, ids))
        model.complete([Request(messages=(user(frames),))], OPTIONS)
    [ids] = written
    latent = np.asarray(model.vae.encode(fit_frames(frames.pixels, model.experiment)[None])[0])
    text = np.asarray([[*model.tokenizer.encode(""), *ids]], np.int32)
    words = {"text": text, "text_segment_ids": np.ones_like(text), "text_position": np.arange(text.shape[1])[None]}
    row = dataclasses.replace(clip_row(latent, model.experiment.backbone), **words)
    scores = CaptionerModel(model.experiment.backbone).apply({"params": model.params}, row)
    assert len(ids) >= 1
    assert np.argmax(scores[0], -1)[: len(ids)].tolist() == ids
