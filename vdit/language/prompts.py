"""Prompts as files that a user can replace: Markdown with one heading for each part.

    # system
    You write captions of videos.

    # caption
    These are frames of one video. Answer with one JSON object ...

A caption file asks either one question, `caption`, whose answer is a JSON object with "short", "detailed" and "camera";
or up to three, `short`, `detailed` and `camera`, whose answers are plain text, for models too small for JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import re
from pathlib import Path

from vdit import paths
from vdit.errors import ConfigError, LanguageError
from vdit.language.base import Frames, Message, Request, system, user

LIMIT = 256 << 10  # bytes of a file
FIELDS = ("short", "detailed", "camera")
_HEADING = re.compile(r"^#[ \t]+(\w+)[ \t]*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptFile:
    """The parts of a prompt file.

    Attributes:
        name: of the file, with the first letters of its hash: for provenance.
        parts: heading -> text.
    """

    name: str
    parts: dict[str, str]

    @classmethod
    def read(cls, path: str | Path) -> PromptFile:
        """A user's file.

        Raises:
            LanguageError: it cannot be read, or has no headings.
        """
        text = paths.read_text(path, limit=LIMIT, error=LanguageError, fix="give a prompt file")
        return cls.parse(text, paths.path(path).name)

    @classmethod
    def shipped(cls, name: str) -> PromptFile:
        """A file of vdit/language/prompt_files."""
        file = importlib.resources.files("vdit.language").joinpath("prompt_files", name)
        return cls.parse(file.read_text("utf-8"), name)

    @classmethod
    def parse(cls, text: str, name: str) -> PromptFile:
        """The parts of a file's text."""
        text = text.replace("\r\n", "\n")
        first, *rest = _HEADING.split(text)
        parts = {heading: body.strip() for heading, body in zip(rest[::2], rest[1::2])}
        if first.strip() or not parts or len(parts) < len(rest) // 2 or not all(parts.values()):
            raise LanguageError(f"{name}: must be headings such as '# system', each once, each with a text under it")
        return cls(name=f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:8]}", parts=parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionPrompts:
    """What a model is asked about a video.

    Attributes:
        name: for provenance.
        instruction: how to answer; "" for none.
        questions: what the answer holds ("caption" for all three as JSON, else "short", "detailed", "camera") -> the
            question.
    """

    name: str
    questions: dict[str, str]
    instruction: str = ""

    def __post_init__(self) -> None:
        known = set(self.questions) == {"caption"} or set(self.questions) <= set(FIELDS)
        if not known or not {"caption", "short", "detailed"} & set(self.questions):
            raise ConfigError(f"{self.name}: give '# caption', or some of '# short', '# detailed' and '# camera', of "
                              "which short or detailed")  # fmt: skip

    @classmethod
    def of(cls, file: PromptFile) -> CaptionPrompts:
        """The prompts in a file."""
        questions = {name: text for name, text in file.parts.items() if name != "system"}
        return cls(name=file.name, instruction=file.parts.get("system", ""), questions=questions)

    def requests(self, frames: Frames) -> dict[str, Request]:
        """What each question's answer holds -> the request."""
        head: tuple[Message, ...] = (system(self.instruction),) if self.instruction else ()
        return {name: Request(messages=(*head, user(frames, text))) for name, text in self.questions.items()}
