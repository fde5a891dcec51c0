"""In how many bits a model computes, and in how many its weights are held."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax

from vdit.errors import ConfigError
from vdit.experiment.experiment import Experiment
from vdit.nn.quantise import DTYPES, cast, quantise
from vdit.types import PyTree

Compute = Literal["float32", "bfloat16"]
Weights = Literal["float32", "bfloat16", "int8", "fp8"]


def computing(experiment: Experiment, compute: Compute | None) -> Experiment:
    """The experiment with its matrix products and convolutions in `compute`; None leaves it as it is."""
    if compute is None:
        return experiment
    _check("compute", compute, Compute)
    text = dataclasses.replace(experiment.text, dtype=compute)
    if text.t5 is not None:
        text = dataclasses.replace(text, t5=dataclasses.replace(text.t5, dtype=compute))
    changed: dict[str, Any] = {
        name: dataclasses.replace(getattr(experiment, name), dtype=compute) for name in ("backbone", "vae")
    }
    if experiment.vision is not None:
        changed["vision"] = dataclasses.replace(experiment.vision, dtype=compute)
    return dataclasses.replace(experiment, text=text, **changed)


def fast_compute() -> Compute:
    """What public weights compute in where nobody says: bfloat16, but float32 on a CPU, which is faster at it."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def held_as(params: PyTree, weights: Weights | None) -> PyTree:
    """Parameters of one network in `weights`; None leaves them as they are.

    "bfloat16" leaves norms, tables and the time embedding; "int8" and "fp8" hold the kernels of dense layers with
    a factor for each output channel, and the rest as it is (vdit.nn.quantise).
    """
    if weights is None:
        return params
    check_held(weights)
    if weights in DTYPES:
        return quantise(params, weights)
    return cast(params, weights, **({"keep": ()} if weights == "float32" else {}))


def check_held(weights: str) -> None:
    """ConfigError for a form of weights that there is not."""
    _check("weights", weights, Weights)


def _check(name: str, value: str, known: Any) -> None:
    if value not in get_args(known):
        raise ConfigError(f"{name}={value!r} is unknown: use one of {', '.join(get_args(known))}")
