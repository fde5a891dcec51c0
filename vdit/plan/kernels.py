"""Bytes that Pallas kernels move through HBM, which no compiler's analysis tells: counted by their grids."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr


def kernel_bytes(jaxpr: Jaxpr) -> float:
    """Bytes that one device's kernels move in one run of a traced program, loops multiplied out.

    A block is fetched or written whenever its place changes from one turn of the grid to the next; a place that hangs
    on data is taken to change with every index that it is looked up by.
    """
    return sum(_equation_bytes(equation) for equation in jaxpr.eqns)


def _equation_bytes(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "pallas_call":
        grid = params["grid_mapping"]
        return sum(_moves(block, grid.grid) * _block_bytes(block) for block in grid.block_mappings)
    inner = [kernel_bytes(jaxpr) for jaxpr in _functions(params)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _moves(block: Any, grid: tuple[int, ...]) -> int:
    """How often a block changes: the turns of all dimensions of the grid up to the last that its place hangs on."""
    jaxpr = block.index_map_jaxpr.jaxpr
    from_index = {variable: {i} for i, variable in enumerate(jaxpr.invars[: len(grid)])}
    for equation in jaxpr.eqns:
        found = set().union(*(from_index.get(v, set()) for v in equation.invars if not hasattr(v, "val")))
        from_index |= {variable: found for variable in equation.outvars}
    used = set().union(*(from_index.get(v, set()) for v in jaxpr.outvars if not hasattr(v, "val")))
    return math.prod(grid[: max(used) + 1]) if used else 1


def _block_bytes(block: Any) -> int:
    sizes = [getattr(size, "block_size", 1 if not isinstance(size, int) else size) for size in block.block_shape]
    array = getattr(block, "array_aval", None) or block.array_shape_dtype
    return math.prod(sizes) * jnp.dtype(array.dtype).itemsize


def _functions(params: dict[str, Any]) -> list[Jaxpr]:
    """The functions that an equation calls."""
    values = [item for value in params.values() for item in (value if isinstance(value, tuple | list) else (value,))]
    return [
        item.jaxpr if isinstance(item, ClosedJaxpr) else item
        for item in values
        if isinstance(item, ClosedJaxpr | Jaxpr)
    ]
