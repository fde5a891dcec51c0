"""A small game that looks like Pong, in the place of an emulator that is not installed."""

import importlib
import json

import numpy as np
from PIL import Image

from vdit.emulators import Screen
from vdit.errors import DataError

NAME = "ALE/Pong-v5"


class StubPong:
    """A ball between two paddles; the right one goes up (x = 1) and down (x = -1), and the ball bounces everywhere."""

    width = 3
    actions = np.array([(0, 0, 0), (1, 0, 0), (-1, 0, 0)], np.float32)

    def __init__(self, name, *, size):
        self.name, self.size, self.fps = name, size, 8.0
        self.reset(0)

    def reset(self, seed):
        random = np.random.default_rng(seed)
        self.state = [*map(int, random.integers(40, 110, 2)), 6, 9, 72]
        return self._frame()

    def step(self, action):
        x, y, vx, vy, paddle = self.state
        vx = -vx if not 24 <= x + vx <= 134 else vx
        vy = -vy if not 0 <= y + vy <= 156 else vy
        paddle = int(np.clip(paddle - 8 * action[0], 0, 144))
        self.state = [x + vx, y + vy, vx, vy, paddle]
        return Screen(self._frame(), 0.0, False)

    def facts(self):
        return np.array(self.state, np.float64)

    def save(self):
        return json.dumps(self.state).encode()

    def restore(self, state):
        try:
            self.state = json.loads(state)
        except ValueError:
            raise DataError("no state") from None

    def close(self):
        pass

    def _frame(self):
        x, y, _, _, paddle = self.state
        screen = np.full((160, 160, 3), (144, 72, 17), np.uint8)
        screen[60:76, 16:20] = (213, 130, 74)
        screen[paddle : paddle + 16, 140:144] = (92, 186, 92)
        screen[y : y + 4, x : x + 2] = 236
        return np.asarray(Image.fromarray(screen).resize(self.size[::-1], Image.Resampling.BOX))


def install(patch):
    """In the place of open_emulator. patch: pytest's monkeypatch."""
    for module in ("record", "replay"):
        patch.setattr(importlib.import_module(f"vdit.emulators.{module}"), "open_emulator", StubPong)
    patch.setattr("vdit.emulators.open_emulator", StubPong)
