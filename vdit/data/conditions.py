"""The data side of conditions: what a clip's conditions are, and how they are arranged for a row of tokens.

What is done in each frame is a condition too. A clip's actions are float32 [t a]: actions[i] leads from frame i - 1 to
frame i, so actions[0] is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vdit.data.config import DataConfig
from vdit.data.patches import Patch, patchify
from vdit.errors import DataError, ShapeError
from vdit.models.conditioner import Conditioner
from vdit.models.conditions import ActionCondition, ClassCondition


def data_conditions(
    config: DataConfig, conditions: Sequence[Conditioner] = (), *, patch: Patch, stride: int
) -> tuple[Conditioner, ...]:
    """The conditions that rows carry: the class label, actions where the config has them, and those given.

    Args:
        config: with `actions` numbers for each video frame.
        conditions: of a model. One that is named as the config's own takes its place.
        patch: latent frames, rows and columns of a token.
        stride: video frames that a latent frame stands for.
    """
    own: list[Conditioner] = [ClassCondition()]
    if config.actions:
        own.append(ActionCondition(width=config.actions * stride * patch[0]))
    named = {condition.name for condition in own}
    return (*own, *(condition for condition in conditions if condition.name not in named))


def read_conditions(conditions: Sequence[Conditioner], sample: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the conditions read of a clip that is cut from its video: field -> values, to be stored with its latents.

    Args:
        conditions: those that the sample may lack. What it has already is not read again.
        sample: of a data source, with "video", and with "view" where the source tells (vdit.data.clips.ClipView).
    """
    return {c.field: np.asarray(c.read(sample)) for c in conditions if c.field not in sample}


def clip_conditions(
    conditions: Sequence[Conditioner], sample: Mapping[str, Any], grid: tuple[int, int, int], patch: Patch, stride: int
) -> dict[str, np.ndarray]:
    """The conditions of one clip as a row takes them: name -> [...], [k f], [n p] or [l e].

    Args:
        conditions: those that rows carry.
        sample: with a latent, and with what conditions were stored beside it.
        grid: tokens of the clip along t, h, w.
        patch: latent frames, rows and columns of a token.
        stride: video frames that a latent frame stands for.

    Raises:
        DataError: a condition is missing, or does not fit the clip's latents.
    """
    return {c.name: _arranged(c, sample, grid, patch, stride) for c in conditions}


def _arranged(
    condition: Conditioner, sample: Mapping[str, Any], grid: tuple[int, int, int], patch: Patch, stride: int
) -> np.ndarray:
    name = str(sample.get("id", ""))
    stored = sample[condition.field] if condition.field in sample else condition.read(sample)
    values = np.asarray(stored, condition.dtype)
    wanted = condition.features(patch)
    if condition.axis == "frame":
        expected = 1 + (grid[0] * patch[0] - 1) * stride
        if len(values) != expected:
            raise DataError(
                f"clip {name!r} has {condition.field} of {len(values)} frames, its latents stand for {expected}: "
                f"encode it again with the VAE of this run (stride {stride} in time)"
            )
        values = group_actions(values, stride, patch[0])
        found = values.shape[1:]
    elif condition.axis == "token":
        extent = tuple(count * size for count, size in zip(grid, patch))
        if values.shape[:3] != extent:
            raise DataError(
                f"clip {name!r} has the condition {condition.name!r} for {values.shape[:3]} latents, the clip has "
                f"{extent} (t, h, w): let its `read` give one value for each latent, and encode the clips again"
            )
        values = patchify(values, patch)
        found = values.shape[1:]
    elif condition.axis == "text":
        found = values.shape[1:]
    else:
        found = values.shape
    if found != wanted:
        raise DataError(
            f"clip {name!r} has the condition {condition.name!r} of shape {found}, its conditioner declares {wanted}: "
            "change its shape, or encode the clips again"
        )
    return values


def group_actions(actions: np.ndarray, stride: int, patch_frames: int = 1) -> np.ndarray:
    """Actions of video frames, grouped by frames of tokens.

    Latent frame 0 stands for one video frame: its group is zeros, then actions[0]. Latent frame i stands for `stride`
    frames: its group is actions[1 + (i - 1) * stride : 1 + i * stride], one after the other.

    Args:
        actions: float [t a], with t = 1 + (k * patch_frames - 1) * stride.
        stride: video frames of a latent frame (the VAE's stride in time).
        patch_frames: latent frames of a frame of tokens.

    Returns:
        float32 [k, a * stride * patch_frames].

    Raises:
        ShapeError: t is no such number.
    """
    actions = np.asarray(actions, np.float32)
    if actions.ndim != 2 or stride < 1 or patch_frames < 1:
        raise ShapeError(f"actions of shape {actions.shape}, stride {stride}, patch_frames {patch_frames}: give [t a], "
                         "and counts of 1 or more")
    t, a = actions.shape
    latents = 1 + (t - 1) // stride
    if t < 1 or (t - 1) % stride or latents % patch_frames:
        raise ShapeError(f"actions of {t} frames: must be 1 + {stride} * k, and 1 + k a multiple of {patch_frames} "
                         "(the VAE's stride in time, the DiT's patch)")
    padded = np.concatenate([np.zeros((stride - 1, a), np.float32), actions])
    return padded.reshape(latents // patch_frames, patch_frames * stride * a)


def to_latent_grid(frames: np.ndarray, stride: int, rows: int, columns: int) -> np.ndarray:
    """Means of the video frames, rows and columns that each latent stands for.

    Args:
        frames: float [t h w c], t = 1 + stride * k; h and w are multiples of rows and columns.
        stride: video frames of a latent frame but the first, which stands for one.
        rows: of pixels of a latent.
        columns: of pixels of a latent.

    Returns:
        float32 [1 + k, h / rows, w / columns, c].

    Raises:
        ShapeError: the sizes do not divide so.
    """
    t, h, w, c = frames.shape
    if (t - 1) % stride or h % rows or w % columns:
        raise ShapeError(
            f"frames of shape {frames.shape}: must be 1 + {stride} * k frames of multiples of {rows} x {columns} pixels"
        )
    pooled = frames.reshape(t, h // rows, rows, w // columns, columns, c).mean((2, 4), dtype=np.float32)
    later = pooled[1:].reshape(-1, stride, *pooled.shape[1:]).mean(1, dtype=np.float32)
    return np.concatenate([pooled[:1], later])
