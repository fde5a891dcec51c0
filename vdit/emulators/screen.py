"""What emulators share: what a step gives, and an action of three numbers as buttons."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vdit.errors import ShapeError

FRAME_SKIP = 4  # frames of the game that an action is held
BUTTONS = 3  # numbers of an action of a game: x, y, fire


class Screen(NamedTuple):
    """What a step gives. frame: uint8 [h w 3]. reward: of the step. ended: whether the episode is over."""

    frame: np.ndarray
    reward: float
    ended: bool


def pressed(action: np.ndarray) -> tuple[int, int, int]:
    """(x, y, fire), each -1, 0 or 1 (fire: 0 or 1), of an action of a game.

    Raises:
        ShapeError: it is not three finite numbers.
    """
    action = np.asarray(action, np.float32)
    if action.shape != (BUTTONS,) or not np.isfinite(action).all():
        raise ShapeError(f"action {action.tolist()}: give {BUTTONS} finite numbers (x, y, fire)")
    x, y, fire = (int(value) for value in np.sign(np.round(action)))
    return x, y, fire
