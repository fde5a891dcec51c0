"""`vdit eval runs/pong --emulator pong_test`: what runs show beside the emulator that they were trained on."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdit.cli import canvas, output
from vdit.cli.parser import UsageError
from vdit.outputs import write_whole

if TYPE_CHECKING:
    from vdit.cli.status import Status
    from vdit.emulators import Replay
    from vdit.eval.evaluate import Case, VideoSet
    from vdit.generate import Generator
    from vdit.train.predictor import Predictor

METRICS = ("psnr", "ssim", "game_things", "game_events")
GIVEN, HORIZON, MOMENTS = 8, 64, 32  # frames before, frames after, and how often
BESIDE, STRIPS, PREDICTOR = "beside.mp4", "beside.png", "predictor.safetensors"
FILES = (BESIDE, STRIPS, PREDICTOR)
_COLUMNS, _PICTURED = 6, 2  # frames of each video in the picture; how many plays it shows
_NOT = ("real", "size", "fps", "vbench", "physics_iq", "vbench_results", "features")


def check(options: argparse.Namespace, runs: Sequence[bool]) -> None:
    """UsageError where --emulator does not go with what else is given; fills in what it takes by default."""
    given = [name for name in _NOT if getattr(options, name)]
    if given or options.seeds > 1:
        name = given[0].replace("_", "-") if given else "seeds"
        raise UsageError(f"--{name}: does not go with --emulator, which compares with what the emulator shows")
    if not all(runs):
        raise UsageError(f"--emulator: is for runs, and {options.sets[list(runs).index(False)]} is a folder of videos")
    options.given = options.given or GIVEN
    options.frames = options.frames or options.given + HORIZON
    if options.frames <= options.given:
        raise UsageError(f"--frames {options.frames}: with {options.given} given there is nothing to compare")
    if options.metrics is None:
        options.metrics = list(METRICS)


def sets(options: argparse.Namespace, names: Sequence[str], out: Path, status: Status) -> list[VideoSet]:
    """The videos of the runs, of a predictor, and of the last frame; all from the emulator's states and actions."""
    from vdit.cli.status import shown_model
    from vdit.emulators import replays
    from vdit.eval.games import GAMES, game_of
    from vdit.generate import open_generator
    from vdit.generate.emulation import played_videos, predicted_videos, repeated_videos

    horizon = options.frames - options.given
    moments = options.videos or MOMENTS
    chosen = list(replays(options.emulator, count=moments, given=options.given, horizon=horizon))
    env = chosen[0].env
    status.tell("emulator", f"{env}, from {len(chosen)} states of {options.emulator}: {options.given} frames before, "
                            f"{horizon} after, {horizon / chosen[0].fps:.3g} s")  # fmt: skip
    if game_of(env) not in GAMES:
        status.tell("reads", f"no things or events of {env}: only frames are compared")
        options.metrics = [name for name in options.metrics if not name.startswith("game_")]
    sampling = {key: getattr(options, key) for key in ("steps", "guidance") if getattr(options, key) is not None}
    found, sources = [], []
    for name, place in zip(names, options.sets):
        generator = open_generator(place, loading=status.loading)
        status.tell("model", shown_model(place, generator.experiment))
        found.append(played_videos(name, generator, chosen, seed=options.seed, **sampling))
        sources.append(generator.experiment.data.source)
    if options.predictor_steps:
        predictor = _predictor(options, sources[0], chosen[0], out, status)
        found += [] if predictor is None else [predicted_videos(chosen, predictor)]
    return [*found, repeated_videos(chosen)]


def _predictor(
    options: argparse.Namespace, source: object, replay: Replay, out: Path, status: Status
) -> Predictor | None:
    """One that is trained on the episodes of the first run, or was so for an evaluation in this folder before."""
    from vdit import paths
    from vdit.data.data_source import EpisodesSource
    from vdit.data.episodes import read_index
    from vdit.train.predictor import PredictorConfig, load_predictor, train_predictor

    if not isinstance(source, EpisodesSource) or not paths.exists(paths.path(source.path) / "index.json"):
        place = getattr(source, "path", "")
        status.tell("predictor", f"none: the episodes of training ({place or 'data.source'}) are not here")
        return None
    config = PredictorConfig(steps=options.predictor_steps)
    note = {"index": read_index(paths.path(source.path)), "side": list(replay.before.shape[1:3])}
    predictor = load_predictor(out / PREDICTOR, config, note)
    if predictor is None:
        began, cpu = time.monotonic(), time.process_time()
        with status.progress("predictor", config.steps) as display:
            tell = lambda step, loss: display.update(step, {"loss": loss})  # noqa: E731
            predictor = train_predictor(source.path, config, tell=tell)
        out.mkdir(parents=True, exist_ok=True)
        predictor.save(out / PREDICTOR, note)
        spent = f", trained in {time.monotonic() - began:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"
    else:
        spent = f", of {out / PREDICTOR}"
    status.tell("predictor", f"{predictor.size / 1e3:.0f} thousand parameters, {config.steps} steps{spent}")
    return predictor


def check_play(options: argparse.Namespace, words: canvas.Words) -> None:
    """UsageError where `vdit simulate --beside` does not go with what else is given."""
    if words.inputs:
        raise UsageError(f"{words.inputs[0]}: with --beside a moment of an episode is the start: leave the file out")
    for name in ("interactive", "size", "fps", "context", "show"):
        if getattr(options, name):
            raise UsageError(f"--{name}: does not go with --beside: leave it out")
    if len(canvas.seeds(options)) > 1:
        raise UsageError("--beside: shows one play: give one --seed")


def play_beside(
    options: argparse.Namespace, generator: Generator, prompt: str, rows: Sequence[Sequence[float]], status: Status
) -> None:  # fmt: skip
    """Plays the emulator and the model from one moment by the same actions, and writes both as one video."""
    import numpy as np

    from vdit.data.episodes import EpisodesDataset
    from vdit.emulators import moments, open_emulator, play_on
    from vdit.generate.emulation import Player
    from vdit.video.beside import side_by_side
    from vdit.video.read import write_video

    episodes = EpisodesDataset(options.beside)
    every, number = moments(episodes, given=GIVEN, horizon=0), options.moment or 0
    if number >= len(every):
        raise UsageError(f"--moment {number}: {options.beside} has {len(every)} moments, counted from 0")
    moment, seed = every[number], canvas.seeds(options)[0]
    player = Player(generator, window=options.window, **canvas.sampling(options, seed))
    episode = episodes.open(moment.episode)
    emulator = open_emulator(episodes.index["env"], size=tuple(episodes.index["size"]))
    try:
        emulator.reset(0)
        actions = np.asarray(rows, np.float32)
        replay = play_on(emulator, episode, moment, given=GIVEN, actions=actions)
    finally:
        emulator.close()
    player.check(replay)
    where = canvas.target(options, seed)
    status.tell("emulator", f"{replay.env}, from frame {moment.frame} of {episode.id}")
    status.tell("makes", f"{len(actions)} frames of emulator and model side by side -> {where.path}")
    made = player(dataclasses.replace(replay, caption=prompt or replay.caption))
    page = side_by_side({
        "emulator": np.concatenate([replay.before, replay.after]), "model": np.concatenate([replay.before, made]),
    })  # fmt: skip
    status.wrote(output.put(where, lambda part: write_video(part, page, fps=replay.fps)))


def write_beside(shown: Sequence[Mapping[str, Case]], out: Path, status: Status) -> None:
    """A video of all that the page shows, emulator and models side by side, play after play; a picture of two plays."""
    import numpy as np
    from PIL import Image

    from vdit.video.beside import side_by_side, strips
    from vdit.video.read import write_video

    if not shown:
        return
    plays = []
    for cases in shown:
        first = next(iter(cases.values()))
        plays.append({"emulator": first.truth} | {name: case.video for name, case in cases.items()})
    frames = np.linspace(first.given, len(first.video) - 1, _COLUMNS).astype(int).tolist()
    parts, rows = [side_by_side(play) for play in plays], [strips(play, frames) for play in plays[:_PICTURED]]
    picture = Image.fromarray(np.concatenate(rows))
    write_whole(out / BESIDE, lambda part: write_video(part, np.concatenate(parts), fps=first.fps), replace=True)
    write_whole(out / STRIPS, lambda part: picture.save(part, "PNG"), replace=True)
    for name in (BESIDE, STRIPS):
        status.wrote(out / name)
        print(out / name, flush=True)
