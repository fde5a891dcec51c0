"""Counting the FLOPs of a function without running it, for model FLOP utilisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def training_flops(forward: Callable[..., Any], *args: Any) -> float:
    """FLOPs of a training step of which `forward(*args)` is the forward pass: three times its own.

    What a remat policy computes again is not counted, as is usual for model FLOP utilisation. args:
    arrays or ShapeDtypeStructs.
    """
    return 3.0 * count_flops(forward, *args)


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of the matrix products and convolutions of `function(*args)`, loops multiplied out.

    A multiply and an add are two. A `while` whose length is not known counts once, a `cond` as its
    dearest branch. (XLA's own cost analysis counts the body of a scan once.)
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr_flops(jaxpr: Jaxpr) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner(equation.params)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


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
