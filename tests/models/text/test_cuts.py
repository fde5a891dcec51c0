"""A text longer than the model reads is cut, and that is said: where, and how much of it is lost."""

import warnings
from types import SimpleNamespace

import pytest

from vdit.cli.main import _warnings_as_lines
from vdit.errors import VditWarning
from vdit.models.text import train_tokenizer, warn_of_cuts
from vdit.models.text.tokenizer import kept_text
from vdit.train.logging import report_cut_captions

WORDS = [f"the {colour} dog number {number} runs" for number in range(40) for colour in ("red", "blue", "green")]
LONG = " and ".join(WORDS[:60])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(WORDS, vocab_size=400, max_length=40)


def test_the_beginning_that_is_kept_is_what_the_model_reads(tokenizer):
    assert tokenizer.length(LONG) > 270
    kept = kept_text(tokenizer, LONG, limit=40)
    assert LONG.startswith(kept)
    assert tokenizer.encode(LONG)[:39] == tokenizer.encode(kept)[:39]  # the last piece may be the half of a word
    assert tokenizer.length(LONG[: len(kept) + 8]) > 40


def test_a_long_prompt_warns_and_a_whole_one_does_not(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitting = kept_text(tokenizer, LONG, limit=40)
        warn_of_cuts(tokenizer, ["", "a red dog", fitting], limit=40)
    with pytest.warns(VditWarning) as seen:
        warn_of_cuts(tokenizer, ["a red dog", LONG], limit=40)
    (warning,) = seen
    text = str(warning.message)
    assert f"it has {tokenizer.length(LONG)} pieces, and this model reads 40" in text
    assert kept_text(tokenizer, LONG, limit=40)[-40:] in text
    assert f"the last {len(LONG) - len(kept_text(tokenizer, LONG, limit=40))} of its {len(LONG)} characters" in text


def test_the_command_line_says_it_once_in_one_line(tokenizer, capsys):
    with _warnings_as_lines():
        for _ in range(3):
            warn_of_cuts(tokenizer, [LONG], limit=40)
    err = capsys.readouterr().err
    assert err.startswith("vdit: warning: the prompt")
    assert err.count("\n") == 1


def test_captions_that_are_cut_are_counted_once(tokenizer):
    said = []
    logging = SimpleNamespace(say=said.append)
    store = [{"captions": ["a red dog", LONG]}, {"captions": [LONG]}, {"captions": [f"{LONG} again"]}]
    report_cut_captions(store, tokenizer, 40, logging)
    (line,) = said
    assert "2 of 3" in line
    assert str(tokenizer.length(f"{LONG} again")) in line
    report_cut_captions(store[:1] * 3, tokenizer, 10_000, logging)
    assert len(said) == 1
