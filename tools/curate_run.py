"""Three long films to a trained model, by `vdit curate` and `vdit train`, as a user starts them.

    python tools/curate_run.py films FOLDER            # three films of all real clips: bars, titles, duplicates, a stub
    python tools/curate_run.py train FOLDER            # curates them, then trains 20 steps, in a bucket on loopback
    python tools/curate_run.py runners FOLDER          # one process, two, and PortableRunner: the same index
    python tools/curate_run.py kills FOLDER --kills 20 # SIGKILL at random, workers included: the same index

The clips are those of ../shared/data (VDIT_TEST_DATA names another folder). Ends with status 1 if an output differs or
a command fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZE, RATE = (180, 320), 24.0
KEEP = "duration >= 1 and motion > 0.001 and black < 0.5"
NAME = "vdit-test"


def make_films(folder: Path, seconds: float | None) -> None:
    """Writes three films of all clips, a duplicate of a part of one, and a file that is cut short.

    seconds: of each clip, at most; None for all of it.
    """
    from tests.data_paths import DATA
    from vdit import write_video

    folder.mkdir(parents=True)
    clips = [path for path in sorted((DATA / "clips").iterdir()) if path.suffix in (".mp4", ".webm")]
    total = 0.0
    for number in range(3):
        counted = [0]
        write_video(folder / f"film{number}.mp4", _film(clips[number::3], number, seconds, counted), fps=RATE)
        total += counted[0] / RATE
        print(f"film{number}.mp4: {counted[0] / RATE:.0f} s", flush=True)
    copied = (frame[::2, ::2] for frame in _film(clips[0:4:3], 0, seconds, [0]))
    write_video(folder / "copy.mp4", copied, fps=RATE)
    data = (folder / "film2.mp4").read_bytes()
    (folder / "short.mp4").write_bytes(data[: len(data) // 3])
    lines = [{"file": f"film{number}.mp4", "caption": f"a scene of film {number}"} for number in range(3)]
    (folder / "captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    print(f"{folder}: {total:.0f} s in three films of {len(clips)} clips")


def _film(clips: list[Path], number: int, seconds: float | None, counted: list[int]) -> Iterator[np.ndarray]:
    """Frames of clips one after the other, the second film's with bars, each third one with a title after it."""
    from vdit.errors import VditError
    from vdit.video.read import iter_frames

    inner = (SIZE[0] - 48, SIZE[1]) if number == 1 else SIZE
    pad = (SIZE[0] - inner[0]) // 2
    for place, path in enumerate(clips):
        try:
            for _, frame in iter_frames(path, fps=RATE, duration=seconds, size=inner):
                counted[0] += 1
                yield np.pad(frame, ((pad, pad), (0, 0), (0, 0)))
        except VditError as error:
            print(f"left out, from frame {counted[0]} on: {error}")
        if place % 3 == 0:
            counted[0] += round(2 * RATE)
            yield from np.repeat(_title(path.stem), round(2 * RATE), 0)


def _title(text: str) -> np.ndarray:
    image = Image.new("RGB", SIZE[::-1], (8, 8, 24))
    ImageDraw.Draw(image).text((30, 80), text, fill=(255, 255, 255))
    return np.asarray(image)[None]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "vdit.cli.main", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def call(words: list[str], **more: str) -> str:
    done = subprocess.run(words, env=environment() | more, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def result(out: Path) -> dict[str, bytes]:
    """What must be the same, byte for byte: the index, the rows, and the shards."""
    names = sorted(file for file in out.iterdir() if file.suffix in (".json", ".jsonl", ".arrayrecord"))
    return {file.name: file.read_bytes() for file in names if file.name != "curate.json"}


def runners(folder: Path) -> None:
    """The same output by one process, by two, and by PortableRunner, the last two with films in ranges of 20 s."""
    ranges = ["--range-seconds", "20"]
    variants = {
        "one": [], "two": ["--workers", "2", *ranges],
        "portable": [*ranges, "--beam=--runner=PortableRunner", "--beam=--job_endpoint=embed",
                     "--beam=--environment_type=LOOPBACK"],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for name, more in variants.items():
            began = time.monotonic()
            call(command("curate", folder, f"{place}/{name}", "--keep", KEEP, *more))
            found[name] = result(Path(place) / name)
            print(f"{name}: {len(found[name])} files, {time.monotonic() - began:.0f} s", flush=True)
        same = all(files == found["one"] for files in found.values())
        print("the same bytes" if same else "THEY DIFFER")
        raise SystemExit(0 if same else 1)


def kills(folder: Path, count: int, seed: int) -> None:
    """Kills the whole process group, or one process of it, again and again, at moments within what a run has left."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        words = ["--keep", KEEP, "--workers", "2"]
        seconds = []
        for _ in range(2):  # from nothing, and when all is there
            began = time.monotonic()
            call(command("curate", folder, f"{place}/whole", *words))
            seconds.append(time.monotonic() - began)
        whole, (full, idle) = result(Path(place) / "whole"), seconds
        print(f"{full:.0f} s from nothing, {idle:.0f} s when all is there", flush=True)
        killed = rounds = 0
        while killed < count:
            rounds += 1
            out, left = Path(place) / f"out{rounds}", max(full - idle, 1.0)
            while killed < count:
                process = subprocess.Popen(command("curate", folder, out, *words), env=environment(),
                                           start_new_session=True, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.DEVNULL)  # fmt: skip
                moment = rng.uniform(0.1, 0.95) * (idle + left)
                try:
                    process.wait(moment)
                    idle = min(idle, moment)  # the machine is quicker than it was: kill sooner
                    break
                except subprocess.TimeoutExpired:
                    told = _kill(process, rng, 0.1 * idle)
                killed += 1
                left = max(left - max(moment - idle, 0.0), 0.0)
                print(f"kill {killed}, after {moment:.0f} s: {told}", flush=True)
            call(command("curate", folder, out, *words))
            if result(out) != whole:
                raise SystemExit(f"after {killed} kills the output differs from a run that was never stopped")
            print(f"round {rounds}: the same bytes", flush=True)
        print(f"{killed} kills in {rounds} runs: each ended with the same bytes")


def _kill(process: subprocess.Popen, rng: random.Random, seconds: float) -> str:
    """Kills all processes of a command, or one and after some seconds the others; which, in words."""
    members = _members(process.pid)
    alone = rng.random() < 0.5 and len(members) > 1
    if alone:  # a worker or a decoder: the command may go on, or fail
        os.kill(rng.choice(members[1:]), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    _end(process.pid)
    process.wait()
    return f"one of {len(members)} processes, then all" if alone else f"{len(members)} processes"


def _members(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.getpgid(int(entry.name)) == group:
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(found, key=lambda pid: pid != group)


def _end(group: int) -> None:
    for pid in _members(group):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


def train(folder: Path) -> None:
    """Curates into a bucket on loopback, and trains on what is there."""
    from tests.loopback import Buckets
    from tools.bucket_run import SMALL
    from vdit import paths

    with Buckets(NAME) as server, tempfile.TemporaryDirectory() as cache:
        os.environ.update(server.environment())
        more = {"VDIT_FILE_CACHE": cache}
        root = f"gs://{NAME}"
        paths.copy_folder(folder, f"{root}/films")
        print(call(command("curate", f"{root}/films", f"{root}/curated", "--keep", KEEP), **more), flush=True)
        changes = {"dit_train.steps": "20", "dit_train.save_every": "20"}
        small = [word for word in SMALL if word.split("=")[0] not in changes]
        small += [f"{key}={value}" for key, value in changes.items()]
        print(call(command("train", "--data", f"{root}/curated", "--workdir", f"{root}/run",
                           *(f"--cfg.{word}" for word in small)), **more)[-800:])  # fmt: skip
        steps = [json.loads(line)["step"] for line in server.objects[NAME, "run/logs/dit.jsonl"].decode().splitlines()]
        if steps != list(range(1, 21)):
            raise SystemExit(f"the log holds the steps {steps}, must hold 1 to 20")
        print(f"trained {len(steps)} steps on {root}/curated; {len(server.asked)} requests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["films", "train", "runners", "kills"])
    parser.add_argument("folder", type=Path, help="of the films")
    parser.add_argument("--seconds", type=float, help="of each clip in a film, at most; default: all")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    match args.what:
        case "films":
            make_films(args.folder, args.seconds)
        case "train":
            train(args.folder)
        case "runners":
            runners(args.folder)
        case "kills":
            kills(args.folder, args.kills, args.seed)


if __name__ == "__main__":
    main()
