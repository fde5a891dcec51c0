"""Sampling that passes over the network's blocks where what they add has hardly changed since the last steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdit.errors import ConfigError
from vdit.models.dit.reuse import Residuals, Reusing
from vdit.samplers.base import StatefulDenoiser
from vdit.types import Array, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCache:
    """When blocks are passed over (vdit/models/dit/reuse.py): faster, and not quite the same video.

    threshold: how much of what the first block adds may change, summed over calls, before all blocks run again: 0 never
        passes over, 0.05 to 0.2 are usual. tools/reuse.py measures time and error on a model.
    first, last: so many calls of the network at the beginning and the end of sampling run all blocks.
    """

    threshold: float
    first: int = 1
    last: int = 1

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ConfigError(f"reuse.threshold={self.threshold}: a relative change, give 0 or more")
        for name in ("first", "last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reuse.{name}={getattr(self, name)}: calls that run all blocks, give 1 or more")

    def limit(self, done: Array, left: Array) -> Array:
        """Below which change blocks are passed over: float32 []; done, left: calls before and after this one."""
        free = (done >= self.first) & (left >= self.last)
        return jnp.where(free, jnp.float32(self.threshold), 0.0)


Ask = Callable[[Array, Array, Reusing], tuple[Array, Residuals]]


def remembering(
    reuse: BlockCache, high: Ask, low: Ask, is_high: Callable[[Array], Array], *, kept: Residuals, weight: Array
) -> StatefulDenoiser:
    """A denoiser that remembers residuals, of two transformers or one (then high is low).

    is_high(t): which of them is asked. kept, weight: as in Reusing; kept before the first call.
    """

    def ask(x: Array, t: Array, memory: PyTree, done: Array, left: Array) -> tuple[Array, PyTree]:
        kept, was_high = memory
        now_high = is_high(t)
        # What another transformer added is of no use.
        kept = dataclasses.replace(kept, change=jnp.where(now_high == was_high, kept.change, jnp.inf))
        call = Reusing(kept=kept, limit=reuse.limit(done, left), weight=weight)
        output, kept = high(x, t, call) if low is high else jax.lax.cond(now_high, high, low, x, t, call)
        return output, (kept, now_high)

    return StatefulDenoiser(ask=ask, memory=(kept, jnp.bool_(True)))
