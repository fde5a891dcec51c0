"""An environment of gymnasium as a world that is played frame by frame, and can be put back to where it was.

    emulator = open_emulator("ALE/Pong-v5", size=(64, 64))
    frame = emulator.reset(seed=0)                 # uint8 [h w 3]
    state = emulator.save()                        # bytes
    frame, reward, ended = emulator.step(action)   # action: float32 [a]
    emulator.restore(state)

An action of an Atari game is three numbers: x (to the right), y (down) and fire, each -1, 0 or 1; an action of a body
is what its environment takes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from PIL import Image

from vdit.emulators.doom import PREFIX, Doom
from vdit.emulators.screen import BUTTONS, FRAME_SKIP, Screen, pressed
from vdit.errors import ConfigError, DataError, ShapeError, install_command

CONSOLE_FPS = 60.0
MOST_STATE = 1 << 20  # bytes of a saved state
# Rows of the screen that are shown, where a game has a frame around the field.
_ROWS = {"Pong": (34, 194), "Breakout": (32, 196)}
_WAYS = {"RIGHT": (1, 0, 0), "LEFT": (-1, 0, 0), "UP": (0, -1, 0), "DOWN": (0, 1, 0), "FIRE": (0, 0, 1)}


class Emulator(Protocol):
    """A world that somebody else wrote. Implementations keep one environment open.

    name: of the environment. fps: frames a second. width: numbers of an action. actions: float32 [n a], those that a
    random policy draws from; None: any in [-1, 1].
    """

    name: str
    fps: float
    width: int
    actions: np.ndarray | None

    def reset(self, seed: int) -> np.ndarray:
        """The first frame, uint8 [h w 3], of the episode of this seed."""
        ...

    def step(self, action: np.ndarray) -> Screen:
        """What follows when this is done. action: finite float32 [a]."""
        ...

    def facts(self) -> np.ndarray:
        """float64 [n]: what the emulator itself knows of this moment (the console's memory; positions and speeds)."""
        ...

    def save(self) -> bytes:
        """All that the next frames depend on but the actions."""
        ...

    def restore(self, state: bytes) -> None:
        """Puts the emulator back to a saved state; DataError for bytes that are none."""
        ...

    def close(self) -> None:
        """Ends the environment."""
        ...


def open_emulator(name: str, *, size: tuple[int, int] = (64, 64)) -> Emulator:
    """Opens an environment of gymnasium.

    Args:
        name: "ALE/..." for an Atari game, "vizdoom/..." for a scenario of ViZDoom, else an environment on MuJoCo.
        size: (height, width) of frames, in pixels.

    Returns:
        The emulator, to be reset first.

    Raises:
        ConfigError: the package is not installed, or there is no such environment.
    """
    if min(size) < 8:
        raise ConfigError(f"size={size}: give at least 8 pixels")
    if name.startswith(PREFIX):
        return Doom(name, size)
    return Atari(name, size) if name.startswith("ALE/") else Body(name, size)


class _Gym:
    """What both kinds share: one environment, its frames at one size."""

    rows: tuple[int, int] | None = None

    def __init__(self, name: str, size: tuple[int, int], **options: Any):
        try:
            import gymnasium
        except ImportError:
            raise ConfigError(f"{name}: needs gymnasium: {install_command('gym')}") from None
        self.name, self.size = name, size
        try:
            self._env = gymnasium.make(name, render_mode="rgb_array", **options)
        except (gymnasium.error.Error, ImportError) as error:
            raise ConfigError(f"{name}: cannot be opened as an environment of gymnasium ({error})") from None

    def reset(self, seed: int) -> np.ndarray:
        self._env.reset(seed=seed)
        return self._frame()

    def close(self) -> None:
        self._env.close()

    def _frame(self) -> np.ndarray:
        screen = np.asarray(self._env.render(), np.uint8)
        if self.rows is not None:
            screen = screen[slice(*self.rows)]
        image = Image.fromarray(screen).resize(self.size[::-1], Image.Resampling.BOX)
        return np.asarray(image)

    def _step(self, action: Any) -> Screen:
        _, reward, over, cut, _ = self._env.step(action)
        return Screen(self._frame(), float(reward), bool(over or cut))


class Atari(_Gym):
    """A game of the Arcade Learning Environment, without sticky buttons: same state and actions, same frames."""

    width = BUTTONS

    def __init__(self, name: str, size: tuple[int, int]):
        try:
            import ale_py
            import gymnasium
        except ImportError:
            raise ConfigError(f"{name}: needs gymnasium and ale-py: {install_command('gym')}") from None
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        gymnasium.register_envs(ale_py)
        super().__init__(name, size, frameskip=FRAME_SKIP, repeat_action_probability=0.0)
        self._state = ale_py.ALEState
        self._ale = self._env.unwrapped.ale
        self.fps = CONSOLE_FPS / FRAME_SKIP
        self.rows = next((rows for game, rows in _ROWS.items() if game in name), None)
        meanings = self._env.unwrapped.get_action_meanings()
        self._numbers = {_way(meaning): number for number, meaning in enumerate(meanings)}
        self.actions = np.array(list(self._numbers), np.float32)

    def step(self, action: np.ndarray) -> Screen:
        return self._step(self._numbers[self._pressed(action)])

    def facts(self) -> np.ndarray:
        return self._ale.getRAM().astype(np.float64)

    def save(self) -> bytes:
        return self._ale.cloneSystemState().serialize()

    def restore(self, state: bytes) -> None:
        if not 0 < len(state) <= MOST_STATE:
            raise DataError(f"state of {len(state)} bytes: give 1 to {MOST_STATE}")
        try:
            self._ale.restoreSystemState(self._state(state))
        except (RuntimeError, ValueError, SystemError) as error:
            raise DataError(f"these {len(state)} bytes are no state of {self.name} ({error})") from None

    def _pressed(self, action: np.ndarray) -> tuple[int, ...]:
        """The buttons of an action; those that the game does not have are not pressed."""
        x, y, fire = pressed(action)
        tries = ((x, y, fire), (x, y, 0), (x, 0, fire), (x, 0, 0), (0, y, fire), (0, y, 0), (0, 0, fire))
        return next((buttons for buttons in tries if buttons in self._numbers), (0, 0, 0))


class Body(_Gym):
    """A body of MuJoCo. Its state is its time, positions, speeds and what its solver starts from."""

    actions = None

    def __init__(self, name: str, size: tuple[int, int]):
        neither = f"{name}: is neither a game (ALE/...) nor a body of MuJoCo, so it cannot be restored"
        # Without a GPU, the usual 480x480 pixels and shadows of 4096x4096 take several times as long.
        try:
            super().__init__(name, size, height=2 * size[0], width=2 * size[1])
        except TypeError:  # other environments have no such options
            raise ConfigError(neither) from None
        self._base = self._env.unwrapped
        if not all(hasattr(self._base, part) for part in ("data", "model", "set_state")):
            raise ConfigError(neither)
        self._base.model.vis.quality.shadowsize = 1024
        self._set_camera()
        self.fps = float(self._env.metadata["render_fps"])
        self.width = int(np.prod(self._env.action_space.shape))

    def _set_camera(self) -> None:
        """The model's camera that follows the body; without one, a camera that looks at the model's middle.

        gymnasium's own looks where the body is when the first frame is rendered, and the body leaves its view.
        """
        model, renderer = self._base.model, self._base.mujoco_renderer
        names = [model.camera(number).name for number in range(model.ncam)]
        if "track" in names:
            renderer.camera_id = names.index("track")
        else:
            renderer.default_cam_config = {**(renderer.default_cam_config or {}), "lookat": model.stat.center.copy()}

    def step(self, action: np.ndarray) -> Screen:
        action = np.asarray(action, np.float32)
        if action.shape != (self.width,) or not np.isfinite(action).all():
            raise ShapeError(f"action of shape {action.shape}: give {self.width} finite numbers")
        low, high = self._env.action_space.low, self._env.action_space.high
        return self._step(np.clip(action, -1, 1) * (high - low) / 2 + (high + low) / 2)

    def facts(self) -> np.ndarray:
        return np.concatenate([self._base.data.qpos, self._base.data.qvel]).astype(np.float64)

    def save(self) -> bytes:
        data = self._base.data
        return np.concatenate([[data.time], data.qpos, data.qvel, data.qacc_warmstart]).astype("<f8").tobytes()

    def restore(self, state: bytes) -> None:
        data, expected = self._base.data, len(self.save())
        if len(state) != expected:
            raise DataError(f"state of {len(state)} bytes: one of {self.name} has {expected}")
        values, n = np.frombuffer(state, "<f8"), len(data.qpos)
        if not np.isfinite(values).all():
            raise DataError(f"state of {self.name}: must be finite")
        self._env.reset()  # gymnasium counts steps from here to its time limit, whatever was played before
        self._base.set_state(values[1 : 1 + n], values[1 + n : 1 + n + len(data.qvel)])
        data.time, data.qacc_warmstart[:] = values[0], values[1 + n + len(data.qvel) :]


def _way(meaning: str) -> tuple[int, ...]:
    """"RIGHTFIRE" -> (1, 0, 1)."""
    ways = [way for word, way in _WAYS.items() if word in meaning]
    return tuple(int(value) for value in np.sum(ways, axis=0)) if ways else (0, 0, 0)
