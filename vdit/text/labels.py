"""Class labels in the place of texts, for models that are told a class and no caption."""

from __future__ import annotations

import dataclasses

from vdit.errors import TextError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelTokenizer:
    """A prompt is a class number, "1" to "classes"; "" is no class. Its one token is the label itself."""

    classes: int
    max_length: int = 1

    @property
    def vocab_size(self) -> int:
        return self.classes + 1

    def encode(self, text: str) -> list[int]:
        label = 0 if not text.strip() else int(text) if text.strip().isdecimal() else -1
        if not 0 <= label <= self.classes or (label == 0 and text.strip()):
            rule = f'this model is told a class, give "1" to "{self.classes}", or "" for none'
            raise TextError(f"prompt {text!r}: {rule}")
        return [label]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoText:
    """For training such a model: labels travel beside the captions, which are not read."""

    vocab_size: int = 1
    max_length: int = 1

    def encode(self, text: str) -> list[int]:
        return [0]
