"""Latents to tokens and back. Works on NumPy and JAX arrays alike."""

from __future__ import annotations

import functools

import numpy as np
from einops import rearrange

from vdit.errors import ShapeError
from vdit.types import Array

Patch = tuple[int, int, int]


def token_grid(shape: tuple[int, ...], patch: Patch) -> tuple[int, int, int]:
    """Tokens along each axis.

    Args:
        shape: of latents, [... t h w c].
        patch: latent frames, rows and columns of a token.

    Returns:
        (t, h, w) in tokens.

    Raises:
        ShapeError: a size is no multiple of the patch.
    """
    extent = tuple(shape[-4:-1])
    if len(shape) < 4 or any(e < 1 or e % p for e, p in zip(extent, patch)):
        raise ShapeError(f"latents of shape {tuple(shape)}: t, h, w must be multiples of the patch {patch}; "
                         "choose sizes with data.size_multiple = VAE stride x patch")
    return tuple(e // p for e, p in zip(extent, patch))


def patchify(latent: Array, patch: Patch) -> Array:
    """Cuts latents into tokens.

    Args:
        latent: [... t h w c], with t, h, w multiples of the patch.
        patch: latent frames, rows and columns of a token.

    Returns:
        Tokens [... n p], in t, h, w order, each flattened in (pt, ph, pw, c) order.
    """
    token_grid(latent.shape, patch)
    pt, ph, pw = patch
    return rearrange(latent, "... (t pt) (h ph) (w pw) c -> ... (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(values: Array, grid: tuple[int, int, int], patch: Patch) -> Array:
    """The inverse of `patchify`.

    Args:
        values: tokens [... n p].
        grid: tokens along t, h and w; n is their product.
        patch: latent frames, rows and columns of a token.

    Returns:
        Latents [... t h w c].

    Raises:
        ShapeError: n or p does not fit the grid or the patch.
    """
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
    """Coordinates of the tokens of a clip.

    Args:
        grid: tokens along t, h and w.

    Returns:
        int32 [n 3], read-only: (t, h, w) of each token, in the order of `patchify`.
    """
    position = np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), axis=-1).astype(np.int32)
    position.flags.writeable = False
    return position
