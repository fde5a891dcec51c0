"""Moments of recorded episodes from which an emulator goes on again: what was seen before them, done and seen after.

    for replay in replays("pong_test", count=32, given=8, horizon=64):
        replay.before, replay.actions, replay.after
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdit.data.episodes import Episode, EpisodesDataset
from vdit.emulators.base import Emulator, open_emulator
from vdit.errors import DataError
from vdit.reprs import short_repr

_SEED = 7  # of the choice of moments


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What an emulator shows from a saved state on.

    Attributes:
        name: episode and frame.
        env: of the environment.
        caption: of the episode.
        fps: frames a second.
        before: uint8 [k h w 3], up to the frame of the saved state.
        before_actions: float32 [k a], each led to its frame.
        actions: float32 [n a], what is done afterwards.
        after: uint8 [n h w 3], what the emulator shows then.
        rewards: float32 [n], of these steps.
    """

    name: str
    env: str
    caption: str
    fps: float
    before: np.ndarray
    before_actions: np.ndarray
    actions: np.ndarray
    after: np.ndarray
    rewards: np.ndarray


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """A saved state of an episode. episode: its number in the folder. state: that of the state. frame: of the state."""

    episode: int
    state: int
    frame: int


def moments(episodes: EpisodesDataset, *, given: int, horizon: int) -> list[Moment]:
    """All saved states that have enough frames before them and actions after them, in a fixed random order.

    Args:
        episodes: of `vdit record`.
        given: frames up to the state's own.
        horizon: actions after it.
    """
    found = []
    for number in range(len(episodes)):
        episode = episodes.open(number)
        last = len(episode.video) - 1 - horizon
        found += [Moment(episode=number, state=state, frame=int(frame))
                  for state, frame in enumerate(episode.state_at) if given - 1 <= frame <= last]  # fmt: skip
    order = np.random.default_rng(_SEED).permutation(len(found))
    return [found[i] for i in order]


def play_on(emulator: Emulator, episode: Episode, moment: Moment, *, given: int, actions: np.ndarray) -> Replay:
    """Puts the emulator back to a moment of an episode, and does something there.

    Args:
        emulator: of the episode's environment and size.
        episode: that has the state.
        moment: of it.
        given: frames to show of before.
        actions: float32 [n a].

    Raises:
        DataError: the state is not of this emulator, or its game ends before the last action.
    """
    emulator.restore(episode.state(moment.state))
    screens = []
    for action in actions:
        screens.append(emulator.step(action))
        if screens[-1].ended and len(screens) < len(actions):
            raise DataError(f"{episode.id} ends {len(screens)} frames after frame {moment.frame}: take fewer frames")
    first, end = moment.frame + 1 - given, moment.frame + 1
    return Replay(
        name=f"{episode.id}-{moment.frame:04d}", env=emulator.name, caption=episode.captions[0], fps=episode.fps,
        before=episode.video[first:end], before_actions=episode.actions[first:end], actions=actions,
        after=np.stack([screen.frame for screen in screens]),
        rewards=np.array([screen.reward for screen in screens], np.float32),
    )  # fmt: skip


def replays(path: str | Path, *, count: int, given: int, horizon: int) -> Iterator[Replay]:
    """What the emulator shows from recorded states on, when the recorded actions are done again.

    Args:
        path: a folder of `vdit record`.
        count: of replays, at most.
        given: frames before; the last of them is that of the state.
        horizon: frames after.

    Raises:
        DataError: the folder is none, or no state has so many frames around it.
        ConfigError: the emulator is not installed.
    """
    episodes = EpisodesDataset(path)
    chosen = moments(episodes, given=given, horizon=horizon)[:count]
    if not chosen:
        raise DataError(f"{path}: no saved state has {given} frames up to it and {horizon} after it: ask for fewer")
    emulator = open_emulator(episodes.index["env"], size=tuple(episodes.index["size"]))
    try:
        emulator.reset(0)
        for moment in chosen:
            episode = episodes.open(moment.episode)
            actions = episode.actions[moment.frame + 1 :][:horizon]
            yield play_on(emulator, episode, moment, given=given, actions=actions)
    finally:
        emulator.close()
