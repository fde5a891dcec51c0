"""What is done in each frame: actions of video frames, and their groups for frames of tokens.

A clip's actions are float32 [t a]: actions[i] leads from frame i - 1 to frame i, so actions[0] is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vdit.errors import DataError, ShapeError


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


def check_actions(sample: Mapping[str, Any], width: int) -> None:
    """Raises DataError where a sample does not have `width` actions a frame (data.actions; 0: whatever it has)."""
    if not width:
        return
    actions, name = sample.get("actions"), str(sample.get("id", ""))
    if actions is None:
        raise DataError(f"clip {name!r} has no actions, data.actions={width} asks for {width} numbers a frame: use "
                        "data that has them, encode its latents again, or set data.actions=0")
    if actions.shape[-1] != width:
        raise DataError(f"clip {name!r} has {actions.shape[-1]} numbers a frame as its action, data.actions={width}: "
                        f"set data.actions={actions.shape[-1]}")


def check_action_values(sample: Mapping[str, Any], name: str) -> None:
    """Raises DataError where a sample has actions that are not [t a], or not finite."""
    actions = sample.get("actions")
    if actions is not None and (np.ndim(actions) != 2 or not np.isfinite(actions).all()):
        raise DataError(f"latent {name!r} has actions of shape {np.shape(actions)}: give [t a], all finite")
