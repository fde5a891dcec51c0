"""Worlds by name, alone or mixed: "moving+occluder"."""

from __future__ import annotations

import dataclasses
from typing import Any

from vdit.errors import ConfigError
from vdit.worlds.base import View, World, WorldSample, fields_of, make_one, nearest

_OF_ALL = tuple(field.name for field in dataclasses.fields(World))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed(World):
    """Several worlds in turn: sample i is sample i // n of part i % n, of n parts.

    So any n samples in a row have one of each part, and what a part shows does not depend on the others. meta is
    that of the part: its own name and index.
    """

    parts: tuple[World, ...]

    @property
    def name(self) -> str:
        """The names of the parts, joined by "+"."""
        return "+".join(part.name for part in self.parts)

    def _render(self, i: int, view: View) -> WorldSample:
        at, turn = divmod(i, len(self.parts))
        return self.parts[turn].render(at, size=view.size, frames=view.frames, fps=view.fps)


def make(name: str, **options: Any) -> World:
    """The world of that name (`names()`), or an even mix of several, "moving+occluder".

    options: fields of the world: seed, count, size, frames, fps and its own. Of a mix these five are for all of it;
    another option is for each part that has it, and "occluder.hiding" (given as a dict's key) for that part, where it
    goes before the one for all. An option that no part has is a ConfigError, and so is a world named twice.
    """
    parts = name.split("+")
    if len(parts) == 1:
        return make_one(name, **options)
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise ConfigError(f"world {name!r} has {twice!r} twice: a mix is even, name each of its worlds once")
    known = {part: fields_of(part) for part in parts}
    for option in options:
        _check_option(option, name, known)
    of_all = {option: options[option] for option in _OF_ALL if option in options}
    count = of_all.get("count", World.count)
    mixed = []
    for place, part in enumerate(parts):
        shared = {option: value for option, value in options.items() if option in known[part]}
        prefix = part + "."
        own = {option.removeprefix(prefix): options[option] for option in options if option.startswith(prefix)}
        each = max(1, -(-(count - place) // len(parts)))
        mixed.append(make_one(part, **shared | own | {"count": each}))
    return Mixed(parts=tuple(mixed), **of_all)


def _check_option(option: str, name: str, known: dict[str, list[str]]) -> None:
    part, dot, own = option.rpartition(".")
    if not dot:
        every = sorted({field for fields in known.values() for field in fields})
        if option not in every:
            raise ConfigError(f"no world of {name!r} has an option {option!r}; {nearest(option, every)}")
    elif part not in known:
        raise ConfigError(f"option {option!r} is for a world that is not in {name!r}; {nearest(part, list(known))}")
    elif own in _OF_ALL:
        raise ConfigError(f"option {option!r}: {own} is the same for all of a mix, give it without {part!r}")
