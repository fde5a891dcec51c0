import pickle
import random
import unicodedata

import pytest

from tests.data_paths import shared_data
from vdit.errors import TextError
from vdit.models.text import (
    SentencePieceTokenizer,
    TextConfig,
    fit_vocabulary,
    load_tokenizer,
    train_tokenizer,
)

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
WAYS = ("left", "right", "up", "down")
CAPTIONS = [f"a {colour} {shape} moves {way}" for colour in COLOURS for shape in SHAPES for way in WAYS]

HARD = [
    "", " ", "\n\t", "é", "e\u0301", "日本語の猫が走る", "😀👩‍👩‍👧🏳️‍🌈", "مرحبا", "a\x00b", "\ufeff", "\u200b",
    "<s></s><unk>", "<0x41>", "▁▁", "⁇", "ﬁ ＡＢ½", "x" * 5000, "a " * 5000, "\U0010ffff", "\u2028",
    "'\"\\%s{}",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, vocab_size=512)


def test_a_trained_tokenizer_knows_the_words_of_its_captions(tokenizer):
    for caption in CAPTIONS:
        ids = tokenizer.encode(caption)
        assert len(ids) == 1 + len(caption.split())
        assert tokenizer.decode(ids) == caption
    assert tokenizer.vocab_size < 512  # a small corpus gives fewer pieces than asked for


def test_training_is_deterministic_and_does_not_depend_on_order(tokenizer):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert train_tokenizer(shuffled, vocab_size=512).model == tokenizer.model
    assert train_tokenizer([*CAPTIONS, "a purple hexagon"], vocab_size=512).model != tokenizer.model


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_any_text_encodes_and_comes_back(tokenizer, text):
    long = SentencePieceTokenizer(model=tokenizer.model, max_length=1 << 20)
    ids = long.encode(text)
    assert ids[0] == long.first
    assert all(0 <= i < long.vocab_size for i in ids)
    assert 0 not in ids  # never the unknown piece
    assert long.first not in ids[1:]  # text that looks like a special token is text
    invisible = dict.fromkeys(map(ord, "\ufeff\u200b"), " ")
    wanted = unicodedata.normalize("NFKC", text.translate(invisible)).replace("\u2581", " ")
    assert " ".join(long.decode(ids).split()) == " ".join(wanted.split())
    assert tokenizer.encode(text) == ids[: tokenizer.max_length]


def test_half_a_surrogate_pair_is_a_question_mark(tokenizer):
    assert tokenizer.encode("\ud800") == tokenizer.encode("?")


def test_the_empty_prompt_is_the_first_token_alone(tokenizer):
    assert tokenizer.encode("") == [tokenizer.first] == tokenizer.encode("a cat")[:1]


def test_text_is_cut_at_max_length(tokenizer):
    short = SentencePieceTokenizer(model=tokenizer.model, max_length=3)
    assert short.encode(CAPTIONS[0]) == tokenizer.encode(CAPTIONS[0])[:3]
    assert SentencePieceTokenizer(model=tokenizer.model, max_length=1).encode("a cat") == [tokenizer.first]


def test_save_load_and_pickle_give_an_equal_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "sub" / "captions.model"
    tokenizer.save(path)
    assert load_tokenizer(path, max_length=tokenizer.max_length) == tokenizer
    assert [p.name for p in path.parent.iterdir()] == ["captions.model"]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(CAPTIONS[3]) == tokenizer.encode(CAPTIONS[3])
    again = train_tokenizer(CAPTIONS, path, vocab_size=300)
    assert load_tokenizer(path) == again


@pytest.mark.parametrize("captions", [["a"], ["😀"], ["x" * 100_000], ["\n", " a"]], ids=range(4))
def test_tiny_corpora_train(captions):
    assert train_tokenizer(captions, vocab_size=300).encode("a dog")


def test_more_characters_than_room_still_train():
    text = "".join(chr(0x4E00 + i) for i in range(2000))
    tokenizer = train_tokenizer([text], vocab_size=400, max_length=10_000)
    assert tokenizer.vocab_size <= 400
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("captions", "size", "message"), [
    ([], 512, "no caption with a letter"),
    (["", "\x00", "▁▁"], 512, "no caption with a letter"),
    (["a cat"], 259, "vocab_size 259 must be at least 263"),
])
def test_what_cannot_be_trained_on_is_one_line(captions, size, message):
    with pytest.raises(TextError, match=message) as error:
        train_tokenizer(captions, vocab_size=size)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_model_is_refused(tokenizer, tmp_path):
    real = tokenizer.model
    texts = [b"", b"hello\n", b"\x89PNG\r\n\x1a\n", b"\x0a\x00", bytes(range(256)) * 40]
    for data in [*texts, real[:1000], real[:-7]]:
        path = tmp_path / "wrong.model"
        path.write_bytes(data)
        with pytest.raises(TextError, match=r"wrong\.model: not a sentencepiece model") as error:
            load_tokenizer(path)
        assert "\n" not in str(error.value)
    for path in (tmp_path / "missing.model", tmp_path):
        with pytest.raises(TextError, match=tmp_path.name):
            load_tokenizer(path)


def test_wrong_values_are_refused(tokenizer):
    with pytest.raises(TextError, match="a caption must be text, got NoneType"):
        tokenizer.encode(None)
    with pytest.raises(TextError, match="max_length 0 must be at least 1"):
        SentencePieceTokenizer(model=tokenizer.model, max_length=0)


def test_a_model_without_bos_begins_with_its_first_control_piece():
    class Processor:
        def __init__(self, bos, controls):
            self.bos, self.controls = bos, controls

        def bos_id(self):
            return self.bos

        def unk_id(self):
            return 7

        def vocab_size(self):
            return 10

        def is_control(self, i):
            return i in self.controls

    def first(bos, controls):
        bare = object.__new__(SentencePieceTokenizer)
        bare.__dict__.update(_processor=Processor(bos, controls), max_length=4, model=b"x")
        return bare.first

    assert first(bos=3, controls={0, 3}) == 3
    assert first(bos=-1, controls={2, 5}) == 2  # T5: its padding piece
    assert first(bos=-1, controls=set()) == 7


@pytest.mark.parametrize("name", ["tokenizer.default", "tokenizer.mistral-v1"])
def test_public_models_load(name):
    tokenizer = load_tokenizer(shared_data("tokenizers", name))
    assert tokenizer.vocab_size > 30_000
    caption = "a woman in a white top plays with a brown and white dog"
    ids = tokenizer.encode(caption)
    assert ids[0] == 1
    assert tokenizer.decode(ids) == caption
    for text in HARD:
        assert 1 <= len(tokenizer.encode(text)) <= 64


def test_fit_vocabulary_shrinks_the_table(tokenizer):
    assert fit_vocabulary(TextConfig(vocab_size=4096), tokenizer).vocab_size == tokenizer.vocab_size
