"""A run's own expander: trained on its captions, kept as a folder that transformers reads, the same text again."""

import json

import jax
import numpy as np
import pytest

from vdit.data.latents import write_latents
from vdit.errors import ConfigError, DataError
from vdit.generate.expansion import FOLDER, NOTE, file_pairs, open_expander, run_pairs, train_run_expander
from vdit.language.words import lost_words
from vdit.models.lm.model import LanguageModel
from vdit.train.expander import ExpanderConfig, as_typed, caption_pairs, next_token_loss, train_expander

COLOURS, THINGS = ("red", "blue", "green"), ("ball", "box", "star")
PAIRS = [(f"a {c} {t}", f"A small {c} {t} lies on a grey floor.") for c in COLOURS for t in THINGS]
SMALL = ExpanderConfig(width=32, layers=1, vocab_size=300, steps=120, learning_rate=1e-2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with latents and their captions, and an expander of them."""
    root = tmp_path_factory.mktemp("run")
    write_latents(root / "latents", [{"latent": np.zeros((1, 2, 2, 2)), "captions": list(pair)} for pair in PAIRS])
    losses = []
    train_run_expander(root, SMALL, progress=lambda done, loss: losses.append((done, loss)))
    assert losses[-1][0] == SMALL.steps
    assert losses[-1][1] < 0.7
    return root


def test_it_writes_captions_as_the_runs_are(run):
    expander = open_expander(run)
    made = expander.expand(["red ball", "a blue star"], seed=3)
    for one in made:
        assert one.text == one.prompt or (one.text.startswith("A small") and not lost_words(one.prompt, one.text))
    assert any(one.expanded for one in made)
    again = open_expander(run).expand(["red ball", "a blue star"], seed=3)
    assert [one.text for one in again] == [one.text for one in made]


def test_its_folder_is_transformers(run):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / FOLDER)
    ours = open_expander(run).model
    ids = np.array([ours.tokenizer.encode("<|user|>red ball<|answer|>A small")])
    place, one = np.arange(ids.shape[1])[None], np.ones_like(ids)
    hidden = ours.model.apply({"params": ours.params}, ids, place, one).hidden
    logits = ours.model.apply({"params": ours.params}, hidden, method="logits")
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_a_run_without_one_says_how_to_get_one(run, tmp_path):
    with pytest.raises(ConfigError, match="--train"):
        open_expander(tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        train_run_expander(run, SMALL)
    with pytest.raises(ConfigError, match="give one"):
        open_expander(lm="a", endpoint="b")
    with pytest.raises(ConfigError, match="prompt file"):
        open_expander(run, prompt_file="x.md")
    with pytest.raises(DataError, match="8 are needed"):
        train_run_expander(tmp_path, SMALL, pairs=PAIRS[:7])
    assert not (tmp_path / FOLDER / NOTE).exists()


def test_pairs_are_of_clips_with_both_captions(run, tmp_path):
    assert run_pairs(run) == PAIRS
    assert caption_pairs([("a", "b", "c"), ("a", "b"), ("d",), ("e", "e"), ("", "f")]) == [("a", "b"), ("a", "c")]
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"short": "a", "long": "b", "suite": "x"}) + "\n")
    assert file_pairs(file) == [("a", "b")]
    file.write_text('{"short": "a"}\n')
    with pytest.raises(DataError, match="line 1"):
        file_pairs(file)


def test_typed_prompts_keep_every_important_word():
    for seed in range(20):
        assert not lost_words("a red ball rolls to the left", as_typed("a red ball rolls to the left",
                                                                      np.random.default_rng(seed)))  # fmt: skip


def test_the_loss_is_of_the_answer_alone():
    """The prompt's tokens and padding have no part in it."""
    model = LanguageModel(SMALL.model(300))
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 300, (2, 12)).astype(np.int32)
    weight = np.zeros((2, 12), np.float32)
    weight[:, 4:8] = 1
    batch = {"ids": ids, "length": np.array([8, 8], np.int32), "weight": weight}
    params = model.init(jax.random.key(0), ids[:, :1], ids[:, :1] * 0, ids[:, :1] * 0 + 1)["params"]
    loss = jax.jit(next_token_loss(model))
    first, metrics = loss(params, batch, jax.random.key(0), 0)
    assert metrics["weight"] == 8
    other = ids.copy()
    other[:, 8:] = 5
    assert loss(params, batch | {"ids": other}, jax.random.key(0), 0)[0] == pytest.approx(float(first), rel=1e-5)
    other[:, 6] = 7
    assert loss(params, batch | {"ids": other}, jax.random.key(0), 0)[0] != pytest.approx(float(first), rel=1e-5)


def test_too_long_pairs_are_left_out_and_counted():
    long = " ".join(f"word{i}" for i in range(400))
    config = ExpanderConfig(width=32, layers=1, vocab_size=300, steps=1)
    trained = train_expander([*PAIRS, ("a long one", long)], config)
    assert trained.cut == 1
