"""Registered choices: the parts of an experiment that anyone can bring, from inside or outside vdit.

A choice is a frozen dataclass with a kind ("backbone", "data_source", ...) and a name:

    @register("objective", "my_loss")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyLoss:
        weight: float = 0.1

A config field that holds one of them is annotated `Annotated[Protocol, OneOf("objective")]` (see vdit.config). A saved
config names choices only: {"kind": "my_loss", "weight": 0.1}. Reading a config imports nothing of the user's: the
module that registers a choice must be imported first (`--plugin my_package`, or an import in Python).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from vdit.errors import ConfigError

T = TypeVar("T", bound=type)

KIND = "kind"  # the key under which a saved config names the choice
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

# vdit's own choices. They are imported when a choice of their kind is asked for, not before.
_OWN_MODULES: dict[str, tuple[str, ...]] = {
    "backbone": ("vdit.models.dit.config", "vdit.models.captioner"),
    "conditioner": ("vdit.models.conditions",),
    "data_source": ("vdit.data.data_source",),
    "evaluator": ("vdit.train.evaluate",),
    "features": ("vdit.pretrained.features",),
    "metric": (
        "vdit.eval.video_metrics",
        "vdit.eval.set_metrics",
        "vdit.eval.world_metrics",
        "vdit.eval.game_metrics",
    ),
    "objective": ("vdit.experiment.objectives", "vdit.experiment.distill", "vdit.experiment.captioning"),
    "optimizer": ("vdit.experiment.optimizer",),
    "sampler": ("vdit.samplers",),
    "vae_objective": ("vdit.models.vae.config",),
}

_classes: dict[str, dict[str, type]] = {}
_lock = threading.RLock()


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Marks a config field as any registered choice of a kind: `Annotated[Sampler, OneOf("sampler")]`."""

    kind: str


def register(kind: str, name: str) -> Callable[[T], T]:
    """A decorator that makes a frozen dataclass a choice of `kind` under `name`.

    Args:
        kind: what it is a choice of: one of `kinds()`, or a new one.
        name: how configs and command lines call it: letters, digits and "_", beginning with a letter.

    Returns:
        A decorator; it returns the class unchanged.

    Raises:
        ConfigError: the class is no frozen dataclass, has a field called "kind", or another class has the name.
    """

    def add(cls: T) -> T:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{kind} {name!r}: a name has letters, digits and _ only, and begins with a letter")
        if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:
            rule = "must be a frozen dataclass: put @dataclasses.dataclass(frozen=True, kw_only=True) under @register"
            raise ConfigError(f"{kind} {name!r}: {cls.__name__} {rule}")
        if any(field.name == KIND for field in dataclasses.fields(cls)):
            rule = f"has a field {KIND!r}, which saved configs need: rename it"
            raise ConfigError(f"{kind} {name!r}: {cls.__name__} {rule}")
        with _lock:
            before = _classes.setdefault(kind, {}).get(name)
            if before is not None and not _same_source(before, cls):
                place = f"{before.__module__}.{before.__qualname__}"
                raise ConfigError(f"{kind} {name!r} is registered already, by {place}: take another name")
            _classes[kind][name] = cls
        return cls

    return add


def get(kind: str, name: str) -> type:
    """The class that is registered under a name.

    Raises:
        ConfigError: no choice of this kind has this name; the message lists the known names.
    """
    known = _known(kind)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    hint = f"; nearest: {near[0]}" if near else ""
    listed = ", ".join(sorted(known)) or "none is registered"
    raise ConfigError(
        f"{name!r} is no known {kind} ({listed}){hint}; import the module that registers it: --plugin my_package"
    )


def names(kind: str) -> tuple[str, ...]:
    """The names of all choices of a kind, in alphabetical order."""
    return tuple(sorted(_known(kind)))


def kinds() -> tuple[str, ...]:
    """All kinds that something is registered for, in alphabetical order."""
    return tuple(sorted({*_OWN_MODULES, *_classes}))


def name_of(kind: str, choice: Any) -> str:
    """The name under which a choice, or its class, is registered.

    Raises:
        ConfigError: its class is not registered for this kind.
    """
    cls = choice if isinstance(choice, type) else type(choice)
    for name, known in _known(kind).items():
        if known is cls:
            return name
    for name, known in _known(kind).items():  # an instance made before its module was imported a second time
        if _same_source(known, cls):
            return name
    raise ConfigError(f'{cls.__name__} is no registered {kind}: put @register("{kind}", "my_name") above the class')


def _known(kind: str) -> dict[str, type]:
    for module in _OWN_MODULES.get(kind, ()):
        importlib.import_module(module)
    with _lock:
        return dict(_classes.get(kind, {}))


def _same_source(a: type, b: type) -> bool:
    """Whether two classes are one, imported twice."""
    return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)
