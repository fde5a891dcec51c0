"""Prompts to captions: what is lost is asked for again, and a prompt is never made worse."""

import json

import pytest

from vdit.cli.main import main
from vdit.errors import ConfigError, LanguageError
from vdit.language.base import Completion
from vdit.language.expansion import TASKS, Expander, ExpansionPrompts
from vdit.language.prompts import PromptFile

PROMPT = "a red ball rolls to the left"
GOOD = "A small red ball rolls slowly to the left over a grey floor while the camera stays still."


class Scripted:
    """A model that answers from a list, in turn, whatever it is asked; keeps what it was asked."""

    name = "scripted"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def complete(self, requests, options):
        self.asked.append((requests, options))
        made = [self.answers.pop(0) for _ in requests]
        return [one if isinstance(one, Completion) else Completion(text=one) for one in made]


def expander(*answers, **options) -> Expander:
    prompts = ExpansionPrompts.of(PromptFile.shipped("expand.md"))
    return Expander(model=Scripted(*answers), prompts=prompts, **options)


def test_a_good_answer_is_the_caption():
    one = expander(f'  "{GOOD}"\n')
    [made] = one.expand([PROMPT], seed=5)
    assert (made.text, made.note, made.tries, made.seed, made.model) == (GOOD, "", 1, 5, "scripted")
    assert made.prompts.startswith("expand.md@")
    assert json.loads(json.dumps(made.about()))["prompt"] == PROMPT


@pytest.mark.parametrize("bad", [
    GOOD.replace("red", "blue"), GOOD.replace("left", "right"), GOOD.replace("left", "left and right"),
    "I'm sorry, but I cannot help with that.", "",
    "red ball left " * 30, "<|im_end|> a red ball to the left", Completion(text=GOOD, finish_reason="length"),
    Completion(text=GOOD, finish_reason="filter"), "red left ball " + "word and other words too " * 200,
])  # fmt: skip
def test_a_bad_answer_is_asked_for_again_and_then_the_prompt_stays(bad):
    [made] = expander(bad, GOOD).expand([PROMPT])
    assert (made.text, made.tries) == (GOOD, 2)
    [made] = expander(bad, bad, tries=2).expand([PROMPT])
    assert made.text == PROMPT
    assert made.note.startswith("unchanged: ")
    assert not made.expanded


def test_only_what_failed_is_asked_for_again():
    model = Scripted(GOOD, "a blue cat", "A red ball, a red ball to the left.")
    made = Expander(model=model).expand([PROMPT, PROMPT], seed=1)
    assert [one.tries for one in made] == [1, 2]
    assert [len(requests) for requests, _ in model.asked] == [2, 1]
    first, second = (options for _, options in model.asked)
    assert first.seed == 1
    assert second.seed != 1
    assert second.temperature > first.temperature


def test_a_lost_word_is_named():
    [made] = expander("A blue ball rolls to the left.", tries=1).expand([PROMPT])
    assert "'red'" in made.note


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_its_question(task):
    one = expander(GOOD)
    one.expand([PROMPT], task=task)
    [([request], _)] = one.model.asked
    assert request.messages[-1]["content"] == f"{one.prompts.questions[task]}\n\n{PROMPT}"
    assert len({*one.prompts.questions.values()}) == len(TASKS)


def test_a_model_of_ones_own_gets_the_prompt_alone():
    model = Scripted(GOOD)
    Expander(model=model).expand([PROMPT])
    assert [message["content"] for message in model.asked[0][0][0].messages] == [PROMPT]


def test_a_users_prompt_file(tmp_path):
    file = tmp_path / "mine.md"
    file.write_text("# video\nMake it long:\n# image\nGo on:\n# edit\nChange:\n")
    prompts = ExpansionPrompts.of(PromptFile.read(file))
    assert prompts.questions["image"] == "Go on:"
    file.write_text("# video\nMake it long:\n")
    with pytest.raises(ConfigError, match="# edit"):
        ExpansionPrompts.of(PromptFile.read(file))
    with pytest.raises(LanguageError):
        PromptFile.read(tmp_path / "absent.md")


@pytest.mark.parametrize("options", [{"prompts": [""]}, {"prompts": ["x" * 5000]}, {"prompts": ["x"], "task": "song"}])
def test_what_cannot_be_expanded_is_refused(options):
    with pytest.raises(ConfigError):
        expander(GOOD).expand(**options)


def test_the_command_prints_captions(tmp_path, monkeypatch, capsys):
    asked = []

    def opened(run, **options):
        asked.append((run, options))
        return expander(GOOD, "nothing", "nothing", "nothing")

    monkeypatch.setattr("vdit.generate.expansion.open_expander", opened)
    monkeypatch.setattr("vdit.cli.process.keep_compiled", lambda: None)
    assert main(["expand", str(tmp_path), PROMPT, "two dogs", "--json", "--seed", "4"]) == 0
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert (first["text"], second["text"]) == (GOOD, "two dogs")
    assert "unchanged" in second["note"]
    assert "'two dogs' is unchanged" in err
    assert asked == [(str(tmp_path), {"lm": None, "endpoint": None, "prompt_file": None, "tries": None})]


@pytest.mark.parametrize("words", [
    ["expand"], ["expand", "no_such_run", "a dog"], ["expand", "--lm", "x", "--endpoint", "y", "a dog"],
    ["expand", "x", "a dog", "--steps", "3"], ["expand", "--train"], ["expand", "x", "a dog", "--train"],
    ["sample", "runs/none", "a dog", "--tries", "3"],
])  # fmt: skip
def test_commands_that_cannot_be_understood(words, monkeypatch, capsys):
    monkeypatch.setattr("vdit.cli.process.keep_compiled", lambda: None)
    assert main(words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
