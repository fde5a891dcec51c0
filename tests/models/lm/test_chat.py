"""Chat templates: transformers' texts, and templates that mean harm."""

from __future__ import annotations

import time

import pytest

from vdit.errors import TextError
from vdit.models.lm.chat import ChatTemplate

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
OTHERS = (
    "{{ bos_token }}{% for m in messages %}\n    {% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]\n"
    "    {% else %}\n{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% generation %}{{ ns.n }}{{ m.content[::-1] }}{% endgeneration %}{% endfor %}",
)
MESSAGES = [
    {"role": "user", "content": " A “red” ball, naïve <b> & 日本 "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]


@pytest.mark.parametrize("source", [CHATML, *OTHERS], ids=["chatml", "llama2", "tojson", "namespace"])
def test_texts_are_those_of_transformers(source):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    (want,), _ = utils.render_jinja_template(
        conversations=[MESSAGES], chat_template=source, add_generation_prompt=True, **special
    )
    assert ChatTemplate(source=source, bos="<s>", eos="</s>").render(MESSAGES) == want


def test_several_conversations_take_one_process():
    template = ChatTemplate(source="{{ messages | length }}{{ enable_thinking }}", variables={"enable_thinking": False})
    assert template.render_all([MESSAGES, MESSAGES[:1]]) == ["3False", "1False"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__()[100].__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('touch owned').read() }}",
        "{% set _ = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{{ strftime_now('%Y') }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% if %}",
    ],
)
def test_escapes_and_faults_are_one_line(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TextError) as error:
        ChatTemplate(source=source).render(MESSAGES)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + 3 * "{% endfor %}",
        "{{ 'a' * 10 ** 12 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ 'a' * 20000000 }}",
    ],
    ids=["loops", "product", "doubling", "format", "long"],
)
def test_what_never_ends_or_fills_the_memory_is_stopped(source, monkeypatch):
    monkeypatch.setattr("vdit.models.lm.chat._SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(TextError):
        ChatTemplate(source=source).render(MESSAGES)
    assert time.monotonic() - began < 4.5


def test_a_template_of_megabytes_is_refused():
    with pytest.raises(TextError, match="2000000"):
        ChatTemplate(source="a" * 2_000_000)
