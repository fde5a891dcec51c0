"""The T5 tokenizer gives the ids that transformers gives for the same folder, on hard strings and random ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import random

import pytest
import sentencepiece

from vdit.errors import TextError
from vdit.models.text.config import TextConfig, t5_preset, t5_text
from vdit.models.text.t5_tokenizer import T5Tokenizer, clean_prompt, load_t5_tokenizer, make_tokenizer
from vdit.models.text.tokenizer import SentencePieceTokenizer, fit_vocabulary

NEGATIVE = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，JPEG压缩"
LINES = [
    "a red circle moves left, the quick brown fox jumps over the lazy dog",
    "A cat & a dog: 12345 it's fine! <b>best</b> quality; 4k 50%",
    "Über café naïve ñandú, façade",
    "ﬁne ½ ™ 日本語の猫 走る こんにちは",
    "xx xxx xxxx aaaa aaab",
    NEGATIVE,
]
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "normalization_rule_name": "nmt_nfkc"}
MODELS = {
    # name -> (options of its training, tokenizer_config.json)
    "t5": ({**T5, "vocab_size": 200}, {"extra_ids": 100}),
    "umt5": ({**T5, "bos_id": 2, "unk_id": 3, "byte_fallback": True, "vocab_size": 480}, {"extra_ids": 300}),
    "identity": ({**T5, "vocab_size": 200, "normalization_rule_name": "identity"}, {}),
    "folded": ({**T5, "vocab_size": 180, "normalization_rule_name": "nmt_nfkc_cf"}, {}),
    "own symbols": (
        {**T5, "vocab_size": 220, "user_defined_symbols": ["<extra_id_1>", "<extra_id_0>", "xxx", "▁cat"]},
        {"extra_ids": 0},
    ),
}
HARD = [
    "", " ", "   ", "\n\t", " lead", "trail ", "two  spaces", "line\nbreak\ttab\r\nend\rx", NEGATIVE, NEGATIVE * 20,
    "😀 smile", "👩‍👩‍👧🏳️‍🌈👍🏽", "#\ufe0f\u20e3 1\ufe0f", "a🏽b", "&lt;b&gt; &amp;amp; &eacute; &#128512; &nbsp;x",
    "＜ｓ＞ＡＢＣ１２３，＜/s＞＜unk＞", "ﬁ ½ ™ № ㎏ ㍿ ﷺ", "e\u0301 n\u0303 A\u030a a\u0323\u0302 a\u0302\u0323",
    "Ａ\u0301 ª\u0301 ´\u0301 ﬁ\u0301 ſ\u0323 ｶﾞ ﾊﾟ aﾞ", "ẛ̣ Ω Å 각 한", "\u0600a \u06dd1 \u0600ª",
    "x\u0e33 ª\u0e33 ª\u102b ª\u0903", "zero\u200bwidth\u200djoin\u200cer\ufeffbom\u2060wj", "soft\u00adhyphen",
    "\u00a0nbsp\u00a0 \u2003em\u3000wide\u2028ls\u2029ps\u0085nel", "\x00nul\x01\x02\x1b[31m\x7f\x1c\x1dfs",
    "x</s> dog", "</s>", "<pad>", "a<pad>b <unk> c", "<extra_id_3> dog", "<extra_id_99>x<extra_id_150>",
    "<extra_id_ 3>", "<s> a <0x41> b", "▁▁dog ▁ a▁b▁", "xxx xxxxxxx" + "x" * 300, "a" * 1000, "word " * 700,
    "日本語の猫" * 200, "مرحبا שלום नमस्ते สวัสดี", "\U0010ffff\U000e0041\ue000", "\u0344 \u0958 \u2126 \ufb2c", "''“”‘’…—",
    "Ã©tÃ© schÃ¶n â€œquoteâ€\x9d", "CAPS Mixed ß İ ı", "1,000.50", "it's <b>bold</b>", "\u1e9b\u0323\u0301x",
]  # fmt: skip
# Random text draws its characters from these.
ALPHABET = (
    "abcxx   ▁<>/&;ªº´½ﬁ™Ａｂ１，。色调 éß\u0301\u0302\u0323\u030a\u0345\u200b\u200c\u200d\ufe0f\u00ad\u0600\u0903"
    "\u0e33\u102b\uff9e\u3099カｶか\t\n\r\x00\x0b\x1c\x85\u00a0\u3000\u2028😀🏽👩한ᄀ\u1161\u11a8İΩ\u0958\ufdfa\u0344"
    "\U0010ffff"
)
SPELLED = ["</s>", "<pad>", "<unk>", "<extra_id_7>", "<0x41>", "<s>", " cat", "xxx"]


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(a folder, transformers' tokenizer of it): a unigram model trained as T5's were."""
    if os.environ.get("CI"):
        import transformers
    else:
        transformers = pytest.importorskip("transformers", reason="pip install -e '.[parity]' for the reference")
    options, config = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    (folder / "spiece.model").write_bytes(train(**options))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **config}))
    return folder, transformers.AutoTokenizer.from_pretrained(folder)


def train(**options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4), model_writer=model, model_type="unigram", hard_vocab_limit=False,
        character_coverage=1.0, num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def model():
    return train(**T5, vocab_size=200)


def strings(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    kinds = [
        lambda: draw.choice(ALPHABET),
        lambda: draw.choice(ALPHABET),
        lambda: draw.choice(SPELLED),
        lambda: chr(draw.choice([draw.randrange(0x80), draw.randrange(0x3000), draw.randrange(0xD800)])),
        lambda: chr(draw.randrange(0xE000, 0x20000)),
    ]
    return ["".join(draw.choice(kinds)() for _ in range(draw.randrange(1, 24))) for _ in range(count)]


def test_ids_are_those_of_transformers(pair):
    folder, theirs = pair
    raw = load_t5_tokenizer(folder, max_length=1 << 20, pad=False, clean=False)
    cleaned = load_t5_tokenizer(folder, max_length=512)
    for text in HARD:
        assert raw.encode(text) == theirs(text).input_ids, repr(text[:60])
        want = theirs(clean_prompt(text), padding="max_length", max_length=512, truncation=True).input_ids
        assert cleaned.encode(text) == want, repr(text[:60])


def test_random_unicode_gives_the_ids_of_transformers(pair):
    folder, theirs = pair
    ours = load_t5_tokenizer(folder, max_length=1 << 20, pad=False, clean=False)
    texts = strings(600, seed=0)
    for text, want in zip(texts, theirs(texts).input_ids, strict=True):
        assert ours.encode(text) == want, ascii(text)


def test_cutting_and_padding_are_those_of_transformers(pair):
    folder, theirs = pair
    for length in (1, 2, 5, 9):
        ours = load_t5_tokenizer(folder, max_length=length)
        for text in ("", "a cat", "a cat and a dog in a box with a red circle"):
            want = theirs(text, padding="max_length", max_length=length, truncation=True).input_ids
            assert ours.encode(text) == want


def test_sizes_and_special_ids_are_those_of_transformers(pair):
    folder, theirs = pair
    ours = load_t5_tokenizer(folder)
    assert (ours.vocab_size, ours.eos_id, ours.pad_id) == (len(theirs), theirs.eos_token_id, theirs.pad_token_id)


@pytest.fixture(scope="module")
def json_pair(pair, tmp_path_factory):
    """(a folder with tokenizer.json alone, as transformers saves one, transformers' tokenizer of it)."""
    import transformers

    folder = tmp_path_factory.mktemp("json")
    pair[1].save_pretrained(folder)
    for file in folder.iterdir():
        if file.suffix == ".model":
            file.unlink()
    return folder, transformers.AutoTokenizer.from_pretrained(folder)


def test_a_folder_with_tokenizer_json_alone_gives_the_ids_of_transformers(pair, json_pair):
    folder, theirs = json_pair
    assert not list(folder.glob("*.model"))
    raw = load_t5_tokenizer(folder, max_length=1 << 20, pad=False, clean=False)
    spiece = load_t5_tokenizer(pair[0], max_length=1 << 20, pad=False, clean=False)
    assert (raw.vocab_size, raw.eos_id, raw.pad_id) == (len(theirs), theirs.eos_token_id, theirs.pad_token_id)
    for text in [*HARD, *strings(150, seed=4)]:
        assert raw.encode(text) == theirs(text).input_ids == spiece.encode(text), ascii(text[:60])


def test_the_file_reads_as_sentencepiece_reads_it(pair):
    ours = load_t5_tokenizer(pair[0], extra_ids=0)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=ours.model)
    ids = list(range(theirs.vocab_size()))
    assert list(zip(theirs.id_to_piece(ids), theirs.get_score(ids))) == list(ours._pieces.scored)
    control = {theirs.id_to_piece(i) for i in ids if theirs.is_control(i)}
    assert control <= set(ours._pieces.special)


def test_the_prompt_is_cleaned_as_wan_cleans_it():
    wan = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan", reason="pip install -e '.[parity]'")
    for text in [*HARD, *strings(300, seed=1), "half \ud800 pair", "&amp;amp;lt;b", "\u00a0 x \u3000"]:
        assert clean_prompt(text) == wan.prompt_clean(text), ascii(text[:60])


def test_the_empty_prompt_is_the_end_token_and_padding(model):
    ours = T5Tokenizer(model=model, max_length=8)
    for text in ("", " ", "\n\t", "\u200b", "&nbsp;"):
        assert ours.encode(text) == [1, 0, 0, 0, 0, 0, 0, 0]
        assert T5Tokenizer(model=model, pad=False).encode(text) == [1]


def test_every_encoding_is_of_one_length_and_ends_its_text(model):
    ours = T5Tokenizer(model=model, max_length=40)
    for text in HARD + strings(100, seed=2):
        ids = ours.encode(text)
        assert len(ids) == 40
        assert 1 in ids
        assert all(0 <= i < ours.vocab_size for i in ids)
        assert T5Tokenizer(model=model, max_length=40, pad=False).encode(text) == ids[: 40 - ids[::-1].index(1)]


def test_half_a_surrogate_pair_is_text(model):
    bare = T5Tokenizer(model=model, pad=False, clean=False)
    assert bare.encode("a\ud800b") == bare.encode("a?b")
    assert T5Tokenizer(model=model, pad=False).encode("a\ud800b") == bare.encode("a\ufffdb")


def test_the_config_says_which_tokenizer_it_is(model, tmp_path):
    T5Tokenizer(model=model).save(tmp_path / "tokenizer.model")
    t5 = t5_preset("t5-v1_1-small", extra_ids=7, pad=False)
    want = T5Tokenizer(model=model, max_length=30, extra_ids=7, pad=False)
    assert make_tokenizer(t5_text(t5, max_length=30), tmp_path / "tokenizer.model") == want
    assert isinstance(make_tokenizer(TextConfig(), tmp_path / "tokenizer.model"), SentencePieceTokenizer)


def test_decoding_leaves_special_tokens_out(model):
    ours = T5Tokenizer(model=model, max_length=32)
    assert ours.decode(ours.encode("a red  circle</s> moves")) == "a red circle moves"


def test_it_pickles_and_saves(model, tmp_path):
    ours = T5Tokenizer(model=model, max_length=16, extra_ids=3)
    ours.encode("a cat")
    again = pickle.loads(pickle.dumps(ours))
    assert again == ours
    assert again.encode("a red dog") == ours.encode("a red dog")
    ours.save(tmp_path / "sub" / "tokenizer.model")
    assert load_t5_tokenizer(tmp_path / "sub", max_length=16, extra_ids=3) == ours


def test_folders_without_a_tokenizer_are_refused(model, tmp_path):
    with pytest.raises(TextError, match=r"holds none of spiece\.model, tokenizer\.model, tokenizer\.json"):
        load_t5_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TextError, match=r"tokenizer_config\.json: is not a JSON object"):
        load_t5_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": "many"}')
    with pytest.raises(TextError, match="extra_ids 'many' must be a whole number"):
        load_t5_tokenizer(tmp_path)
    with pytest.raises(TextError, match="cannot be read"):
        load_t5_tokenizer(tmp_path / "missing.model")


def as_json(**changes) -> dict:
    """A small tokenizer.json of a T5, with parts changed."""
    vocab = [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["\u2581", -2.0], ["a", -1.5]]
    model = {"type": "Unigram", "unk_id": 2, "vocab": vocab}
    return {"model": model, "normalizer": None, "added_tokens": []} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": {"type": "BPE", "vocab": {}, "merges": []}},
        {"model": {"type": "Unigram", "vocab": [["<pad>", 0], ["</s>", 0]]}},
        {"model": {"type": "Unigram", "vocab": [["<pad>"]]}},
        {"model": {"type": "Unigram", "vocab": [["<pad>", "x"]]}},
        {"model": {"type": "Unigram", "vocab": [[3, 0.0]]}},
        {"model": {"type": "Unigram", "vocab": []}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": 7}},
        {"normalizer": [1]},
        {"added_tokens": [{"id": 77, "content": "<far>"}]},
        {"added_tokens": [{"content": "<no id>"}]},
        {"added_tokens": 5},
    ],
)
def test_a_tokenizer_json_of_another_kind_is_one_clear_line(changes, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(as_json(**changes)))
    with pytest.raises(TextError, match=r"tokenizer\.json: ") as error:
        load_t5_tokenizer(file)
    assert "\n" not in str(error.value)


def test_a_tokenizer_json_runs_no_pattern_of_its_own(tmp_path):
    """What would hang a regular expression is not used: only pieces, specials and the normaliser's table are read."""
    hang = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(as_json(pre_tokenizer=hang)))
    ours = load_t5_tokenizer(tmp_path, pad=False, max_length=1000)
    assert ours.encode("a" * 60 + "!")[:-2] == [3, *[4] * 60]


def test_a_damaged_table_of_the_normaliser_is_a_text_error(tmp_path):
    import base64

    for table in (b"xx", b"\4\0\0\0abcd", b"\4\0\0\0" + b"\xff" * 4 + b"a\0"):
        normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
        (tmp_path / "tokenizer.json").write_text(json.dumps(as_json(normalizer=normalizer)))
        ours = load_t5_tokenizer(tmp_path)
        with pytest.raises(TextError, match="damaged"):
            ours.encode("abc \u00e9 \ufb01")


def test_models_of_another_kind_are_refused(model, tmp_path):
    bare = {"vocab_size": 200, "bos_id": -1, "unk_id": 0, "eos_id": 1}
    with pytest.raises(TextError, match="not the model of a T5: it has no piece <pad>"):
        T5Tokenizer(model=train(**bare))
    pairs = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=pairs, model_type="bpe", vocab_size=200, minloglevel=2, **
        {name: T5[name] for name in ("pad_id", "eos_id", "unk_id", "bos_id")},
    )  # fmt: skip
    with pytest.raises(TextError, match="not of sentencepiece's unigram kind"):
        T5Tokenizer(model=pairs.getvalue())
    for data in (b"", b"hello\n", model[:1000], model[:-7]):
        (tmp_path / "wrong.model").write_bytes(data)
        with pytest.raises(TextError, match=r"wrong\.model: not a sentencepiece model") as error:
            load_t5_tokenizer(tmp_path / "wrong.model")
        assert "\n" not in str(error.value)
    own = train(**MODELS["own symbols"][0])
    with pytest.raises(TextError, match="extra_ids 100 must be 0"):
        T5Tokenizer(model=own)
    for change, message in (({"max_length": 0}, "max_length 0"), ({"extra_ids": -1}, "extra_ids -1")):
        with pytest.raises(TextError, match=message):
            T5Tokenizer(model=model, **change)
    with pytest.raises(TextError, match="a caption must be text, got NoneType"):
        T5Tokenizer(model=model).encode(None)


def test_the_table_of_a_t5_stays_as_its_weights_have_it(model):
    config = t5_text(t5_preset("t5-v1_1-small"))
    assert fit_vocabulary(config, T5Tokenizer(model=model)) == config
    small = t5_text(t5_preset("t5-v1_1-small", vocab_size=50))
    pieces = T5Tokenizer(model=model, extra_ids=0).vocab_size
    with pytest.raises(TextError, match=r"has 300 ids, more than text\.t5\.vocab_size=50"):
        fit_vocabulary(small, T5Tokenizer(model=model, extra_ids=300 - pieces))
    assert fit_vocabulary(TextConfig(), T5Tokenizer(model=model)).vocab_size > 100
