"""Prompts as Wan cleans them before its tokenizer sees them."""

from __future__ import annotations

import html
import re

import ftfy


def clean_prompt(text: str) -> str:
    """Mends mis-decoded text, resolves HTML entities (twice: "&amp;lt;" is "<"), and makes white space single.

    The order and the library (ftfy) are those of Wan's pipelines, so that ids come out the same.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).strip()
