"""Detailed captions from short prompts, by any model that answers, and a check that nothing of the prompt is lost.

    prompts = ExpansionPrompts.of(PromptFile.shipped("expand.md"))
    expander = Expander(model=open_lm("SmolLM2-135M-Instruct"), prompts=prompts)
    [made] = expander.expand(["a red ball rolls to the left"], seed=1)
    made.text, made.note

A text that has lost a colour, a count, an object or a direction of the prompt (vdit.language.words), that adds the
opposite direction, or that is a refusal, a repetition, too long or in another language, is asked for again. If no try
is good, the prompt is returned unchanged, and `note` says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

from vdit.errors import ConfigError, LanguageError
from vdit.language.base import Completion, GenerationOptions, Message, Request, TextModel, system, user
from vdit.language.checks import CaptionRules, check_caption, read_answer
from vdit.language.prompts import PromptFile
from vdit.language.words import added_opposites, lost_words
from vdit.reprs import short_repr

Task = Literal["video", "image", "edit"]
TASKS: tuple[str, ...] = get_args(Task)
LONGEST = 4000  # characters of a prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpansionPrompts:
    """What a model is asked.

    Attributes:
        name: for provenance.
        instruction: how to answer.
        questions: task ("video", "image" or "edit") -> what stands before the prompt.
    """

    name: str
    instruction: str
    questions: dict[str, str]

    def __post_init__(self) -> None:
        if set(self.questions) != set(TASKS):
            raise ConfigError(f"{self.name}: give the headings # video, # image and # edit, and perhaps # system")

    @classmethod
    def of(cls, file: PromptFile) -> ExpansionPrompts:
        """The prompts in a file."""
        questions = {name: text for name, text in file.parts.items() if name != "system"}
        return cls(name=file.name, instruction=file.parts.get("system", ""), questions=questions)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Expansion:
    """What was made of a prompt.

    Attributes:
        prompt: as the user wrote it.
        text: the caption; the prompt itself where nothing good came.
        note: why the prompt is unchanged; "" where it was expanded.
        model: that wrote the caption.
        prompts: the file of what it was asked; "" for a model of the run's own.
        seed: of the call.
        tries: how many answers were looked at.
    """

    prompt: str
    text: str
    note: str = ""
    model: str = ""
    prompts: str = ""
    seed: int = 0
    tries: int = 0

    @property
    def expanded(self) -> bool:
        return not self.note

    def about(self) -> dict[str, Any]:
        """What a video's metadata says of it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in ("", None)}


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Expander:
    """A model with what it is asked and what its answers must be.

    Attributes:
        model: any TextModel.
        prompts: what it is asked; None gives it the prompt alone, as models trained for this take it.
        tries: answers that are looked at for each prompt.
        max_tokens: of an answer.
        temperature: of the first try; later ones are warmer.
        top_p: see GenerationOptions.
        rules: language, and words of a caption at most.
    """

    model: TextModel
    prompts: ExpansionPrompts | None = None
    tries: int = 3
    max_tokens: int = 320
    temperature: float = 0.6
    top_p: float = 0.9
    rules: CaptionRules = CaptionRules(language="any")

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ConfigError(f"tries={self.tries}: must be 1 or more")

    def expand(self, prompts: Sequence[str], *, seed: int = 0, task: Task = "video") -> list[Expansion]:
        """A caption for each prompt, or the prompt where none was good.

        Args:
            prompts: short texts.
            seed: the same seed, prompts and model give the same texts.
            task: "video" from text alone, "image" where it begins with an image, "edit" of a video.

        Returns:
            An Expansion for each prompt, in their order.

        Raises:
            ConfigError: a prompt is empty or over-long, or the task is unknown.
            LanguageError: the model cannot answer at all.
        """
        if task not in TASKS:
            raise ConfigError(f"task={task!r}: use one of {', '.join(TASKS)}")
        for prompt in prompts:
            if not prompt.strip() or len(prompt) > LONGEST:
                raise ConfigError(f"prompt {prompt[:40]!r} has {len(prompt)} characters: give 1 to {LONGEST}")
        done: dict[int, Expansion] = {}
        problems = dict.fromkeys(range(len(prompts)), "")
        for number in range(self.tries):
            left = [place for place in range(len(prompts)) if place not in done]
            if not left:
                break
            options = GenerationOptions(
                max_tokens=self.max_tokens, temperature=self.temperature + 0.2 * number, top_p=self.top_p,
                seed=(seed + 7919 * number) % 2**63,
            )  # fmt: skip
            answers = self.model.complete([self._request(prompts[place], task) for place in left], options)
            for place, answer in zip(left, answers):
                text, problem = self._checked(prompts[place], answer)
                if problem is None:
                    done[place] = self._made(prompts[place], text, "", seed, number + 1)
                problems[place] = problem or ""
        return [
            done.get(place) or self._made(prompt, prompt, f"unchanged: {problems[place]}", seed, self.tries)
            for place, prompt in enumerate(prompts)
        ]

    def _request(self, prompt: str, task: str) -> Request:
        if self.prompts is None:
            return Request(messages=(user(prompt.strip()),))
        head: tuple[Message, ...] = (system(self.prompts.instruction),) if self.prompts.instruction else ()
        return Request(messages=(*head, user(f"{self.prompts.questions[task]}\n\n{prompt.strip()}")))

    def _checked(self, prompt: str, answer: Completion) -> tuple[str, str | None]:
        """(the caption, what is wrong with it)."""
        try:
            text = read_answer(answer.text, "detailed")["detailed"]
        except LanguageError as error:
            return "", str(error)
        if answer.finish_reason == "filter":
            return text, "withheld by the server"
        if answer.finish_reason == "length":
            return text, f"longer than {self.max_tokens} tokens"
        problem = check_caption(text, self.rules, words=self.rules.detailed_words)
        if problem is not None:
            return text, problem
        lost, added = lost_words(prompt, text), added_opposites(prompt, text)
        if lost:
            return text, f"{self.model.name} loses {', '.join(map(repr, lost))}"
        return text, f"{self.model.name} adds {', '.join(map(repr, added))}" if added else None

    def _made(self, prompt: str, text: str, note: str, seed: int, tries: int) -> Expansion:
        name = "" if self.prompts is None else self.prompts.name
        return Expansion(
            prompt=prompt, text=text, note=note, model=self.model.name, prompts=name, seed=seed, tries=tries
        )
