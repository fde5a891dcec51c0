"""Parsing that helps: one-line errors, the nearest name, and --cfg overrides from anywhere in the line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from vdit.errors import ConfigError, VditError

OVERRIDE = "--cfg."
MOST_PIXELS = 2**26  # of a frame, as vdit.video has it


class UsageError(VditError):
    """The command line cannot be understood."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One command of `vdit`.

    Attributes:
        summary: its line in the list of commands.
        description: first part of its help.
        epilog: last part of its help, with examples.
        add_arguments: adds its arguments to a parser.
        run: (options, overrides "key=value") -> exit code.
        takes_overrides: whether --cfg.KEY=VALUE is allowed.
    """

    summary: str
    description: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], int]
    takes_overrides: bool = False


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing usage and exiting; keeps the line breaks of help texts."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the names of options, so that few of them take a line of their own."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)


def take_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits --cfg.key=value and --cfg.key value off: (the other arguments, ["key=value", ...])."""
    rest, overrides = [], []
    items = iter(arguments)
    for item in items:
        if item == "--":
            return [*rest, item, *items], overrides
        if not item.startswith(OVERRIDE):
            rest.append(item)
            continue
        override = item.removeprefix(OVERRIDE)
        if "=" not in override:
            value = next(items, None)
            if value is None or value.startswith("--"):
                raise UsageError(f"{item} needs a value: write {item}=VALUE")
            override = f"{override}={value}"
        overrides.append(override)
    return rest, overrides


def take_plugins(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits --plugin=MODULE and --plugin MODULE off: (the other arguments, [module, ...])."""
    rest, plugins = [], []
    items = iter(arguments)
    for item in items:
        if item == "--":
            return [*rest, item, *items], plugins
        name, equals, value = item.partition("=")
        if name != "--plugin":
            rest.append(item)
            continue
        value = value if equals else next(items, "")
        if not value or value.startswith("-"):
            raise UsageError("--plugin needs a value: write --plugin MODULE, or --plugin FILE.py")
        plugins.append(value)
    return rest, plugins


def refuse_unknown(
    unknown: Sequence[str], parser: argparse.ArgumentParser, keys: Callable[[], Iterable[str]] = tuple
) -> None:
    """UsageError that names the first unknown argument, and the nearest option or override.

    keys: gives the dotted keys of the overrides that the command takes.
    """
    if not unknown:
        return
    name, equals, _ = unknown[0].partition("=")
    dotted = {key: f"{OVERRIDE}{key}" for key in keys()}
    key = name.lstrip("-").removeprefix(OVERRIDE.lstrip("-"))
    if key in dotted and (name.startswith("-") or equals):
        raise UsageError(f"unknown option {name}: write {dotted[key]}=VALUE (see {parser.prog} --help-config)")
    if not name.startswith("-"):
        raise UsageError(
            f"unexpected argument {unknown[0]!r}: quote texts with spaces, and put them before the options "
            f"(see {parser.prog} --help)"
        )
    known = [option for action in parser._actions for option in action.option_strings]
    if "." in key and dotted:
        hint = difflib.get_close_matches(key, list(dotted), n=1, cutoff=0.5)
        near = f"; nearest: {dotted[hint[0]]}" if hint else f"; a value of the config is set by {OVERRIDE}KEY=VALUE"
        raise UsageError(f"unknown option {name}{near} (see {parser.prog} --help-config)")
    raise UsageError(f"unknown option {name}{nearest(name, known)} (see {parser.prog} --help)")


def nearest(name: str, known: Iterable[str]) -> str:
    """"; nearest: ..." or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; nearest: {near[0]}" if near else ""


def size(text: str) -> tuple[int, int]:
    """"64x96" -> (64, 96), height and width."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 10 and int(part) for part in parts):
        raise UsageError(f"size {text!r} cannot be read: write HEIGHTxWIDTH in pixels, as in 64x96")
    height, width = int(parts[0]), int(parts[1])
    if height * width > MOST_PIXELS:
        raise UsageError(f"size {text!r}: frames have at most {MOST_PIXELS} pixels (8192x8192): give less")
    return height, width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duration:
    """"48" frames, or "2s"."""

    amount: float
    seconds: bool

    def frames(self, fps: float) -> int:
        """As frames of a video of `fps` frames a second: the nearest number."""
        return round(self.amount * fps) if self.seconds else int(self.amount)

    def __str__(self) -> str:
        return f"{self.amount:.12g}{'s' if self.seconds else ''}"


def duration(text: str) -> Duration:
    """A type for add_argument: "48" frames, "2s" or "1.5s" seconds."""
    found = re.fullmatch(r"(\d{1,9})|(\d{1,9}\.?\d*|\.\d+)s", text.strip(), re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of frames, as in 48, or of seconds, as in 2s")
    return Duration(amount=float(found[1] or found[2]), seconds=found[1] is None)


def length(text: str) -> Duration:
    """A type for add_argument: a duration above 0."""
    time = duration(text)
    if not time.amount:
        raise argparse.ArgumentTypeError(f"{text!r} must be a duration above 0: frames, as in 48, or seconds, as in 2s")
    return time


def seed(text: str) -> int:
    """A type for add_argument: a whole number of 64 bits."""
    from vdit.seeds import check_seed

    try:
        return check_seed(int(text) if text.strip().isdecimal() else text, "the seed")
    except (ConfigError, ValueError) as error:  # ValueError: more digits than Python reads
        raise argparse.ArgumentTypeError(error if isinstance(error, ConfigError) else "the seed is too long") from None


def at_least(least: float, kind: type = int, *, most: float | None = None):
    """A type for add_argument: a number of `kind` from `least` up, to `most` where that is given."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < float("inf") or (most is not None and value > most):
            word = "a whole number" if kind is int else "a number"
            end = "up" if most is None else f"to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} must be {word} from {least} {end}")
        return value

    return read


RATE = at_least(0.1, float, most=1000)  # frames a second: what vdit.video.write writes
