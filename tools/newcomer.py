"""A newcomer's first hour with vdit: usual commands and usual mistakes, typed as a user types them.

    python tools/newcomer.py /tmp/hour                                     # with the vdit of this Python
    python tools/newcomer.py /tmp/hour --vdit /tmp/venv/bin/vdit           # with an installed one, outside of a clone

It makes a folder of videos as people have them (a broken file, a video without a caption, a caption with an unquoted
comma), trains the smallest model on it, and runs every command on it, correctly and incorrectly. A step passes if the
exit code and the words of the output are as expected, no traceback is shown, a mistake costs one line and a few
seconds, and no input file has changed. The transcript goes to stdout; the exit code is 1 if a step fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import vdit
import vdit.worlds

SECONDS_OF_A_MISTAKE = 20.0  # of CPU: imports and all; loading a large model would take longer
SMALL = (
    "vae.latent_channels=8 vae.base_channels=8 vae.channel_mults=1 vae.spatial_down= vae.temporal_down= vae.patch=8 "
    "vae.patch_frames=4 vae.blocks_per_level=1 vae.middle=none vae.decoder_extra_blocks=0 vae_clips.frames=9 "
    "vae_clips.size=32,32 vae_train.steps=8 vae_train.batch_size=2 latents.samples=24 "
    "data.pixel_budgets=1024 data.frames=1,9 "
    "data.aspects=1.0 data.row_tokens=32 data.max_frames_per_row=16 data.max_clips_per_row=8 "
    "data.max_text_per_row=192 text.width=16 "
    "text.heads=1 text.depth=1 text.max_length=48 text.vocab_size=300 backbone.in_channels=8 backbone.width=32 "
    "backbone.depth=2 backbone.heads=2 dit_train.steps=8 dit_train.batch_size=2 sample.frames=9 "
    "sample.size=32,32 sample.steps=2"
)
TRAIN = "train --data my_videos --workdir runs/mine " + " ".join(f"--cfg.{item}" for item in SMALL.split())
BATCH = "sample runs/mine --prompts prompts.jsonl --out batch"
MANIFEST = "vdit-manifest.jsonl"  # what a command notes of its own outputs, so that it can go on
LONG_PROMPT = " ".join(["a red circle moves slowly to the left over a dark blue floor"] * 25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A command line after `vdit`, and what a newcomer would want of it.

    code: the exit code. says: regular expressions that stdout and stderr together must hold. prepare: what the user
    does before it. pipe: a shell command that reads the output. environment: variables set for it.
    lines: of stderr that a mistake may cost.
    """

    title: str
    command: str
    code: int = 0
    says: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    pipe: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    lines: int = 3


def mistake(title: str, command: str, *says: str, **more) -> Step:
    return Step(title=title, command=command, code=2, says=says, **more)


STEPS = (
    Step(title="What is there", command="--help", says=("vdit quickstart", "examples")),
    mistake("A command with a letter too many", "trian", "nearest: train"),
    mistake("The folder without --data", "train my_videos", "--data"),
    mistake("A folder that is not there", "train --data my_vidoes", "my_vidoes"),
    mistake("An experiment by a wrong name", "train clps", "clips"),
    Step(title="An experiment by its name", command="train clips --help-config", says=("--cfg.backbone.depth",)),
    mistake("An option without --cfg", "train --data my_videos --backbone.depth=4", r"--cfg\.backbone\.depth"),
    mistake("Captions with a comma and no quotes", TRAIN, r"captions\.csv", "line 3"),
    mistake("With --strict nothing may be skipped", TRAIN + " --strict", "broken.mp4",
            prepare=lambda home: write_captions(home, quoted=True), lines=9),
    Step(title="Training on the folder", command=TRAIN, says=("broken.mp4", "5.mp4", "vdit sample runs/mine")),
    Step(title="The same command again", command=TRAIN, says=("vdit sample runs/mine",)),
    Step(title="A caption was edited and a video added", command=TRAIN, says=("with other captions", "new"),
         prepare=lambda home: edit_videos(home)),
    mistake("A prompt without a run", 'sample "a red circle moves"', "run"),
    Step(title="A video", command='sample runs/mine "a red circle moves" --out made', says=("made/",)),
    Step(title="The same with another seed", command='sample runs/mine "a red circle moves" --out made --seed 1',
         says=("made/",)),
    Step(title="A prompt longer than the model reads", command=f'sample runs/mine "{LONG_PROMPT}" --out long.mp4',
         says=("(?i)cut|first 4",)),
    Step(title="Two seconds of it", command='sample runs/mine "a red circle moves" --frames 2s --out two.mp4',
         says=("two.mp4",)),
    mistake("An image that is not there", 'animate runs/mine dog.jpg "a dog runs"', "dog.jpg"),
    mistake("A size that the model cannot make", 'sample runs/mine "a dog" --size 33x33 --out odd.mp4', "33"),
    mistake("A format that is none", 'sample runs/mine "a dog" --out dog.avi', "avi"),
    mistake("Output over the source", 'extend runs/mine my_videos/0.mp4 "it goes on" --after 4 --out my_videos/0.mp4',
            "my_videos/0.mp4"),
    mistake("Reconstructions over the videos", "reconstruct runs/mine my_videos --out my_videos", "my_videos"),
    Step(title="Animate", command='animate runs/mine first.png "a circle moves" --frames 9 --out animated.mp4'),
    Step(title="Extend", command='extend runs/mine my_videos/0.mp4 "it goes on" --after 4 --out extended.mp4'),
    Step(title="Loop", command='loop runs/mine my_videos/0.mp4 "round and round" --out looped.mp4'),
    Step(title="Connect",
         command='connect runs/mine my_videos/0.mp4 my_videos/1.mp4 "one turns" --frames 4 --out both.mp4'),
    Step(title="Edit", command='edit runs/mine my_videos/0.mp4 "a blue square" --strength 0.6 --out edited.mp4'),
    Step(title="Inpaint", command='inpaint runs/mine my_videos/0.mp4 "a floor" --box 25%,25%,50%,50% --out filled.mp4'),
    Step(title="Roll out", command='rollout runs/mine "a red circle moves" --frames 21 --out rolled.mp4'),
    Step(title="Reconstruct", command="reconstruct runs/mine my_videos/0.mp4 --out check", says=("(?i)psnr|db",)),
    mistake("One bad line in a file of prompts", BATCH, "line 2", "seed",
            prepare=lambda home: write_prompts(home, seed=10**23)),
    Step(title="The file put right", command=BATCH, says=("batch/",),
         prepare=lambda home: write_prompts(home, seed=7)),
    Step(title="And once more", command=BATCH, says=("(?i)finished|skip",)),
    Step(title="Into head", command='sample runs/mine "a" "b" "c" --out three', pipe="head -1", code=0),
    mistake("A model that diffusers does not have", "export runs/mine out", "only Wan and DiT models"),
    mistake("A platform that is not there", 'sample runs/mine "a dog" --out dog.mp4', "cuda",
            environment=(("JAX_PLATFORMS", "cuda"),)),
)  # fmt: skip


def make_videos(home: Path) -> None:
    """my_videos: six rendered clips, a broken file, one that the captions do not name; first.png beside it."""
    from PIL import Image

    folder = home / "my_videos"
    folder.mkdir(parents=True)
    world = vdit.worlds.make("moving", seed=5, count=7, size=(48, 64), frames=17, fps=8.0)
    for i in range(7):
        sample = world[i]
        vdit.write_video(folder / f"{i}.mp4", sample.video, fps=8)
        if i == 0:
            Image.fromarray(sample.video[0]).save(home / "first.png")
    (home / "later.mp4").write_bytes((folder / "6.mp4").read_bytes())
    (folder / "6.mp4").unlink()
    (folder / "broken.mp4").write_bytes((folder / "5.mp4").read_bytes()[:600])
    write_captions(home, quoted=False)


def write_captions(home: Path, *, quoted: bool, first: str = "a shape moves", more: tuple[int, ...] = ()) -> None:
    second = '"a circle, moving slowly"' if quoted else "a circle, moving slowly"
    others = [f"{i}.mp4,shape {i} moves" for i in (2, 3, 4, *more)]
    rows = [f"0.mp4,{first}", f"1.mp4,{second}", *others, "broken.mp4,a shape"]
    (home / "my_videos" / "captions.csv").write_text("file,caption\n" + "\n".join(rows) + "\n")


def edit_videos(home: Path) -> None:
    write_captions(home, quoted=True, first="a shape moves to the left", more=(6,))
    (home / "my_videos" / "6.mp4").write_bytes((home / "later.mp4").read_bytes())


def write_prompts(home: Path, *, seed: int) -> None:
    lines = '{"prompt": "a red circle", "seed": 3}', f'{{"prompt": "a blue square", "seed": {seed}}}'
    (home / "prompts.jsonl").write_text("\n".join(lines) + "\n")


def contents(home: Path) -> dict[str, str]:
    """sha256 of the files that a user gave or that an earlier command made, without runs."""
    names = [path.relative_to(home) for path in sorted(home.rglob("*")) if path.is_file()]
    given = [name for name in names if name.parts[0] != "runs" and name.name != MANIFEST]
    return {str(name): hashlib.sha256((home / name).read_bytes()).hexdigest() for name in given}


def run(step: Step, program: str, home: Path) -> list[str]:
    """Runs a step, prints it, and returns what is not as expected."""
    if step.prepare is not None:
        step.prepare(home)
    before = contents(home)
    line = f"{program} {step.command}"
    script = f"{line} | {step.pipe}" if step.pipe else line
    began, spent = time.perf_counter(), os.times()
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], cwd=home, text=True, capture_output=True,
                          env=os.environ | dict(step.environment), check=False)  # fmt: skip
    seconds = time.perf_counter() - began
    now = os.times()
    cpu = now.children_user + now.children_system - spent.children_user - spent.children_system
    shown = done.stdout + done.stderr
    wrong = [] if step.pipe or done.returncode == step.code else [f"exit code {done.returncode}, not {step.code}"]
    wrong += [f"does not say {words!r}" for words in step.says if not re.search(words, shown)]
    wrong += ["a traceback"] if "Traceback" in shown else []
    if step.code == 2:
        lines = len(done.stderr.strip().splitlines())
        wrong += [f"{lines} lines of error"] if lines > step.lines else []
        wrong += [f"{cpu:.0f} s of CPU for a mistake"] if cpu > SECONDS_OF_A_MISTAKE else []
    after = contents(home)
    wrong += [f"{name} was changed" for name, content in before.items() if after.get(name) != content]
    print(f"\n## {step.title}\n$ vdit {_short(step.command)}{' | ' + step.pipe if step.pipe else ''}")
    lines = [part for part in shown.replace("\r", "\n").splitlines() if part.strip()]
    for part in lines if len(lines) <= 24 else [*lines[:12], f"... ({len(lines) - 22} lines) ...", *lines[-10:]]:
        print(f"  {part[:220]}")
    print(f"  -> exit code {done.returncode}, {seconds:.1f} s, {cpu:.1f} s of CPU: {'; '.join(wrong) or 'as expected'}")
    return wrong


def _short(command: str) -> str:
    words = shlex.split(command)
    small = sum(word.startswith("--cfg.") for word in words)
    kept = [word if len(word) < 60 else word[:50] + "..." for word in words if not word.startswith("--cfg.")]
    return shlex.join(kept) + (f" [{small} --cfg values]" if small else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="a new folder to work in")
    parser.add_argument("--vdit", metavar="PROGRAM", help="the command to try; default: this Python's vdit")
    options = parser.parse_args()
    if options.home.exists():
        raise SystemExit(f"{options.home}: exists already: give a new folder")
    program = options.vdit or f"{shlex.quote(sys.executable)} -m vdit.cli.main"
    print(f"{len(STEPS)} steps in {options.home}: an hour of a newcomer, in about {len(STEPS) * 15 // 60} CPU minutes")
    make_videos(options.home)
    began = time.perf_counter()
    wrong = {step.title: found for step in STEPS if (found := run(step, program, options.home.resolve()))}
    print(f"\n{len(STEPS) - len(wrong)} of {len(STEPS)} steps as expected, {time.perf_counter() - began:.0f} s")
    for title, found in wrong.items():
        print(f"  {title}: {'; '.join(found)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
