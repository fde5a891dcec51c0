"""Tokenizers of language models: transformers' ids, any text, and files that are refused."""

from __future__ import annotations

import json
import pickle

import pytest

from vdit.errors import TextError
from vdit.models.lm.tokenizer import LLAMA3, QWEN2, LMTokenizer, bpe_json, load_lm_tokenizer, train_lm_tokenizer

TEXTS = ["A red ball rolls to the left.", "It's 2026: the blue cube's 15 metres away, it'll fall!"]
HARD = [*TEXTS, "  two\n\n spaces\t", "naïve 日本語 🙂 \u0000 e\u0301", "<|im_end|>A red<|im_start|>", "", "12 6 7.8"]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def trained():
    return train_lm_tokenizer(TEXTS * 3, 400, special=SPECIAL)


def test_any_text_comes_back(trained):
    assert trained.vocab_size <= 400
    for text in HARD:
        want = text.replace("<|im_end|>", "").replace("<|im_start|>", "")
        assert trained.decode(trained.encode(text)) == want
    assert [trained.id_of(token) for token in SPECIAL] == [0, 1, 2]
    assert trained.encode("<|im_end|>red")[0] == 2
    assert len(trained.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_it_compares_pickles_and_is_saved(trained, tmp_path):
    assert pickle.loads(pickle.dumps(trained)) == trained == train_lm_tokenizer(TEXTS * 3, 400, special=SPECIAL)
    trained.save(tmp_path / "tokenizer.json")
    assert load_lm_tokenizer(tmp_path) == trained
    assert "model" not in repr(trained)


@pytest.mark.parametrize("words", ["gpt2", "digits", "qwen2", "llama3"])
def test_vocabularies_of_gguf_give_the_ids_of_the_same_parts(trained, words):
    """Against the pipeline that each family's tokenizer.json states, built by the library."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = json.loads(trained.model)["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    ours = LMTokenizer(model=bpe_json(tokens, merges, words=words, special=[0, 1, 2], added=[]))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    want = Tokenizer(models.BPE(vocab=model["vocab"], merges=pairs, ignore_merges=words == "llama3"))
    pattern = {"qwen2": QWEN2, "llama3": LLAMA3}.get(words)
    first = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    first += [pre_tokenizers.Digits(individual_digits=True)] if words == "digits" else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    want.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    if words == "qwen2":
        want.normalizer = normalizers.NFC()
    want.add_special_tokens([*SPECIAL])
    for text in HARD:
        assert ours.encode(text) == want.encode(text, add_special_tokens=False).ids


def changed(trained, **parts):
    return json.dumps(json.loads(trained.model) | parts).encode()


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ({"model": None}, "None"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "vocab"),
        ({"normalizer": {"type": "Precompiled"}}, "Precompiled"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}}, "(a+)+$"),
        ({"decoder": {"type": "Sequence", "decoders": [{"type": "CTC"}]}}, "CTC"),
        ({"added_tokens": 3}, "added_tokens"),
        ({"normalizer": {"type": {}}}, "normalizer"),
        ({"decoder": {"type": "Sequence", "decoders": 3}}, "decoders"),
    ],
)
def test_parts_that_are_not_known_are_named(trained, parts, named):
    with pytest.raises(TextError) as error:
        LMTokenizer(model=changed(trained, **parts))
    assert named in str(error.value)


def test_damaged_files_are_refused(trained, tmp_path):
    strange = b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [3]}}'
    for data in (b"", b"{", trained.model[:-5], b"[1]", strange):
        (tmp_path / "tokenizer.json").write_bytes(data)
        with pytest.raises(TextError):
            load_lm_tokenizer(tmp_path)
    with pytest.raises(TextError):
        load_lm_tokenizer(tmp_path / "absent.json")
    with pytest.raises(TextError, match="100"):
        train_lm_tokenizer(TEXTS, 100)
    with pytest.raises(TextError):
        bpe_json(["a"], ["a b c"], words="gpt2", special=[], added=[])
    with pytest.raises(TextError, match="7"):
        bpe_json(["a"] * 7, [], words="gpt2", special=[7], added=[])
