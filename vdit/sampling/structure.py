"""Structure: the low frequencies in space, by which an edited video keeps its layout."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from vdit.errors import ConfigError
from vdit.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """While sampling is above the level `until`, low frequencies are those of the canvas, noised to the level (ILVR,
    Choi et al. 2021).

    factor: how much smaller a picture of them would be: 1 is everything, larger keeps less. In latents, of which each
        is some pixels already.
    until: 0 keeps them to the end, 1 never.
    """

    factor: float = 4.0
    until: float = 0.3

    def __post_init__(self) -> None:
        if not self.factor >= 1.0:
            raise ConfigError(f"structure factor={self.factor}: give 1 (everything is kept) or more")
        if not 0.0 <= self.until <= 1.0:
            raise ConfigError(f"structure until={self.until}: a noise level, give 0 to 1")

    def low(self, x: Array) -> Array:
        """Low frequencies of [... h w c]: a projection, so what is low already stays as it is.

        The lowest cosines along h and w (DCT-II); ILVR shrinks and enlarges instead, which is no projection.
        """
        height, width = (jnp.asarray(_lowest(n, self.factor), x.dtype) for n in x.shape[-3:-1])
        return jnp.einsum("yh,xw,...hwc->...yxc", height, width, x, precision="highest")


@functools.lru_cache(maxsize=64)
def _lowest(n: int, factor: float) -> np.ndarray:
    """float64 [n n]: the projection of n values onto their first n / factor cosines, the constant at least."""
    count = max(1, round(n / factor))
    cosines = np.cos(np.pi * (np.arange(n)[:, None] + 0.5) * np.arange(count) / n)
    cosines /= np.linalg.norm(cosines, axis=0)
    return cosines @ cosines.T
