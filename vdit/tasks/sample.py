"""Text to video, or to an image (one frame): a canvas of which nothing is known."""

from __future__ import annotations

import jax.numpy as jnp

from vdit.tasks.canvas import Canvas


def blank(batch: int, latent_shape: tuple[int, int, int, int]) -> Canvas:
    """Nothing known: `batch` clips of latents (t, h, w, c)."""
    return Canvas(
        latents=jnp.zeros((batch, *latent_shape), jnp.float32), known=jnp.zeros((batch, latent_shape[0]), bool)
    )
