"""The canvas: latents, what is known of them, and rows of tokens made from both.

Every way of making or editing a video builds a canvas; one function (vdit.tasks.generate) fills it in.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vdit.data.patches import grid_position, patchify, token_grid
from vdit.errors import ShapeError
from vdit.nn.rope import MAX_POSITION
from vdit.types import Array, Row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Canvas:
    """Videos to be filled in, all of one size.

    latents: float32 [b t h w c], normalised; what is not known holds any finite values.
    known: bool [b t], latent frames that are given. They stay at noise level 0 and come back unchanged.
    condition: float32 [b t h w cc], for models that see what is given as further channels (Wan image-to-video).
    image: float [b m e], encoded images, for models that attend to them.
    """

    latents: Array
    known: Array
    condition: Array | None = None
    image: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Tokenised captions, one a clip.

    ids: int32 [b m], padded with anything; length: int32 [b], at least 1 (the empty prompt is one token).
    """

    ids: Array
    length: Array


def tokenize(tokenizer, prompts: list[str], *, length: int) -> Prompts:
    """Prompts of `tokenizer` (vdit.text), padded to `length` tokens."""
    ids = np.zeros((len(prompts), length), np.int32)
    counts = np.zeros(len(prompts), np.int32)
    for i, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt)[:length]
        ids[i, : len(tokens)] = tokens
        counts[i] = len(tokens)
    return Prompts(ids=ids, length=counts)


def dense_rows(values: Array, grid: tuple[int, int, int], prompts: Prompts, label: Array | None = None) -> Row:
    """One clip a row: values float [b n p] on a token grid (t, h, w), with a slot for each latent frame."""
    b, n, _ = values.shape
    if max(grid) > MAX_POSITION:
        raise ShapeError(f"a grid of {grid} tokens is too large: positions go to {MAX_POSITION} along each axis")
    position = jnp.asarray(grid_position(grid))
    index = jnp.arange(prompts.ids.shape[1], dtype=jnp.int32)[None]
    return Row(
        values=values,
        position=jnp.broadcast_to(position, (b, n, 3)),
        clip=jnp.ones((b, n), jnp.int32),
        slot=jnp.broadcast_to(position[:, 0], (b, n)),
        slot_clip=jnp.ones((b, grid[0]), jnp.int32),
        text=prompts.ids,
        text_clip=(index < prompts.length[:, None]).astype(jnp.int32),
        text_position=jnp.broadcast_to(index, prompts.ids.shape),
        label=jnp.zeros((b, 1), jnp.int32) if label is None else label,
    )


def canvas_tokens(canvas: Canvas, patch: tuple[int, int, int]) -> tuple[Array, Array, tuple[int, int, int]]:
    """Tokens of a canvas: (values [b n p], known slots bool [b k], token grid).

    A slot covers patch[0] latent frames and is known if all of them are.
    """
    grid = token_grid(canvas.latents.shape, patch)
    known = canvas.known.reshape(canvas.known.shape[0], grid[0], patch[0]).all(-1)
    return patchify(canvas.latents, patch), known, grid
