"""`vdit record`: plays an emulator and keeps what was seen, done, and gained."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from vdit import paths
from vdit.cli.parser import Command, UsageError, at_least, seed, size


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", metavar="ENV", help="ALE/Pong-v5, vizdoom/deadly_corridor, HalfCheetah-v5, ...")
    parser.add_argument("out", metavar="OUT", help="a new folder on this disk")
    parser.add_argument("--episodes", type=at_least(1), default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--frames", type=at_least(2), default=256, metavar="N", help="of each; default: %(default)s")
    parser.add_argument(
        "--policy", default="random", metavar="NAMES",
        help="random (any), follow (Pong), or several that take turns: random+follow; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--skip", type=at_least(0), default=200, metavar="N",
        help="frames played before each episode, at most; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--size", type=size, default=(64, 64), metavar="HxW", help="default: 64x64")
    parser.add_argument("--seed", type=seed, default=0, help="the same seed, the same episodes; default: %(default)s")


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    if paths.is_remote(options.out):
        raise UsageError(f"{options.out}: episodes are recorded on this disk; copy them to a bucket afterwards")
    from vdit.cli.status import Status
    from vdit.emulators import Recording, record

    recording = Recording(
        env=options.env, episodes=options.episodes, frames=options.frames, size=options.size, seed=options.seed,
        policies=tuple(options.policy.split("+")), skip=options.skip,
    )  # fmt: skip
    with Status("record") as status:
        status.tell("plays", f"{recording.env}, policies {', '.join(recording.policies)}, seed {recording.seed}")
        high, wide = recording.size
        status.tell("makes", f"{recording.episodes} episodes of at most {recording.frames} frames, {wide}x{high} "
                             f"-> {options.out}")  # fmt: skip
        with status.progress("episodes", recording.episodes) as display:
            index = record(recording, options.out, tell=lambda episodes, frames: display.update(episodes, {}))
        status.wrote(Path(options.out))
        print(f"{index['frames_recorded']} frames at {index['fps']:g} a second, {index['actions']} numbers an action, "
              f"{sum(shard['bytes'] for shard in index['shards']) / 2**20:.1f} MiB", flush=True)  # fmt: skip
        if "Pong" in recording.env:
            place = shlex.quote(options.out)
            status.next = f"vdit train experiments/pong.py --out runs/pong --cfg.data.source.path={place}"
    return 0


RECORD = Command(
    summary="play an Atari game, Doom or a MuJoCo body, and record it for a world model",
    description="""\
Plays an environment of gymnasium (the extra `gym`) or of ViZDoom (the extra `doom`) and writes its frames, actions,
rewards, what the emulator knows (an Atari console's memory, positions and speeds) and saved states to ArrayRecord
shards. The folder appears when it is complete; the same command goes on with what an interrupted one has left. An
action of a game is three numbers: x (to the right), y (down), fire; in Pong, right is up; in Doom, x turns and y = -1
goes forward.""",
    epilog="""\
examples:
  vdit record ALE/Pong-v5 pong --episodes 96 --policy random+follow
  vdit train experiments/pong.py --out runs/pong --cfg.data.source.path=pong
  vdit record vizdoom/my_way_home corridor --episodes 96
  MUJOCO_GL=egl vdit record HalfCheetah-v5 cheetah --episodes 64""",
    add_arguments=_add_arguments,
    run=_run,
)
