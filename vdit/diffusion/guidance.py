"""Classifier-free guidance: two predictions in, one denoiser out.

The caller makes both predictions (usually by one call on a doubled batch); guidance only mixes them, so it
works for any network and any sampler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from vdit.errors import ConfigError
from vdit.types import Array

Denoise = Callable[[Array, Array], Array]
Pair = Callable[[Array, Array], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly, where, and how tamely to move away from the unconditional prediction.

    scale: 1 is the conditional prediction alone, 0 the unconditional.
    interval: (low, high) noise levels between which to guide, ends included; elsewhere scale is 1.
    rescale: in [0, 1], how far to bring the guided prediction's standard deviation (over everything but
        the batch) back to the conditional's (Lin et al. 2023), against over-exposure at high scales.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self):
        low, high = self.interval
        if not 0.0 <= low <= high <= 1.0:
            raise ConfigError(f"guidance interval is {self.interval}: it needs 0 <= low <= high <= 1")
        if not 0.0 <= self.rescale <= 1.0:
            raise ConfigError(f"guidance rescale is {self.rescale}: it must be in [0, 1]")

    @property
    def needed(self) -> bool:
        """Whether the unconditional prediction is of any use."""
        return self.scale != 1.0


def guide(pair: Pair, guidance: Guidance) -> Denoise:
    """pair(x [b ... c], t []) -> (conditional, unconditional) becomes denoise(x, t) -> prediction.

    Where the network also gives a variance (output [b ... 2c]), only the prediction is guided; the
    variance is the conditional's.
    """

    def denoise(x: Array, t: Array) -> Array:
        conditional, unconditional = pair(x, t)
        low, high = guidance.interval
        scale = jnp.where((t >= low) & (t <= high), guidance.scale, 1.0).astype(conditional.dtype)
        channels = x.shape[-1]
        mixed = mix(conditional[..., :channels], unconditional[..., :channels], scale, guidance.rescale)
        return jnp.concatenate([mixed, conditional[..., channels:]], axis=-1)

    return denoise


def mix(conditional: Array, unconditional: Array, scale: Array | float, rescale: float = 0.0) -> Array:
    """conditional, unconditional [b ...]; scale [] -> guided prediction [b ...]."""
    # In this form scale 1 gives the conditional prediction to the last bit.
    guided = conditional + (scale - 1.0) * (conditional - unconditional)
    if rescale == 0.0:
        return guided
    axes = tuple(range(1, conditional.ndim))
    spread = jnp.std(conditional.astype(jnp.float32), axis=axes, keepdims=True)
    guided_spread = jnp.std(guided.astype(jnp.float32), axis=axes, keepdims=True)
    factor = rescale * spread / jnp.maximum(guided_spread, 1e-12) + (1.0 - rescale)
    return guided * factor.astype(guided.dtype)
