"""Latents to tokens and back. Works on NumPy and JAX arrays alike."""

from __future__ import annotations

import functools

import numpy as np
from einops import rearrange

from vdit.errors import ShapeError
from vdit.types import Array

Patch = tuple[int, int, int]


def token_grid(shape: tuple[int, ...], patch: Patch) -> tuple[int, int, int]:
    """Tokens along t, h and w of latents of shape [... t h w c]."""
    extent = tuple(shape[-4:-1])
    if len(shape) < 4 or any(e < 1 or e % p for e, p in zip(extent, patch)):
        raise ShapeError(f"latents of shape {tuple(shape)}: t, h, w must be multiples of the patch {patch}; "
                         "choose sizes with data.size_multiple = VAE stride x patch")
    return tuple(e // p for e, p in zip(extent, patch))


def patchify(latent: Array, patch: Patch) -> Array:
    """[... t h w c] -> [... n p]: tokens in t, h, w order, each flattened in (pt, ph, pw, c) order."""
    token_grid(latent.shape, patch)
    pt, ph, pw = patch
    return rearrange(latent, "... (t pt) (h ph) (w pw) c -> ... (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(values: Array, grid: tuple[int, int, int], patch: Patch) -> Array:
    """[... n p] -> [... t h w c], the inverse of patchify; grid: tokens along t, h, w."""
    gt, gh, gw = grid
    pt, ph, pw = patch
    *_, tokens, width = values.shape
    if tokens != gt * gh * gw or width % (pt * ph * pw):
        raise ShapeError(f"tokens of shape {values.shape} do not fill a grid of {grid} with patch {patch}: "
                         f"expected [... {gt * gh * gw} {pt * ph * pw}*c]")
    return rearrange(
        values, "... (t h w) (pt ph pw c) -> ... (t pt) (h ph) (w pw) c", t=gt, h=gh, w=gw, pt=pt, ph=ph, pw=pw
    )


@functools.lru_cache(maxsize=512)
def grid_position(grid: tuple[int, int, int]) -> np.ndarray:
    """int32 [n 3]: (t, h, w) of each token of a grid, in the order of patchify. Read-only."""
    position = np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), axis=-1).astype(np.int32)
    position.flags.writeable = False
    return position
