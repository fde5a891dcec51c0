"""A language model from a public folder answers requests: order, batches, stop texts, seeds, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.pretrained.reference import enliven
from tests.pretrained.test_lm import reference
from vdit.errors import LanguageError, WeightsError
from vdit.language.base import Frames, GenerationOptions, Request, system, user
from vdit.models.lm.tokenizer import train_lm_tokenizer
from vdit.pretrained.lm import open_lm

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 280
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(torch, tmp_path_factory):
    """(folder of a small Qwen3, the model in transformers)."""
    path = tmp_path_factory.mktemp("lm") / "Small-Instruct"
    model = enliven(
        torch,
        reference(
            "Qwen3", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, intermediate_size=40, max_position_embeddings=256, eos_token_id=2,
            bos_token_id=None, tie_word_embeddings=True,
        ),
    )  # fmt: skip
    model.save_pretrained(path)
    train_lm_tokenizer(["a red ball rolls"] * 3, VOCABULARY, special=SPECIAL).save(path / "tokenizer.json")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": {"content": "<|im_end|>"}, "pad_token": None})
    )
    return path, model


@pytest.fixture(scope="module")
def lm(folder):
    return open_lm(folder[0])


def ask(text, *before):
    return Request(messages=(*before, user(text)))


OPTIONS = GenerationOptions(max_tokens=20)
REQUESTS = [ask("a red ball"), ask("rolls", system("Be short.")), ask("a"), ask("a red ball " * 4), ask("ball")]


def test_answers_are_transformers_greedy_ones_in_order(lm, folder, torch):
    answers = lm.complete(REQUESTS, OPTIONS)
    assert lm.name == "Small-Instruct"
    for request, answer in zip(REQUESTS, answers, strict=True):
        ids = lm.tokenizer.encode(lm.template.render(request.messages))
        made = folder[1].generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), max_new_tokens=20, do_sample=False,
            pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        text = lm.tokenizer.decode(made)
        assert answer.text == text
        assert answer.tokens_in == len(ids)
        assert answer.finish_reason == ("stop" if 2 in made else "length")
        assert answer.tokens_out == (made.index(2) if 2 in made else 20)
    small = dataclasses.replace(lm, batch=2)
    assert small.complete(REQUESTS, OPTIONS) == answers
    assert lm.complete([], OPTIONS) == []


def test_a_stop_text_ends_an_answer_before_it(lm):
    [free] = lm.complete(REQUESTS[:1], OPTIONS)
    stop = free.text[3:5]
    [cut] = lm.complete(REQUESTS[:1], dataclasses.replace(OPTIONS, stop=("never there", stop)))
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_seeds_decide(lm):
    def texts(seed):
        return [a.text for a in lm.complete(REQUESTS[:2], GenerationOptions(max_tokens=20, temperature=1.0, seed=seed))]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_what_it_cannot_do_is_named(lm):
    with pytest.raises(LanguageError, match="frames"):
        lm.complete([Request(messages=(user("x", Frames(pixels=np.zeros((1, 4, 4, 3), np.uint8))),))], OPTIONS)
    with pytest.raises(LanguageError, match="256"):
        lm.complete([ask("a red ball " * 200)], OPTIONS)


def test_prompt_and_answer_may_fill_the_context(lm):
    length = len(lm.tokenizer.encode(lm.template.render(ask("a").messages)))
    [answer] = lm.complete([ask("a")], GenerationOptions(max_tokens=256 - length))
    assert answer.tokens_out <= 256 - length
    with pytest.raises(LanguageError, match=f"{257 - length}"):
        lm.complete([ask("a")], GenerationOptions(max_tokens=257 - length))


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("tokenizer_config.json", "{}", "chat template"),
        ("config.json", '{"model_type": "mamba"}', "mamba"),
        ("config.json", "[]", "config.json"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "tools", "template": "x"}]}', "chat template"),
    ],
)
def test_folders_that_lack_something_are_named(folder, tmp_path, file, content, named):
    for one in folder[0].iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    (tmp_path / file).write_text(content)
    with pytest.raises(WeightsError) as error:
        open_lm(tmp_path)
    assert named in str(error.value)


def test_other_places_of_a_template(folder, tmp_path):
    for one in folder[0].iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (tmp_path / "chat_template.jinja").write_text("JINJA")
    assert open_lm(tmp_path).template.render([]) == "JINJA"


def test_the_page_runs(folder, tmp_path, monkeypatch, capsys):
    """docs/language_models.md, with the small model under the name that the page takes."""
    [(language, code)] = FENCE.findall((ROOT / "docs" / "language_models.md").read_text())
    (tmp_path / "SmolLM2-135M-Instruct").symlink_to(folder[0])
    monkeypatch.chdir(tmp_path)
    assert language == "python"
    exec(compile(code, "language_models.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_no_such_folder_and_a_broken_file(tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        open_lm(tmp_path / "nowhere")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match="GGUF"):
        open_lm(tmp_path / "x.gguf")
