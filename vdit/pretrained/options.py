"""Reading a public config.json: every option is known, or refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vdit.errors import ConfigError, WeightsError


def read_options(
    json: Mapping[str, Any], class_name: str, known: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Values of `known` (names and defaults) from a public config.json; every other option is an error.

    fixed: options of which one value alone can be done; they may be absent. Names that begin with "_" describe
    the file, not the model. Lists become tuples.
    """
    found = json.get("_class_name", class_name)
    if found != class_name:
        raise WeightsError(f"config.json is that of a {found}, not of a {class_name}: use a folder of that family")
    values = dict(known)
    for name, value in json.items():
        value = tuple(value) if isinstance(value, list) else value
        if name.startswith("_"):
            continue
        if name in fixed:
            if value != fixed[name]:
                raise WeightsError(f"{name}={value!r} in config.json is not supported: it must be {fixed[name]!r}")
        elif name in known:
            values[name] = value
        else:
            raise WeightsError(
                f"{name}={value!r} in config.json is no option known here: the model may be a newer one"
            )
    return values


def same_config(class_name: str, theirs: Any, ours: Any, *, apart: Collection[str] = ()) -> None:
    """ConfigError naming the first field of a config of ours that a public class cannot express.

    theirs: what its config.json would be read as. apart: fields that say how to compute, not what.
    """
    for field in dataclasses.fields(ours):
        have, need = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name not in apart and have != need:
            raise ConfigError(f"{class_name} cannot express {field.name}={have!r}: it has to be {need!r}")
