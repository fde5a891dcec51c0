"""Who plays while an emulator is recorded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vdit.emulators.base import Emulator
from vdit.errors import ConfigError

Policy = Callable[[], np.ndarray]
_HOLD = (1, 6)  # frames that a drawn action is held
_ASTRAY = 0.15  # how often one who follows the ball begins to do something else
# Places of Pong's memory: the ball's place down, and the right paddle's.
_BALL, _PADDLE = 54, 51
_NEAR = 6  # lines of the screen


def _random(emulator: Emulator, random: np.random.Generator) -> Policy:
    """Draws an action and holds it for a few frames."""
    left, action = 0, np.zeros(emulator.width, np.float32)

    def act() -> np.ndarray:
        nonlocal left, action
        if not left:
            left = int(random.integers(_HOLD[0], _HOLD[1] + 1))
            if emulator.actions is None:
                action = random.uniform(-1, 1, emulator.width).astype(np.float32)
            else:
                action = emulator.actions[random.integers(len(emulator.actions))]
        left -= 1
        return action

    return act


def _follow(emulator: Emulator, random: np.random.Generator) -> Policy:
    """Pong: moves the paddle to the ball, and now and then does something else."""
    if "Pong" not in emulator.name:
        raise ConfigError(f"policy 'follow' is for Pong, not for {emulator.name}: use policy 'random'")
    other, left = _random(emulator, random), 0

    def act() -> np.ndarray:
        nonlocal left
        drawn, begins = other(), random.random() < _ASTRAY
        if begins and not left:
            left = int(random.integers(_HOLD[0], _HOLD[1] + 1))
        if left:
            left -= 1
            return drawn
        memory = emulator.facts()
        away = memory[_BALL] - memory[_PADDLE] - 8  # a paddle's middle is 8 lines below its top
        up = float(away < -_NEAR) - float(away > _NEAR)  # RIGHT is up, LEFT is down
        return np.array([up, 0, 0], np.float32)

    return act


POLICIES: dict[str, Callable[[Emulator, np.random.Generator], Policy]] = {"random": _random, "follow": _follow}


def make_policy(name: str, emulator: Emulator, random: np.random.Generator) -> Policy:
    """A policy by name: a function that gives the next action, float32 [a].

    Args:
        name: "random" (any emulator) or "follow" (Pong).
        emulator: that is played.
        random: of its draws.

    Raises:
        ConfigError: there is no such policy, or it does not suit the emulator.
    """
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r}: choose of {', '.join(POLICIES)}")
    return POLICIES[name](emulator, random)
