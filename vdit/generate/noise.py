"""The noise that a video starts from, by its own seed, whatever else is made at the same time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vdit.data.patches import token_grid, unpatchify
from vdit.generate.generator import Generator
from vdit.seeds import key_of


def noise_of(generator: Generator, seeds: Sequence[int], *, frames: int, size: tuple[int, int]) -> np.ndarray:
    """float32 [b t' h' w' c]: what `generator([prompt], seed=seed)` draws for each of `seeds`.

    As noise= of one call for many prompts, it makes each video the one that its seed makes alone, but for samplers that
    draw more noise on their way (ddpm). Raises ShapeError for sizes that the model cannot make.
    """
    shape = generator.task(generator.method(), frames, size, given=True).latent_shape
    patch = generator.experiment.backbone.patch
    grid = token_grid((1, *shape), patch)
    tokens = (math.prod(grid), math.prod(patch) * shape[-1])
    draw = lambda seed: jax.random.normal(jax.random.split(key_of(seed))[0], tokens, jnp.float32)  # noqa: E731
    return np.asarray(unpatchify(jnp.stack([draw(seed) for seed in seeds]), grid, patch))
