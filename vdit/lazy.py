"""Names that a package exports are imported when they are first used: `import vdit.models` starts nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its name, `__name__`.
        homes: exported name -> module of the package that defines it, as "latents", or as "dit.config:preset" where
            the module has another name for it.

    Returns:
        The two functions, to be assigned to those names at the end of the package's `__init__.py`.

    Example:
        _HOMES = {"DiT": "dit.model", "dit_preset": "dit.config:preset"}
        __all__ = [*_HOMES]
        __getattr__, __dir__ = exports(__name__, _HOMES)
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = homes[name].partition(":")
        return getattr(importlib.import_module(f"{package}.{module}"), attribute or name)

    return get, lambda: sorted(homes)
