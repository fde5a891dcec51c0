"""Small pieces of English for captions."""

from __future__ import annotations

from collections.abc import Sequence


def article(words: str) -> str:
    """The words behind "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def join(parts: Sequence[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last


def balls(colours: Sequence[str], sizes: Sequence[str] | None = None) -> str:
    """A list of balls, each with its article."""
    named = [f"{colour} ball" for colour in colours]
    if sizes is not None:
        named = [f"{size} {name}" for size, name in zip(sizes, named)]
    return join([article(name) for name in named])


def sentence(words: str) -> str:
    """The words with a capital at the front."""
    return words[0].upper() + words[1:]
