"""Captions encoded once: training with them is training without, dropout included, and holds no text encoder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CAPTIONS, QUIET, STEPS, base_experiment, lora_experiment, make_base, make_latents
from vdit.cli.main import main
from vdit.data.latents import write_latents
from vdit.data.packing import PackItem, RowShape, build_rows
from vdit.data.texts import CachedTokenizer, TextsInMemory, TextStore, write_texts
from vdit.dist.mesh import make_mesh
from vdit.errors import ConfigError, DataError
from vdit.models.conditions import TEXT_FEATURES, TextCondition
from vdit.models.network import Network
from vdit.models.text.config import T5Config, TextConfig
from vdit.models.text.encoder import make_encoder
from vdit.train.pretrained import copy_pretrained, split_trainable
from vdit.train.stages import run
from vdit.train.texts import encode_texts
from vdit.train.workspace import Workspace

HALF = 0.5  # of captions are dropped


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("texts") / "base"
    make_base(root)
    return root


def cached(base: Path, dtype: str = "float32"):
    experiment = lora_experiment(base)
    latents = dataclasses.replace(experiment.latents, text=True, text_dtype=dtype)
    return dataclasses.replace(experiment, latents=latents, text_dropout=HALF)


def begun(experiment, root: Path) -> Workspace:
    """A run's folder with latents, and what it has of its base."""
    space = Workspace(root)
    space.save_experiment(experiment)
    make_latents(root)
    copy_pretrained(experiment, space)
    return space


def losses(space: Workspace) -> list[float]:
    return [json.loads(line)["loss"] for line in (space.logs / "dit.jsonl").read_text().splitlines()]


def test_losses_are_those_of_a_step_with_the_encoder(base):
    plain = dataclasses.replace(lora_experiment(base), text_dropout=HALF)
    space = begun(plain, base.with_name("plain"))
    run(plain, space, stages=("dit",), logging=QUIET)
    with_texts = begun(cached(base), base.with_name("cached"))
    encode_texts(cached(base), with_texts, QUIET)
    run(cached(base), with_texts, stages=("dit",), logging=QUIET)
    assert len(losses(space)) == STEPS
    np.testing.assert_allclose(losses(with_texts), losses(space), rtol=2e-5)


def test_what_training_holds_has_no_text_encoder(base):
    parts = ("vision", *cached(base).network.experts)
    held = split_trainable(cached(base), make_mesh(), parts=parts).frozen
    assert set(held) == {"dit"}
    assert set(split_trainable(lora_experiment(base), make_mesh()).frozen) == {"dit", "text"}


def test_texts_are_made_once_and_new_captions_are_added(base, monkeypatch):
    space, experiment = begun(cached(base), base.with_name("grows")), cached(base)
    made: list[str] = []
    encode = "vdit.train.texts.TextEncoding.__call__"
    monkeypatch.setattr(encode, lambda self, captions: (made.extend(captions), [np.ones((2, 16))] * len(captions))[1])
    texts = encode_texts(experiment, space, QUIET)
    assert set(made) == {"", *CAPTIONS}
    assert len(texts) == 4
    made.clear()
    assert len(encode_texts(experiment, space, QUIET)) == 4
    assert not made
    (space.latents).rename(space.root / "former")
    write_latents(space.latents, [{"latent": np.zeros((1, 4, 4, 4)), "captions": [CAPTIONS[0], "a new one"]}])
    grown = encode_texts(experiment, space, QUIET)
    assert made == ["a new one"]
    assert "a new one" in grown
    assert CAPTIONS[0] in grown
    with pytest.raises(DataError, match="'never encoded' is not encoded"):
        grown.features("never encoded")


def test_texts_of_another_encoder_are_refused(base):
    space = begun(cached(base), base.with_name("other"))
    write_texts(space.texts, CAPTIONS, lambda texts: [np.ones((2, 16))] * len(texts), identity="another")
    with pytest.raises(DataError, match="another text encoder"):
        run(cached(base), space, stages=("dit",), logging=QUIET)


@pytest.mark.parametrize("file", ["captions.json", "index.json"])
def test_damage_is_named(tmp_path, file):
    write_texts(tmp_path / "texts", CAPTIONS, lambda texts: [np.ones((2, 16))] * len(texts), identity="x")
    (tmp_path / "texts" / file).write_text('{"keys": ["a"]}')
    with pytest.raises(DataError, match=file):
        TextStore(tmp_path / "texts")


def test_features_on_disk_are_those_that_were_made(tmp_path):
    rng = np.random.default_rng(0)
    made = {caption: rng.normal(size=(3 + i, 16)).astype(np.float32) for i, caption in enumerate(["", *CAPTIONS])}
    texts = write_texts(tmp_path / "texts", CAPTIONS * 3, lambda new: [made[text] for text in new], identity="x",
                        dtype="bfloat16")  # fmt: skip
    assert len(texts) == 4
    assert texts.dtype == "bfloat16"
    for caption, features in made.items():
        np.testing.assert_array_equal(texts.features(caption), features.astype(jnp.bfloat16))


@pytest.mark.parametrize("pad", [True, False])
def test_dropped_captions_are_the_encoded_empty_prompt(pad):
    """T5, with and without padding: rows with features give the DiT what rows with tokens do, dropped or not."""
    t5 = T5Config(vocab_size=20, width=8, heads=2, head_dim=4, mlp=16, layers=1, pad=pad)
    config = TextConfig(width=8, max_length=6, t5=t5)
    captions = {"": [1], "one": [5, 6, 1], "two": [7, 8, 9, 4, 1]}

    class Ids:
        max_length = 6

        def encode(self, text):
            ids = captions[text]
            return ids + [0] * (6 - len(ids)) if pad else ids

    encoder = make_encoder(config)
    params = encoder.init(jax.random.key(0), *np.ones((3, 1, 1), np.int32))

    def features(text: str) -> np.ndarray:
        ids = np.array([captions[text]])
        return np.asarray(encoder.apply(params, ids, ids * 0 + 1, np.arange(ids.size)[None]))[0]

    tokenizer = CachedTokenizer(Ids(), TextsInMemory({text: features(text) for text in captions}))
    shape = RowShape.of(dataclasses.replace(base_experiment().data, max_text_per_row=20), tokenizer.conditions)

    def clip(text: str) -> PackItem:
        ids = np.asarray(tokenizer.encode(text), np.int32)
        return PackItem(values=np.zeros((4, 4)), grid=(1, 2, 2), text=ids, cond=tokenizer.read(text, len(ids)))

    row = jax.tree.map(jnp.asarray, build_rows([[clip("one"), clip("two"), clip("")]], shape))
    without = dataclasses.replace(row, cond={}, cond_axes=())
    network = Network(text=config, backbone=dataclasses.replace(base_experiment().backbone, text_width=8))
    drop = jnp.zeros((1, without.max_clips + 1), bool).at[0, 2].set(True)
    for clips in (jnp.zeros_like(drop), drop):
        mine = TextCondition(config=config).drop(row, clips[:, : row.max_clips + 1])
        theirs = TextCondition(config=config).drop(without, clips)
        np.testing.assert_array_equal(mine.text_segment_ids, theirs.text_segment_ids)
        seen = np.asarray(theirs.text_segment_ids)[0] > 0
        found, wanted = (np.asarray(network.encode_text({"text": params["params"]}, r)) for r in (mine, theirs))
        np.testing.assert_allclose(found[0, seen], wanted[0, seen], atol=1e-6)
    assert TEXT_FEATURES in mine.cond


def test_a_text_encoder_that_is_trained_is_refused(base):
    experiment = base_experiment()
    with pytest.raises(ConfigError, match=r"latents\.text=True"):
        dataclasses.replace(experiment, latents=dataclasses.replace(experiment.latents, text=True))
    assert main(["encode-text", str(base)]) == 2


def test_the_command_encodes_and_the_run_remembers(base, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("vdit.train.stages.run", lambda *args, **options: asked.append((args, options)))
    monkeypatch.setattr("vdit.cli.process.keep_compiled", lambda: None)
    Workspace(tmp_path / "lora").save_experiment(lora_experiment(base))
    assert main(["encode-text", str(tmp_path / "lora"), "--dtype", "bfloat16"]) == 0
    [((experiment, space), options)] = asked
    assert experiment.latents.text
    assert experiment.latents.text_dtype == "bfloat16"
    assert space.root == tmp_path / "lora"
    assert options["stages"] == ("vae", "latents")
