"""A world model that a program or a person plays.

    simulator = vdit.Simulator(generator, "a red circle that is steered", start=image)
    for _ in range(16):
        frames = simulator.step((1, 0))     # float32 [t h w 3] in [-1, 1]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Unpack

import numpy as np

from vdit.data.conditions import group_actions
from vdit.errors import ConfigError, ShapeError
from vdit.generate.generator import Generator, Sampling, Video, frames_of, given_frames, grouping_of, window_of
from vdit.generate.images import as_bytes, fit_images
from vdit.generate.sliding import first_canvas
from vdit.sampling.canvas import Canvas
from vdit.sampling.kv import use_kv
from vdit.sampling.sliding import SlidingCanvas, SlidingState, Window
from vdit.types import Array

NOTHING = "."
# The worlds that can be played (vdit.worlds), and what their actions mean.
_STEER = {"w": (0, -1), "a": (-1, 0), "s": (0, 1), "d": (1, 0), "q": (-1, -1), "e": (1, -1), "z": (-1, 1), "c": (1, 1)}
_BUTTONS = {key: (*map(float, _STEER[key]), 0.0) for key in "wasd"} | {"f": (0.0, 0.0, 1.0)}
_ORBIT = {"a": -30.0, "d": 30.0, "A": -45.0, "D": 45.0}  # degrees a second


def world_keys(world: str, width: int, fps: float) -> dict[str, tuple[float, ...]]:
    """The keys of a world's actions of `width` numbers at `fps` frames a second; of one that has none, only NOTHING."""
    keys: dict[str, tuple[float, ...]] = {NOTHING: (0.0,) * width}
    if world == "steer" and width == 2:
        keys |= {key: tuple(map(float, way)) for key, way in _STEER.items()}
    elif world == "buttons" and width == 3:  # x, y, fire (vdit.emulators)
        keys |= _BUTTONS
    elif world == "orbit" and width == 1:
        keys |= {key: (speed / fps / 10,) for key, speed in _ORBIT.items()}
    return keys


def action_shape(generator: Generator) -> tuple[int, int]:
    """(t, a): a step makes t frames, and what is done in each is a numbers. ConfigError for models not told of it."""
    if not generator.experiment.network.action_width:
        raise ConfigError("this model is not told what is done (data.actions=0): make long videos by `rollout`")
    return grouping_of(generator).step, generator.experiment.data.actions


class SimulatorOptions(Sampling, total=False):
    """Options of Simulator, which describes them."""

    window: int | None
    seed: int
    keep: bool | None


class Simulator:
    """A world model that is played: `step` takes an action and gives the frames that follow.

    It compiles once, at the first step. On several hosts, every host makes the same calls and gets the frames.

    Args:
        generator: of `vdit.load`, a model that was trained with actions.
        prompt: describes the world.
        start: how the world begins. An image [h w 3] of any size is scaled to cover `size` and cropped to its centre.
            Of frames [t h w 3] or a Clip, of multiples of VAE stride x patch, the last ones are given to the model.
            None: the model makes the first frames itself.
        actions: float32 [t a], what was done in the frames of `start` (vdit.data.conditions); None for nothing.
        size: (height, width); None is as in the experiment's `sample`.
        context: how many frames the model sees at most; at each step the oldest are dropped. None: as many as fit into
            `window` beside the new ones.
        **options: window, seed and keep (below), and the options of sampling (steps, guidance, ...), as
            vdit.generate.Generator has them. Few steps make it quick.
            window: frames of the longest canvas; None, the default, is the longest video that the model was trained on
            or is sampled at.
            seed: the same seed, start and actions give the same frames. Default 0.
            keep: cache keys and values of finished frames (vdit.sampling.kv), as causal models can; None, the default:
            where it is possible. Until the first frames are dropped, only rounding differs.

    Raises:
        ConfigError: the model was trained without actions.
        ShapeError: start, actions or size do not fit the model.

    Example:
        simulator = vdit.Simulator(generator, "a red circle that is steered", start=image)
        frames = simulator.step((1, 0))
    """

    def __init__(
        self,
        generator: Generator,
        prompt: str,
        *,
        start: Array | Video | None = None,
        actions: Array | None = None,
        size: tuple[int, int] | None = None,
        context: int | None = None,
        **options: Unpack[SimulatorOptions],
    ):
        window, seed, keep = options.pop("window", None), options.pop("seed", 0), options.pop("keep", None)
        config, self._action_shape = generator.experiment, action_shape(generator)
        if config.network.reference_channels:
            raise ConfigError("this model makes videos of images: it cannot go on from frames of its own")
        negative = options.pop("negative", "")
        self._generator, self._grouping = generator, grouping_of(generator)
        window = Window.of(self._grouping, window=window_of(generator, window), context=context)
        method = generator.method(given=True, **options)
        kv = use_kv(keep, config.network, method)
        self._engine = SlidingCanvas(
            model=generator, sampling=method, memory="kv" if kv else "latents",
            window=window.one_by_one(None if context is None else window.context),
        )  # fmt: skip
        generator.check_negative(negative, method)
        self._negative = generator.tokens([negative])
        self._size = tuple(config.sample.size if size is None else size)
        self._prompt, self._seed, self._start, self._actions = prompt, seed, start, actions
        self.reset()

    def __repr__(self) -> str:
        size, actions = "{}x{}".format(*self._frames.shape[1:3]), list(self._action_shape)
        return f"Simulator({self._prompt[:40]!r}, {size}, actions {actions}, seed {self._seed})"

    @property
    def action_shape(self) -> tuple[int, int]:
        """(t, a), see the function of this name."""
        return self._action_shape

    @property
    def frames(self) -> np.ndarray:
        """What is seen now, float32 [t h w 3] in [-1, 1]: the frames of the last step, or those of the beginning."""
        return self._frames

    @property
    def world(self) -> SlidingState:
        """All that the next step depends on but the prompt. Set it to one from before to try something else."""
        return self._world

    @world.setter
    def world(self, world: SlidingState) -> None:
        self._world = world

    def reset(
        self,
        *,
        start: Array | Video | None = None,
        actions: Array | None = None,
        prompt: str | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Begins again, as before but for what is given; gives the frames that it begins with."""
        if start is not None:
            self._start, self._actions = start, actions
        elif actions is not None:
            raise ConfigError("actions are those of the frames of start: give both")
        self._prompt = self._prompt if prompt is None else prompt
        self._seed = self._seed if seed is None else seed
        self._words = self._generator.tokens([self._prompt]), self._negative
        given = None if self._start is None else self._given(self._start)
        size = self._size if given is None else given.shape[1:3]
        generator, sampling = self._generator, self._engine.sampling
        generator.task(sampling, self._grouping.first, size, given=True)  # can the model make it?
        if given is None:
            canvas = first_canvas(generator, None, count=1, frames=self._grouping.first, size=size)
            state = self._engine.init(canvas, self._seed)
            self._world, frames = self._engine.step(state, self._words)
            self._frames = frames[0]
        else:
            self._world, self._frames = self._engine.init(self._known(given), self._seed), given
        return self._frames

    def step(self, action: Array) -> np.ndarray:
        """The next frames, float32 [t h w 3] in [-1, 1], when this is done.

        action: [a], done in each of these frames, or [t a] (action_shape).
        """
        action = {"action": self._checked_action(action).reshape(1, 1, -1)}
        self._world, frames = self._engine.step(self._world, self._words, action)
        self._frames = frames[0]
        return self._frames

    def run(self, actions: Iterable[Array]) -> Iterator[np.ndarray]:
        """A step for each of the actions."""
        return map(self.step, actions)

    def _checked_action(self, action: Array) -> np.ndarray:
        """float32 [t a]; ShapeError for anything else than `step` takes."""
        t, a = self.action_shape
        given = np.asarray(action, np.float32)
        if given.shape not in ((a,), (t, a)):
            several = f", or [{t} {a}], for each frame of a step" if t > 1 else ""
            raise ShapeError(f"action of shape {given.shape}: this model is told {a} numbers, give [{a}]{several}")
        if not np.isfinite(given).all():
            raise ShapeError(f"action {given.tolist()}: give finite numbers")
        return np.broadcast_to(given, (t, a))

    def _given(self, start: Array | Video) -> np.ndarray:
        """float32 [t h w 3]"""
        if np.ndim(start) == 3:
            return frames_of(fit_images(as_bytes(start), self._size))[0]
        return given_frames(self._generator, start, "start")[0]

    def _known(self, given: np.ndarray) -> Canvas:
        """The last of the given frames, and what was done in them."""
        grouping, actions = self._grouping, self._actions
        t, width = len(given), self._action_shape[1]
        actions = np.zeros((t, width), np.float32) if actions is None else np.asarray(actions, np.float32)
        if actions.shape != (t, width):
            raise ShapeError(f"actions of shape {actions.shape}: start has {t} frames, give [{t} {width}]")
        most = grouping.first + (self._engine.window.context - 1) * grouping.step
        known = max(grouping.head(min(t, most)), min(t, grouping.first))
        given, actions = given[-known:], np.concatenate([np.zeros((1, width), np.float32), actions[-known:][1:]])
        # Fewer frames than are made at once stand still to the end of their group, as far as the model is told.
        still = max(0, grouping.first - known)
        given = np.concatenate([given, np.repeat(given[-1:], still, axis=0)])
        actions = np.pad(actions, ((0, still), (0, 0)))
        canvas = first_canvas(self._generator, given[None], count=1, frames=len(given))
        experiment = self._generator.experiment
        actions = group_actions(actions, experiment.vae.temporal_stride, experiment.network.backbone.patch[0])[None]
        return dataclasses.replace(canvas, cond={"action": actions})
