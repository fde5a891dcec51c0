"""Reading the options of public JSON files: each is known with its type and range, or refused by name.

    CONFIG = {"num_layers": whole(28, high=LAYERS), "norm_eps": number(1e-5, 0, 1), "activation_fn": words("gelu")}
    values = read_options(json, "DiTTransformer2DModel", CONFIG, fixed={"dropout": 0.0})

Ranges are wider than any model's, and narrow enough that nothing built from a value within them fills the memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from vdit.errors import ConfigError, WeightsError
from vdit.reprs import cut, literal, short_repr

# The most of anything that a public config.json counts.
LAYERS, HEADS, WIDTH, TOKENS, VOCABULARY = 1000, 1024, 1 << 17, 1 << 20, 1 << 24
LEVELS = 8  # of an autoencoder, each of which may halve a side


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """What one option of a public file may be; made by the functions below.

    Attributes:
        default: its value where the file leaves it out.
        kind: "whole", "number", "flag", "text", "list", or "any".
        low: least number, length of a text, or count of items, included.
        high: the most of the same, included.
        choices: all that a text may be; () for any text.
        item: what each item of a list may be.
        none: whether null is one of its values.
    """

    default: Any = None
    kind: str = "any"
    low: float = 0
    high: float = math.inf
    choices: tuple[str, ...] = ()
    item: Option | None = None
    none: bool = False

    def check(self, value: Any) -> str | None:
        """The rule that a value from JSON breaks, in words; None if it keeps all."""
        if self.kind == "any" or (value is None and self.none):
            return None
        found = self._rule(value)
        return f"{found} or null" if found and self.none and found.startswith("must be") else found

    def _rule(self, value: Any) -> str | None:
        if self.kind == "flag":
            return None if isinstance(value, bool) else "must be true or false"
        if self.kind == "text":
            if self.choices:
                known = isinstance(value, str) and value in self.choices
                return None if known else f"must be {' or '.join(self.choices)}"
            fits = isinstance(value, str) and len(value) <= self.high
            return None if fits else f"must be a text of at most {self.high} characters"
        if self.kind == "list":
            if not isinstance(value, list | tuple) or not self.low <= len(value) <= self.high:
                return f"must be a list of {self.low} to {self.high} items"
            rules = (self.item.check(item) for item in value)
            return next((f"each item {rule}" for rule in rules if rule), None)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if numeric and self.kind == "whole":
            numeric = isinstance(value, int)
        if numeric and self.low <= value <= self.high:  # NaN is in no range
            return None
        return f"must be a {'whole ' if self.kind == 'whole' else ''}number from {self.low:g} to {self.high:g}"


def whole(default: int | None = None, low: int = 1, *, high: int, none: bool = False) -> Option:
    """An option that is a whole number from low to high."""
    return Option(default=default, kind="whole", low=low, high=high, none=none)


def number(default: float | None = None, low: float = 0.0, high: float = 1.0, *, none: bool = False) -> Option:
    """An option that is a number from low to high."""
    return Option(default=default, kind="number", low=low, high=high, none=none)


def flag(default: bool | None = None, *, none: bool = False) -> Option:
    """An option that is true or false."""
    return Option(default=default, kind="flag", none=none)


def words(default: str | None = None, *choices: str, none: bool = False) -> Option:
    """An option that is a text: one of the choices, or if there are none, any short one."""
    return Option(default=default, kind="text", choices=choices, high=200, none=none)


def several(default: tuple | None, item: Option, low: int, high: int, *, none: bool = False) -> Option:
    """An option that is a list of low to high items; read as a tuple."""
    return Option(default=default, kind="list", item=item, low=low, high=high, none=none)


ANYTHING = Option()


def read_options(
    json: Mapping[str, Any], class_name: str, known: Mapping[str, Option], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the options of a class from its config.json; each is known with its type and range, or refused by name.

    Args:
        json: content of the file.
        class_name: the class that the file must be of.
        known: name -> what the option may be.
        fixed: name -> the one value that can be done here.

    Returns:
        Name -> value of the known options, defaults included.

    Raises:
        WeightsError: the file is of another class, or an option is unknown, of another type or out of range.
    """
    found = json.get("_class_name", class_name)
    if found != class_name:
        rule = f"config.json is that of a {literal(found)}, not of a {class_name}"
        raise WeightsError(f"{rule}: use that family's folder")
    values = {name: option.default for name, option in known.items()}
    for name, value in json.items():
        value = tuple(value) if isinstance(value, list) else value
        if name.startswith("_"):
            continue
        if name in fixed:
            if value != fixed[name]:
                rule = f"is not supported: it must be {fixed[name]!r}"
                raise WeightsError(f"{name}={literal(value)} in config.json {rule}")
        elif name in known:
            check_option(name, value, known[name])
            values[name] = value
        else:
            raise WeightsError(
                f"{cut(name)}={literal(value)} in config.json is no option known here: the model may be a newer one"
            )
    return values


def check_option(name: str, value: Any, option: Option, *, where: str = "config.json") -> None:
    """Check one value from JSON.

    Args:
        name: of the option.
        value: to check.
        option: what it may be.
        where: the file, for the message.

    Raises:
        WeightsError: the value is of another type, or out of range.
    """
    rule = option.check(value)
    if rule is not None:
        raise WeightsError(f"{name}={literal(value)} in {where} {rule}: download the file again")


def defaults(known: Mapping[str, Option]) -> dict[str, Any]:
    """Name -> default of each option."""
    return {name: option.default for name, option in known.items()}


def same_config(class_name: str, theirs: Any, ours: Any, *, apart: Collection[str] = ()) -> None:
    """Check that a public class can express a config of ours.

    Args:
        class_name: the class.
        theirs: our config as it would be read back from its config.json.
        ours: the config.
        apart: fields that say how to compute, not what; they may differ.

    Raises:
        ConfigError: a field differs.
    """
    for field in dataclasses.fields(ours):
        have, need = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name not in apart and have != need:
            raise ConfigError(f"{class_name} cannot express {field.name}={have!r}: it has to be {need!r}")
