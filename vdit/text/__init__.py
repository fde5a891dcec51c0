"""Captions: tokenizers and text encoders."""

from vdit.text.config import TextConfig
from vdit.text.encoder import Encoder, TextEncoder, drop_text
from vdit.text.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    fit_vocabulary,
    load_tokenizer,
    train_tokenizer,
)

__all__ = [
    "Encoder",
    "SentencePieceTokenizer",
    "TextConfig",
    "TextEncoder",
    "Tokenizer",
    "drop_text",
    "fit_vocabulary",
    "load_tokenizer",
    "train_tokenizer",
]
