"""Captions: tokenizers and text encoders."""

from vdit.models.text.config import T5Config, TextConfig, t5_preset, t5_text
from vdit.models.text.encoder import Encoder, TextEncoder, drop_captions, drop_text, make_encoder
from vdit.models.text.t5 import T5Encoder
from vdit.models.text.t5_tokenizer import T5Tokenizer, clean_prompt, load_t5_tokenizer, make_tokenizer
from vdit.models.text.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    fit_vocabulary,
    load_tokenizer,
    train_tokenizer,
    warn_of_cuts,
)

__all__ = [
    "Encoder",
    "SentencePieceTokenizer",
    "T5Config",
    "T5Encoder",
    "T5Tokenizer",
    "TextConfig",
    "TextEncoder",
    "Tokenizer",
    "clean_prompt",
    "drop_captions",
    "drop_text",
    "fit_vocabulary",
    "load_t5_tokenizer",
    "load_tokenizer",
    "make_encoder",
    "make_tokenizer",
    "t5_preset",
    "t5_text",
    "train_tokenizer",
    "warn_of_cuts",
]
