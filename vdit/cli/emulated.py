"""`vdit eval runs/pong --emulator pong_test`: what runs show beside the emulator that they were trained on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdit.cli.parser import UsageError
from vdit.outputs import write_whole

if TYPE_CHECKING:
    from vdit.cli.status import Status
    from vdit.emulators import Replay
    from vdit.eval.evaluate import Case, VideoSet
    from vdit.train.predictor import Predictor

METRICS = ("psnr", "ssim", "game_things", "game_events")
GIVEN, HORIZON, MOMENTS = 8, 64, 32  # frames before, frames after, and how often
BESIDE, PREDICTOR = "beside.mp4", "predictor.safetensors"
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
    chosen = list(
        replays(options.emulator, count=options.videos or MOMENTS, given=options.given, horizon=horizon)
    )  # fmt: skip
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
            predictor = train_predictor(
                source.path, config, tell=lambda step, loss: display.update(step, {"loss": loss})
            )  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        predictor.save(out / PREDICTOR, note)
        spent = f", trained in {time.monotonic() - began:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"
    else:
        spent = f", of {out / PREDICTOR}"
    status.tell("predictor", f"{predictor.size / 1e3:.0f} thousand parameters, {config.steps} steps{spent}")
    return predictor


def write_beside(shown: Sequence[Mapping[str, Case]], out: Path, status: Status) -> None:
    """One video of all that the page shows, emulator and models side by side, one after the other."""
    import numpy as np

    from vdit.video.beside import side_by_side
    from vdit.video.read import write_video

    parts = []
    for cases in shown:
        first = next(iter(cases.values()))
        parts.append(side_by_side({"emulator": first.truth} | {name: case.video for name, case in cases.items()}))
    if not parts:
        return
    whole = lambda part: write_video(part, np.concatenate(parts), fps=first.fps)  # noqa: E731
    write_whole(out / BESIDE, whole, replace=True)
    status.wrote(out / BESIDE)
    print(out / BESIDE, flush=True)
