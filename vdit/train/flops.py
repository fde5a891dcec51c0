"""Counting the FLOPs of a function without running it, for model and hardware FLOP utilisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of the matrix products and convolutions of `function(*args)`, on all devices, loops multiplied out.

    A multiply and an add are two. A `while` whose length is not known counts once, a `cond` as its dearest branch.
    (XLA's own cost analysis counts the body of a scan once, and nothing inside a Pallas kernel.)
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> float:
    """The same of a traced function. Gradients count with what remat computes again: the hardware's FLOPs.

    A `shard_map`'s body counts for each device of its mesh axes, a Pallas kernel's for each place of its grid,
    skipped blocks included: with clip ids that is the FLOPs of one clip that fills the row, and where frames read
    no later ones still the whole square of it (DiTConfig.flops counts what is useful). Dense attention too computes
    all of that square.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
    inner = [jaxpr_flops(jaxpr) for jaxpr in _inner(params)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * _times(name, params)


def _times(name: str, params: dict[str, Any]) -> int:
    """How often the functions inside an equation run, on all devices together."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        axes = next(value for key, value in params.items() if key.endswith("manual_axes"))  # named by version
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    """The functions that an equation calls; of a custom derivative, the forward one alone."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found
