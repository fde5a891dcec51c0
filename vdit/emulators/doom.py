"""Scenarios of ViZDoom as emulators: "vizdoom/deadly_corridor" and the others that its package brings.

A state is the seed and all that was done since: the game is the same for both, and is played again to get there.
ViZDoom starts the game as a program of its own beside this one.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vdit.emulators.screen import FRAME_SKIP, Screen, pressed
from vdit.errors import ConfigError, DataError, install_command

PREFIX = "vizdoom/"
FPS = 35.0 / FRAME_SKIP
_MOST = 4096  # steps of a state
_SEED = np.dtype("<u4")
_SEEDS = 2**32
# What an action's three numbers press: x turns, y goes, fire shoots. Scenarios without turning step aside.
_TURN, _STEP = ("TURN_LEFT", "TURN_RIGHT"), ("MOVE_LEFT", "MOVE_RIGHT")
_GO = ("MOVE_FORWARD", "MOVE_BACKWARD")
_FACTS = ("POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE", "VELOCITY_X", "VELOCITY_Y", "HEALTH", "AMMO2", "KILLCOUNT")


class Doom:
    """A scenario of ViZDoom, 8.75 frames a second, without the status bar.

    Args:
        name: "vizdoom/" and the name of a scenario.
        size: (height, width) of frames.

    Raises:
        ConfigError: ViZDoom is not installed, has no such scenario, or the scenario cannot be played by three numbers.
    """

    width = 3

    def __init__(self, name: str, size: tuple[int, int]):
        try:
            import vizdoom
        except ImportError:
            raise ConfigError(f"{name}: needs ViZDoom: {install_command('doom')}") from None
        scenario = name.removeprefix(PREFIX)
        known = sorted(path.stem for path in Path(vizdoom.scenarios_path).glob("*.cfg"))
        if scenario not in known:
            raise ConfigError(f"{name}: is no scenario of ViZDoom: use {PREFIX} and one of {', '.join(known)}")
        self.name, self.size, self.fps = name, size, FPS
        game = vizdoom.DoomGame()
        game.load_config(str(Path(vizdoom.scenarios_path) / f"{scenario}.cfg"))
        self._folder = tempfile.TemporaryDirectory(prefix="vdit-doom-")  # ViZDoom keeps its settings beside the caller
        game.set_doom_config_path(str(Path(self._folder.name) / "settings.ini"))
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_render_hud(False)
        self._buttons = [button.name for button in game.get_available_buttons()]
        self._variables = [getattr(vizdoom.GameVariable, fact) for fact in _FACTS]
        sides = _TURN if set(_TURN) & set(self._buttons) else _STEP
        self._keys = (sides, _GO, ("", "ATTACK"))
        played = [axis for axis, names in enumerate(self._keys) if set(names) & set(self._buttons)]
        if not played:
            raise ConfigError(f"{name}: has buttons {', '.join(self._buttons)}, of which three numbers press none")
        every = itertools.product((-1, 0, 1), (-1, 0, 1), (0, 1))
        ways = [way for way in every if all(axis in played for axis in np.flatnonzero(way))]
        self.actions = np.array(ways, np.float32)
        game.init()
        self._game, self._seed, self._done = game, 0, []
        self._last = np.zeros((*size, 3), np.uint8)

    def reset(self, seed: int) -> np.ndarray:
        self._seed, self._done = seed % _SEEDS, []
        self._game.set_seed(self._seed)
        self._game.new_episode()
        return self._frame()

    def step(self, action: np.ndarray) -> Screen:
        """As vdit.emulators.Emulator has it; after the end the last frame stays."""
        way = pressed(action)
        if self._game.is_episode_finished():
            return Screen(self._last, 0.0, True)
        reward = self._press(way)
        return Screen(self._frame(), reward, self._game.is_episode_finished())

    def facts(self) -> np.ndarray:
        return np.array([self._game.get_game_variable(variable) for variable in self._variables], np.float64)

    def save(self) -> bytes:
        """The seed, and three numbers of each step since."""
        if len(self._done) > _MOST:
            raise DataError(f"{self.name}: {len(self._done)} steps since the start, a state has at most {_MOST}")
        return np.array(self._seed, _SEED).tobytes() + np.array(self._done, np.int8).tobytes()

    def restore(self, state: bytes) -> None:
        done = np.frombuffer(state[_SEED.itemsize :], np.int8)
        whole = len(state) >= _SEED.itemsize and len(done) % self.width == 0 and len(done) <= self.width * _MOST
        if not whole or (np.abs(done) > 1).any():
            raise DataError(f"these {len(state)} bytes are no state of {self.name}")
        self.reset(int(np.frombuffer(state[: _SEED.itemsize], _SEED)[0]))
        for way in done.reshape(-1, self.width).tolist():
            if self._game.is_episode_finished():
                steps = f"{len(self._done)} of the {len(done) // self.width} steps"
                raise DataError(f"{self.name}: ends after {steps} of this state")
            self._press(tuple(way))
        self._frame()

    def close(self) -> None:
        self._game.close()
        self._folder.cleanup()

    def _press(self, way: tuple[int, ...]) -> float:
        self._done.append(way)
        down = {names[value > 0] for names, value in zip(self._keys, way) if value}
        return float(self._game.make_action([name in down for name in self._buttons], FRAME_SKIP))

    def _frame(self) -> np.ndarray:
        state = self._game.get_state()
        if state is not None:
            image = Image.fromarray(np.ascontiguousarray(state.screen_buffer))
            self._last = np.asarray(image.resize(self.size[::-1], Image.Resampling.BOX))
        return self._last
