"""Episodes of an emulator, recorded to a folder: the same for a seed, gone on with after an interruption."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vdit import paths
from vdit.data.episodes import FORMAT, Episode, write_episodes
from vdit.data.latents import INDEX
from vdit.emulators.base import Emulator, open_emulator
from vdit.emulators.policies import POLICIES, make_policy
from vdit.errors import ConfigError, DataError
from vdit.outputs import check_new_folder

_NOTE = "recording.json"  # of a folder that is not complete: what is recorded there
_SHARD = 8  # episodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """What is recorded.

    env: name of an environment (vdit.emulators.open_emulator). episodes: how many. frames: of each, fewer where it ends
    before. policies: take turns. skip: at most so many frames are played, and not recorded, before each episode.
    state_every: frames from one saved state to the next. size: (height, width) in pixels. seed: of every random choice.
    """

    env: str
    episodes: int = 64
    frames: int = 256
    policies: tuple[str, ...] = ("random",)
    skip: int = 200
    state_every: int = 16
    size: tuple[int, int] = (64, 64)
    seed: int = 0

    def __post_init__(self):
        for name, least in (("episodes", 1), ("frames", 2), ("skip", 0), ("state_every", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least {least}")
        unknown = [name for name in self.policies if name not in POLICIES]
        if unknown or not self.policies:
            raise ConfigError(f"policies={self.policies}: choose of {', '.join(POLICIES)}")


def record(
    recording: Recording, path: str | Path, *, tell: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Records episodes to a new folder, which appears when it is complete.

    What an interrupted call has recorded is beside it, and is gone on with.

    Args:
        recording: what.
        path: the folder, on this disk.
        tell: called with the numbers of episodes and frames that are recorded so far.

    Returns:
        The index of the folder.

    Raises:
        ConfigError: the environment cannot be opened, or a policy does not suit it.
        OutputError: the folder is not empty.
        DataError: another recording of this name was begun, or a file cannot be written.

    Example:
        record(Recording(env="ALE/Pong-v5", policies=("random", "follow")), "pong")
    """
    target = Path(path)
    check_new_folder(target)
    work = target.parent / f".{target.name}.recording"
    work.mkdir(parents=True, exist_ok=True)
    note = json.dumps(dataclasses.asdict(recording) | {"format": FORMAT}, sort_keys=True)
    if (work / _NOTE).exists():
        if (work / _NOTE).read_text() != note:
            raise DataError(f"{work} holds the beginning of another recording: remove it, or record as before")
    else:
        paths.write_atomic(work / _NOTE, note)
    emulator = open_emulator(recording.env, size=recording.size)
    shards: list[dict[str, Any]] = []
    try:
        for number in range(-(-recording.episodes // _SHARD)):
            told = work / f"episodes-{number:05d}.json"
            if told.exists():
                shards.append(json.loads(told.read_text()))
            else:
                chosen = range(number * _SHARD, min((number + 1) * _SHARD, recording.episodes))
                file = work / f"episodes-{number:05d}.arrayrecord"
                shards.append(write_episodes(file, (_play(emulator, recording, episode) for episode in chosen)))
                paths.write_atomic(told, json.dumps(shards[-1]))
            if tell is not None:
                tell(sum(s["records"] for s in shards), sum(s["frames"] for s in shards))
        fps, width = emulator.fps, emulator.width
    finally:
        emulator.close()
    index = {"format": FORMAT, **dataclasses.asdict(recording), "fps": fps, "actions": width, "shards": shards,
             "frames_recorded": sum(shard["frames"] for shard in shards)}  # fmt: skip
    for left in [work / _NOTE, *work.glob("*.json"), *work.glob(".*.part")]:
        left.unlink(missing_ok=True)
    paths.write_atomic(work / INDEX, json.dumps(index, indent=1))
    if target.exists():
        target.rmdir()  # empty: checked above
    work.rename(target)
    return index


def _play(emulator: Emulator, recording: Recording, number: int) -> Episode:
    """Episode `number`: depends on nothing else than the recording and this number."""
    random = np.random.default_rng((recording.seed, number))
    seed, name = int(random.integers(2**31)), recording.policies[number % len(recording.policies)]
    frame = emulator.reset(seed)
    act = make_policy(name, emulator, random)
    for _ in range(int(random.integers(recording.skip + 1))):
        frame, _, ended = emulator.step(act())
        if ended:
            frame = emulator.reset(seed)
    rows = [(frame, np.zeros(emulator.width, np.float32), 0.0, emulator.facts())]
    states = [emulator.save()]
    while len(rows) < recording.frames:
        action = act()
        frame, reward, ended = emulator.step(action)
        rows.append((frame, action, reward, emulator.facts()))
        if (len(rows) - 1) % recording.state_every == 0:
            states.append(emulator.save())
        if ended:
            break
    video, actions, rewards, facts = zip(*rows)
    game, caption = _titles(recording.env)
    return Episode(
        id=f"{game.lower()}-{number:05d}", captions=(caption,),
        fps=emulator.fps, seed=seed, policy=name, video=np.stack(video), actions=np.stack(actions).astype(np.float32),
        rewards=np.array(rewards, np.float32), facts=np.stack(facts),
        states=np.frombuffer(b"".join(states), np.uint8), state_ends=np.cumsum([len(state) for state in states]),
        state_at=(np.arange(len(states)) * recording.state_every).astype(np.int32),
    )  # fmt: skip


def _titles(env: str) -> tuple[str, str]:
    """"ALE/Pong-v5" -> ("Pong", "a game of Pong"); "vizdoom/basic" -> ("basic", "Doom, basic"); ("Ant", "Ant")."""
    kind, _, name = env.rpartition("/")
    if kind == "vizdoom":
        return name, f"Doom, {name.replace('_', ' ')}"
    game = name.rpartition("-")[0] or name
    return game, f"a game of {game}" if kind == "ALE" else game
