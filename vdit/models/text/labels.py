"""Class labels in the place of texts, for models that are told a class and no caption."""

from __future__ import annotations

import dataclasses
import functools

from vdit.errors import TextError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelTokenizer:
    """A prompt is a class: its number, or its name; "" is no class. Its one token is the label, from 1.

    first: the number of the first class in prompts (ImageNet's classes count from 0).
    names: of each class, in order; where a name has commas, each part is a name.
    """

    classes: int
    first: int = 1
    names: tuple[str, ...] = ()
    max_length: int = 1

    @property
    def vocab_size(self) -> int:
        return self.classes + 1

    def encode(self, text: str) -> list[int]:
        prompt = text.strip()
        if not prompt:
            return [0]
        label = int(prompt) - self.first + 1 if prompt.isdecimal() else self._labels.get(prompt.lower(), 0)
        if not 1 <= label <= self.classes:
            named = "or a class's name, " if self.names else ""
            rule = f'give "{self.first}" to "{self.first + self.classes - 1}", {named}or "" for none'
            raise TextError(f"prompt {text!r}: this model is told a class, {rule}")
        return [label]

    def length(self, text: str) -> int:
        return len(self.encode(text))

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        parts = [(part.strip().lower(), i + 1) for i, name in enumerate(self.names) for part in name.split(",")]
        # The first class keeps a name that two of them share, so that a name means one class.
        return dict(reversed(parts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoText:
    """For training such a model: labels travel beside the captions, which are not read."""

    vocab_size: int = 1
    max_length: int = 1

    def encode(self, text: str) -> list[int]:
        return [0]

    def length(self, text: str) -> int:
        return 1
