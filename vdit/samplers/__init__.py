"""Samplers by name: `make("unipc").sample(denoise, x, schedule=..., prediction=..., grid=20)`.

A sampler of vdit is one file and one row of SAMPLERS, and then takes part in the shared convergence test. One of a
user's own is a frozen dataclass with `sample`, under `@register("sampler", "my_sampler")`.
"""

from __future__ import annotations

import dataclasses
import difflib

from vdit import registry
from vdit.errors import ConfigError
from vdit.samplers.base import Denoise, Project, Sampler, StatefulDenoiser
from vdit.samplers.consistency import Consistency
from vdit.samplers.ddim import DDIM
from vdit.samplers.ddpm import DDPM
from vdit.samplers.dpmpp2m import DPMpp2M
from vdit.samplers.euler import Euler
from vdit.samplers.grid import Grid, GridOptions
from vdit.samplers.heun import Heun
from vdit.samplers.resample import Resample
from vdit.samplers.unipc import UniPC

SAMPLERS: dict[str, type] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpmpp2m": DPMpp2M,
    "unipc": UniPC,
    "consistency": Consistency,
    "resample": Resample,
}


for _name, _kind in SAMPLERS.items():
    registry.register("sampler", _name)(_kind)


def make(name: str, **options) -> Sampler:
    """The sampler of that name. options: its fields."""
    known = registry.names("sampler")
    if name not in known:
        raise ConfigError(f"sampler {name!r} is unknown{_nearest(name, known)}")
    kind = registry.get("sampler", name)
    fields = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in fields:
            raise ConfigError(f"sampler {name!r} has no option {option!r}{_nearest(option, fields)}")
    return kind(**options)


def _nearest(name, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else f": use one of {', '.join(known) or 'none'}"


__all__ = [
    "DDIM",
    "DDPM",
    "SAMPLERS",
    "Consistency",
    "DPMpp2M",
    "Denoise",
    "Euler",
    "Grid",
    "GridOptions",
    "Heun",
    "Project",
    "Resample",
    "Sampler",
    "StatefulDenoiser",
    "UniPC",
    "make",
]
