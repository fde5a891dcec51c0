"""Blocks that are passed over: what they add to the tokens changes slowly from one sampling step to the next.

The first block always runs. How much it adds is compared with what it added in the call before (relative L1), and the
changes are summed up; while the sum is below a limit, the other blocks do not run, and what they added when they last
did is added again. The sum is TeaCache's (Liu et al. 2024), the first block as the sign that of the first-block cache
(ParaAttention, 2024). The result is not that of all blocks: the limit bounds the sign, not the error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdit.dist.rules import constrain
from vdit.models.dit.config import DiTConfig
from vdit.reprs import short_repr
from vdit.types import Array

ACTIVATION = ("batch", "tokens", "embed")


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Residuals:
    """What is kept from call to call, in the model's type.

    first: [b n d], what the first block added in the last call. rest: [b n d], what the others added when they last
    ran. change: float32 [], how much `first` changed since they did; infinite where they never did.
    """

    first: Array
    rest: Array
    change: Array

    @classmethod
    def blank(cls, config: DiTConfig, rows: int, tokens: int) -> Residuals:
        """Before the first call."""
        zeros = constrain(jnp.zeros((rows, tokens, config.width), config.dtype), ACTIVATION)
        return cls(first=zeros, rest=zeros, change=jnp.float32(jnp.inf))


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reusing:
    """One call's. limit: float32 [], the least change at which all blocks run. weight: [b n], how much tokens count."""

    kept: Residuals
    limit: Array
    weight: Array


def pass_over(
    run: Callable[[Array | int, Array], Array], depth: int, x: Array, reuse: Reusing, *, scan: bool
) -> tuple[Array, Residuals]:
    """All blocks, or the first one and what is kept of the others: x [b n d] -> [b n d], and what is kept then.

    run(i, x): block i of `depth`. scan: i is traced, so that the others are compiled once.
    """
    kept = reuse.kept
    y = run(0, x)
    first = constrain(y - x, ACTIVATION)
    change = kept.change + _relative_change(first, kept.first, reuse.weight)

    def all_run() -> tuple[Array, Array, Array]:
        others = range(1, depth)
        z = jax.lax.fori_loop(1, depth, run, y) if scan else functools.reduce(lambda z, i: run(i, z), others, y)
        return z, constrain(z - y, ACTIVATION), jnp.zeros_like(change)

    x, rest, change = jax.lax.cond(change < reuse.limit, lambda: (y + kept.rest, kept.rest, change), all_run)
    return constrain(x, ACTIVATION), Residuals(first=first, rest=rest, change=change)


def _relative_change(new: Array, old: Array, weight: Array) -> Array:
    """Sum of |new - old| over that of |old|, of the tokens that count: float32 []."""
    size = lambda x: jnp.sum(weight[..., None] * jnp.abs(x.astype(jnp.float32)))  # noqa: E731
    return size(new.astype(jnp.float32) - old.astype(jnp.float32)) / jnp.maximum(size(old), 1e-30)
