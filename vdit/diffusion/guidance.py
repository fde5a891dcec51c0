"""Classifier-free guidance (Ho and Salimans, 2022): two predictions in, one denoiser out.

The caller makes both predictions, usually by one call on a doubled batch. Guidance only mixes them, so it works for any
network and any sampler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdit.errors import ConfigError, ShapeError
from vdit.types import Array

Denoise = Callable[[Array, Array], Array]
Pair = Callable[[Array, Array], tuple[Array, Array]]
FULL = (0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly and at which noise levels to move away from the unconditional prediction.

        denoise = guide(pair, Guidance(scale=5.0, interval=(0.1, 0.9)))

    Args:
        scale: 1 is the conditional prediction alone, 0 the unconditional one.
        interval: noise levels (low, high) between which to guide, ends included (Kynkaanniemi et al., 2024). Elsewhere
            the scale is 1.
        rescale: in [0, 1], how far to bring the standard deviation of the guided prediction (over everything but the
            batch) back to that of the conditional one (Lin et al., 2023). It prevents over-exposure at high scales.
        channels: (k, n) guides only the first k of every n values of a token, n being the channels of the latents.
            DiT's own sampler guides 3 of 4. None guides all.

    Raises:
        ConfigError: a value is out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] = FULL
    rescale: float = 0.0
    channels: tuple[int, int] | None = None

    def __post_init__(self):
        low, high = self.interval
        if not 0.0 <= low <= high <= 1.0:
            raise ConfigError(f"guidance interval is {self.interval}: it needs 0 <= low <= high <= 1")
        if not 0.0 <= self.rescale <= 1.0:
            raise ConfigError(f"guidance rescale is {self.rescale}: it must be in [0, 1]")
        if self.channels is not None and not 1 <= self.channels[0] <= self.channels[1]:
            raise ConfigError(f"guidance channels is {self.channels}: it needs 1 <= k <= n")

    @property
    def needed(self) -> bool:
        """Whether the unconditional prediction is needed."""
        return self.scale != 1.0


def guide(pair: Pair, guidance: Guidance, single: Denoise | None = None) -> Denoise:
    """Classifier-free guidance (Ho and Salimans, 2022) as a denoiser.

    Args:
        pair: (x [b ... c], t []) -> (conditional, unconditional) predictions.
        guidance: scale, interval, rescaling and channels.
        single: (x, t) -> conditional prediction, called instead of `pair` outside of the interval: half the work there,
            for a second copy of the network in the compiled program. None calls `pair` everywhere.

    Returns:
        A denoiser (x, t) -> prediction. Where the network also predicts a variance (output [b ... 2c]), only the
        prediction is guided; the variance is the conditional one.

    Raises:
        ShapeError: the two predictions differ in shape, or do not fit x.
    """

    def inside(t: Array) -> Array:
        low, high = guidance.interval
        return (t >= low) & (t <= high)

    def guided(x: Array, t: Array, scale: Array | None = None) -> Array:
        if scale is None:
            scale = jnp.where(inside(t), guidance.scale, 1.0)
        conditional, unconditional = pair(x, t)
        width = x.shape[-1]
        scale = jnp.asarray(scale, conditional.dtype)
        if guidance.channels is not None:
            first, of = guidance.channels
            if width % of:
                raise ShapeError(f"guidance channels is {guidance.channels}: {of} must divide a token's {width} values")
            scale = jnp.where(jnp.arange(width) % of < first, scale, 1.0).astype(scale.dtype)
        mixed = mix(conditional[..., :width], unconditional[..., :width], scale, guidance.rescale)
        return jnp.concatenate([mixed, conditional[..., width:]], axis=-1)

    def denoise(x: Array, t: Array) -> Array:
        full = jnp.float32(guidance.scale)
        return jax.lax.cond(inside(t), guided, lambda x, t, scale: single(x, t), x, t, full)

    return guided if single is None or guidance.interval == FULL else denoise


def mix(conditional: Array, unconditional: Array, scale: Array | float, rescale: float = 0.0) -> Array:
    """The guided prediction [b ... c] of two predictions [b ... c].

    Args:
        conditional, unconditional: [b ... c].
        scale: [] or [c].
        rescale: as in Guidance.
    """
    # In this form scale 1 gives the conditional prediction to the last bit.
    guided = conditional + (scale - 1.0) * (conditional - unconditional)
    if rescale == 0.0:
        return guided
    axes = tuple(range(1, conditional.ndim))
    spread = jnp.std(conditional.astype(jnp.float32), axis=axes, keepdims=True)
    guided_spread = jnp.std(guided.astype(jnp.float32), axis=axes, keepdims=True)
    factor = rescale * spread / jnp.maximum(guided_spread, 1e-12) + (1.0 - rescale)
    return guided * factor.astype(guided.dtype)
