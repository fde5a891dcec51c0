"""Every command on real clips at their own sizes: does it run, and does it keep the given frames and pixels?

    python tools/clips_tasks.py runs/clips --data ../shared/data/clips --out clips_tasks

RUN is a run of experiments/clips.py. Of each clip the first frames are written without loss at the clip's own size,
cut to whole blocks; then each command is run on it, as a user would run it, into a file without loss, and what it
was given is compared bit for bit with what came back. Writes OUT/report.html and OUT/results.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import vdit
from vdit.cli import main as command_line
from vdit.eval.page import Page
from vdit.generate.inputs import read_input

CLIPS = (
    "torchcodec_nasa_13013.mp4", "exo_bear_vp9.webm", "exo_roadtrip_vp9_10bit.webm", "exo_portrait_paper_1.mp4",
)  # fmt: skip
FRAMES = 21  # of each clip
MADE = 8  # frames that are made where a task makes some
STEPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A command. arguments: of a clip's file and first frame; kept: (made, given) -> whether what was given is."""

    name: str
    arguments: Callable[[Path, Path], list[str]]
    options: list[str]
    kept: Callable[[np.ndarray, np.ndarray], bool] | None


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def outside(made: np.ndarray, given: np.ndarray) -> bool:
    """Whether all that is not in the middle half of the frame (inpaint's box, below) is as it was."""
    _, h, w, _ = given.shape
    mask = np.ones((h, w), bool)
    mask[h // 4 : h - h // 4, w // 4 : w - w // 4] = False
    return same(made[:, mask], given[: len(made)][:, mask])


def inside(made: np.ndarray, given: np.ndarray) -> bool:
    """Whether the given frames stand in the middle of larger ones."""
    top, left = ((a - b) // 2 for a, b in zip(made.shape[1:3], given.shape[1:3]))
    return same(made[:, top : top + given.shape[1], left : left + given.shape[2]], given[: len(made)])


def tasks(height: int, width: int) -> list[Task]:
    """The commands, for clips of this size."""
    clip, image = lambda file, _: [str(file)], lambda _, first: [str(first)]
    made, own, wide = str(MADE), f"{height}x{width}", f"{height}x{-(-width * 5 // 4) // 16 * 16}"
    return [
        Task(name="sample", arguments=lambda *_: [], options=["--frames", "17", "--size", own], kept=None),
        Task(name="animate", arguments=image, options=["--frames", "17"], kept=lambda v, g: same(v[:1], g[:1])),
        Task(name="extend", arguments=clip, options=["--after", made, "--before", made],
             kept=lambda v, g: same(v[MADE : MADE + len(g)], g) and len(v) == len(g) + 2 * MADE),
        Task(name="loop", arguments=clip, options=["--passage", made],
             kept=lambda v, g: same(v[: len(g)], g) and len(v) == len(g) + MADE),
        Task(name="connect", arguments=lambda file, _: [str(file), str(file)], options=["--frames", made],
             kept=lambda v, g: same(v[: len(g)], g) and same(v[len(g) + MADE :], g)),
        Task(name="connect --blend", arguments=lambda file, _: [str(file), str(file)], options=["--frames", made],
             kept=lambda v, g: same(v[: len(g) - MADE], g[:-MADE]) and same(v[len(g) :], g[MADE:])),
        Task(name="edit", arguments=clip, options=["--strength", "0.5"], kept=None),
        Task(name="inpaint", arguments=clip, options=["--box", "25%,25%,50%,50%"], kept=outside),
        Task(name="inpaint --outpaint", arguments=clip, options=[wide], kept=inside),
        Task(name="rollout", arguments=clip, options=["--frames", str(3 * FRAMES)],
             kept=lambda v, g: same(v[: len(g)], g) and len(v) == 3 * FRAMES),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of experiments/clips.py")
    parser.add_argument("--data", default="../shared/data/clips", help="the folder of clips; default: %(default)s")
    parser.add_argument("--clips", nargs="*", default=CLIPS, metavar="FILE", help="names in it")
    parser.add_argument("--out", default="clips_tasks", help="default: %(default)s")
    options = parser.parse_args()
    data, out = Path(options.data), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    lines = (data / "captions.jsonl").read_text().splitlines()
    captions = {line["file"]: line["caption"] for line in map(json.loads, lines)}
    experiment = vdit.load(options.run).experiment
    fps = experiment.sample.fps  # at which the commands take their inputs
    page = Page("vdit: every command on real clips", "What was given is compared bit for bit with what came back.")
    rows = []
    for name in options.clips:
        given = prepare(data / name, out, experiment.size_multiple, fps)
        cards, prompt = [(given, f"{name}: given")], captions[name]
        for task in tasks(*given.shape[1:3]):
            row, video = run(task, options.run, prompt, out / name, given)
            rows.append(row | {"clip": name, "size": "{1}x{0}".format(*given.shape[1:3])})
            print("  ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
            cards.append((video, task.name, None if task.kept is None else "ok" if row["kept"] == "yes" else "wrong"))
        page.videos(cards, fps, title=name, columns=4)
    headers = list(rows[0])
    page.table(headers, [[row[key] for key in headers] for row in rows], title="Runs")
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    kept = [row["kept"] for row in rows if row["kept"] != "-"]
    print(f"{len(rows)} runs; what was given is kept in {kept.count('yes')} of {len(kept)}")
    print(page.save(out / "report.html"))


def prepare(file: Path, out: Path, multiple: int, fps: float) -> np.ndarray:
    """uint8 [t h w 3]: a clip's start at its own size and `fps`; written to OUT/name.mkv and OUT/name.png."""
    clip = read_input(file, multiple=multiple, max_frames=FRAMES, fps=fps)
    frames = clip.frames[: 1 + (len(clip.frames) - 1) // 4 * 4]
    vdit.write_video(out / f"{file.name}.mkv", frames, fps=fps)
    Image.fromarray(frames[0]).save(out / f"{file.name}.png")
    return frames


def run(task: Task, folder: str, prompt: str, stem: Path, given: np.ndarray) -> tuple[dict, np.ndarray]:
    """The row of one command, and the video that it wrote."""
    name, *flags = task.name.split()
    result = stem.with_name(f"{stem.name}-{task.name.replace(' --', '-')}.mkv")
    inputs = task.arguments(stem.with_name(f"{stem.name}.mkv"), stem.with_name(f"{stem.name}.png"))
    size = [] if "--size" in task.options else ["--size", "{}x{}".format(*given.shape[1:3])]
    command = [name, folder, *inputs, prompt, *flags, *task.options, *size, "--steps", str(STEPS), "--out", str(result)]
    began, said = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(said):
        code = command_line.main(command)
    if code:
        raise SystemExit(f"vdit {shlex.join(command)}: exit code {code}\n{said.getvalue()}")
    video = vdit.read_video(result).frames
    kept = "-" if task.kept is None else "yes" if task.kept(video, given) else "no"
    seconds = round(time.perf_counter() - began)
    return {"command": task.name, "frames": len(video), "seconds": seconds, "kept": kept}, video


if __name__ == "__main__":
    main()
