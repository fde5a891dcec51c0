"""What counts as a caption: real ones pass, and what language models answer instead of one is named."""

import csv
import json

import pytest

from tests.data_paths import DATA
from vdit.errors import ConfigError, LanguageError
from vdit.language.checks import CaptionRules, check_caption, read_answer, repeats

RULES = CaptionRules()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (" \n… ", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I cannot see the video. Please provide the frames.", "refusal"),
        ("As an AI language model, I do not watch videos.", "refusal"),
        ("No video was provided.", "refusal"),
        ("a dog runs and " * 8, "repetition"),
        ("The dog dog dog dog runs.", "repetition"),
        ("word " + " ".join(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(80)), "too long"),
        ("<html><body>Bad gateway</body></html>", "markup"),
        ("<|im_end|> A dog", "markup"),
        ('{"short": "a dog"}', "markup"),
        ("A dog \ufffd runs", "no text"),
        ("Ein brauner Hund läuft über die grüne Wiese und der Himmel ist blau.", "de"),
        ("Un chien brun court dans l'herbe et le ciel est bleu sur les arbres.", "fr"),
        ("Un perro marrón corre por la hierba y el cielo es azul sobre los árboles.", "es"),
        ("一只棕色的狗在草地上奔跑，天空是蓝色的。", "Cjk"),
        ("Коричневая собака бежит по траве.", "Cyrillic"),
    ],
)
def test_what_is_no_caption_is_named(text, problem):
    found = check_caption(text, RULES, words=60)
    assert problem in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "A dog runs.",
        "Two red balls and a blue cube; the café sign reads “Zürich – 東京”.",
        "A woman apologises: she is sorry.",
        "Very, very slowly the snail goes round and round and round the stone.",
        "Le Mans",
    ],
)
def test_captions_pass(text):
    assert check_caption(text, RULES, words=60) is None


@pytest.mark.skipif(not (DATA / "prompts").is_dir(), reason="no prompts")
def test_real_captions_pass():
    """Of the 11,648 short and long prompts and Sora's 48, at most one in two hundred is taken for something else."""
    pairs = [json.loads(line) for line in (DATA / "prompts/short_long_pairs.jsonl").read_text().splitlines()]
    texts = [text for pair in pairs[::6] for text in pair.values() if isinstance(text, str)]
    with open(DATA / "prompts/sora_prompts.csv", newline="") as file:
        texts += [max(row, key=len) for row in csv.reader(file)][1:]
    assert len(texts) > 1900
    wrong = [text for text in texts if check_caption(text, RULES, words=400) is not None]
    assert len(wrong) <= len(texts) // 200, wrong[:5]


def test_every_run_that_repeats_is_found():
    sentence = "The red ball rolls down the long hill towards the old stone bridge near the water"
    for size in range(1, 17):
        once = " ".join(sentence.split()[:size])
        assert repeats(f"Look: {once} {once} {once} {once} and more")
    assert not repeats(sentence)


def test_any_language_is_not_checked():
    german = "Ein brauner Hund läuft über die grüne Wiese und der Himmel ist blau."
    assert check_caption(german, CaptionRules(language="any"), words=60) is None
    assert check_caption(german, CaptionRules(language="de"), words=60) is None
    with pytest.raises(ConfigError, match="klingon"):
        CaptionRules(language="klingon")


def test_answers_are_read_in_the_forms_that_models_give_them():
    fields = {"short": "A dog.", "detailed": "A brown dog.", "camera": "static"}
    text = json.dumps(fields)
    assert read_answer(text, "caption") == fields
    assert read_answer(f"<think>short or {{long}}?</think>Here it is:\n```json\n{text}\n```", "caption") == fields
    assert read_answer(text.replace("A dog.", "A\\n dog."), "caption") == fields
    assert read_answer('  "A dog\nruns." ', "short") == {"short": "A dog runs."}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("I'm sorry, but I can't help.", "refusal"),
        ("A dog.", "no JSON"),
        ('{"short": "A dog", "detailed": "A bro', "breaks off"),
        ('{"short": "A dog", "detailed": "A brown dog"}', "camera"),
        ('{"short": 1, "detailed": "a", "camera": "b"}', "short"),
        ('{"short": "a", "short": "b", "detailed": "a", "camera": "b"}', "no JSON"),
        ("{" * 100_000, "JSON"),
    ],
)
def test_answers_without_a_caption_are_named(text, problem):
    with pytest.raises(LanguageError, match=problem):
        read_answer(text, "caption")
