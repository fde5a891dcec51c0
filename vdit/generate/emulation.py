"""World models beside the emulator that they were trained on: same state, same actions.

    chosen = list(replays("pong_test", count=32, given=8, horizon=64))
    made = played_videos("pong", generator, chosen)          # a VideoSet of vdit.eval, each with its truth
    still = repeated_videos(chosen)                          # the last frame, again and again
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np

from vdit.emulators.replay import Replay
from vdit.errors import ConfigError
from vdit.eval.evaluate import Case, VideoSet
from vdit.eval.games import game_of
from vdit.generate.generator import Generator
from vdit.generate.images import as_bytes
from vdit.generate.simulator import Simulator, SimulatorOptions, action_shape
from vdit.train.predictor import Predictor


def played_videos(
    name: str, generator: Generator, replays: Sequence[Replay], **options: Unpack[SimulatorOptions]
) -> VideoSet:
    """What a world model shows when it is given what was before, and the same is done.

    Args:
        name: of the set.
        generator: a model that was trained with actions.
        replays: of the emulator, all with as many frames before.
        **options: seed, window, and those of sampling, as vdit.generate.Simulator has them.

    Raises:
        ConfigError: the model takes other actions, or none.
    """
    player = Player(generator, **options)
    for replay in replays[:1]:
        player.check(replay)
    return emulated_videos(name, replays, player)


def repeated_videos(replays: Sequence[Replay], name: str = "last frame") -> VideoSet:
    """The last frame that was seen before, again and again."""
    return emulated_videos(name, replays, lambda replay: np.repeat(replay.before[-1:], len(replay.actions), axis=0))


def predicted_videos(replays: Sequence[Replay], predictor: Predictor, name: str = "predictor") -> VideoSet:
    """What a small deterministic network says."""
    return emulated_videos(
        name, replays, lambda replay: predictor.predict(replay.before, replay.before_actions, replay.actions)
    )


def emulated_videos(name: str, replays: Sequence[Replay], make: Callable[[Replay], np.ndarray]) -> VideoSet:
    """A set of videos of replays, each with what the emulator shows as its truth.

    Args:
        name: of the set.
        replays: of the emulator.
        make: gives uint8 [n h w 3] after the frames before.
    """

    def case(replay: Replay) -> Case:
        made = make(replay)
        return Case(
            name=replay.name, video=np.concatenate([replay.before, made]), fps=replay.fps, caption=replay.caption,
            truth=np.concatenate([replay.before, replay.after]), given=len(replay.before),
            scene={"world": game_of(replay.env)},
        )  # fmt: skip

    return VideoSet(name=name, cases=[lambda replay=replay: case(replay) for replay in replays])


class Player:
    """Plays replays by one simulator, which is compiled once.

    Args:
        generator: a model that was trained with actions, frame by frame.
        **options: of vdit.generate.Simulator.

    Raises:
        ConfigError: a step of the model makes several frames.
    """

    def __init__(self, generator: Generator, **options: Unpack[SimulatorOptions]):
        frames, self.width = action_shape(generator)
        if frames != 1:
            raise ConfigError(f"a step of this model makes {frames} frames, one of an emulator 1: train one that "
                              "makes 1 (vae.temporal_stride=1)")  # fmt: skip
        self._generator, self._options = generator, options
        self._simulator: Simulator | None = None

    def check(self, replay: Replay) -> None:
        """ConfigError where the model was not trained on such an emulator."""
        fps = self._generator.experiment.sample.fps
        if replay.actions.shape[1] != self.width or abs(fps - replay.fps) > 1e-6 * fps:
            theirs = f"{replay.env} takes {replay.actions.shape[1]} at {replay.fps:g}"
            raise ConfigError(f"the model is told {self.width} numbers at {fps:g} frames a second, {theirs}: give "
                              "episodes of its own emulator")  # fmt: skip

    def __call__(self, replay: Replay) -> np.ndarray:
        """uint8 [n h w 3], what the model shows after the frames before."""
        start = {"start": replay.before.astype(np.float32) / 127.5 - 1, "actions": replay.before_actions}
        if self._simulator is None:
            self._simulator = Simulator(self._generator, replay.caption, **start, **self._options)
        else:
            self._simulator.reset(prompt=replay.caption, **start)
        return np.concatenate([as_bytes(frames) for frames in self._simulator.run(replay.actions)])
