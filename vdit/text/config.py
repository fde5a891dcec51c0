"""What the text tokenizer and encoder are made of."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vdit.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A tokenizer and the small encoder that is trained with the DiT.

    tokenizer: path of a sentencepiece .model, or None to train one from the captions.
    vocab_size: rows of the embedding table, and the most pieces that a trained tokenizer may have (a
        small corpus yields fewer: `vdit.text.fit_vocabulary` then shrinks the table).
    max_length: most tokens of a caption, the first special token included; longer ones are cut.
    width, depth, heads: of the encoder; depth 0 is a bag of embeddings with positions.
    dtype: type of the matrix products; embeddings, norms and softmax stay float32.
    """

    tokenizer: str | None = None
    vocab_size: int = 4096
    max_length: int = 64
    width: int = 128
    depth: int = 2
    heads: int = 4
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "width", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"text.{name}={getattr(self, name)} must be at least 1")
        if self.depth < 0:
            raise ConfigError(f"text.depth={self.depth} must not be negative")
        if self.width % self.heads:
            raise ConfigError(f"text.width={self.width} must be a multiple of text.heads={self.heads}")
        if self.width % 2:
            raise ConfigError(f"text.width={self.width} must be even, for its sinusoidal positions")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads
