"""What the commands share that fill in a canvas: animate, extend, loop, connect, edit, inpaint, rollout, simulate.

One grammar for all of them:

    vdit COMMAND RUN [INPUT ...] PROMPT [options]
    vdit COMMAND --model FOLDER [INPUT ...] PROMPT [options]

- RUN is the folder of a run, or --model FOLDER that of public weights, as in `vdit sample`. INPUTs are the files that
  the command works on, in the order of its help. PROMPT is always there and always last; "" says nothing. Options
  come after these words.
- A duration is a number of frames, "48", or of seconds, "2s", at the rate of the video that is made. A file at a time
  is "end.jpg@1.5s" or "end.jpg@36".
- Inputs are fitted as vdit.infer.inputs has it, to --size, or to what suits the first of them within the largest area
  that the model was trained on or is sampled at. --fps: the rate at which they are taken and the result is written;
  without it the rate of the first video among them, or the model's own.
- One file is written: --out. Before that a line is printed for each input, which tells how it was fitted, and one that
  names the prompt, the seed, and how long it will be; the last line is the file's path.

A command is a module with SUMMARY, DESCRIPTION, EPILOG, TAKES_OVERRIDES, add_arguments and run (vdit/cli/main.py):

    def add_arguments(parser):
        canvas.add_arguments(parser, "VIDEO", out="longer.mp4")
        parser.add_argument("--after", type=canvas.duration, ...)

    def run(options, overrides):
        words = canvas.split_words(options, inputs=("VIDEO",))
        with canvas.opened(options, words) as generator:
            (video,), fps = canvas.read_inputs(options, words.inputs, generator)
            ...vdit.extend(generator, words.prompt, video.frames, ..., **canvas.sampling(options))
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vdit.cli.parser import UsageError, at_least, nearest, size
from vdit.cli.sample import COMPUTE, SAMPLERS, WEIGHTS

SUFFIXES = (".mp4", ".webm", ".gif", ".mkv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """What stands before the options: the model's folder, the files, the prompt."""

    folder: str
    inputs: tuple[str, ...]
    prompt: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duration:
    """"48" or "2s"."""

    amount: float
    seconds: bool

    def frames(self, fps: float) -> int:
        """As frames of a video of `fps` frames a second."""
        return round(self.amount * fps) if self.seconds else int(self.amount)


def add_arguments(parser: argparse.ArgumentParser, inputs: str, *, out: str) -> None:
    """The words (`inputs`: as the usage line has them, "VIDEO") and the options that all these commands have."""
    words = " ".join(filter(None, ["RUN", inputs, "PROMPT"]))
    parser.add_argument("words", nargs="*", metavar=words, help='a run, files, and a text ("" for none); quote it')
    parser.add_argument("--model", metavar="FOLDER", help="public weights, in the place of RUN")
    parser.add_argument("--out", default=out, metavar="FILE", help=f"{', '.join(SUFFIXES)}; default: %(default)s")
    parser.add_argument("--size", metavar="HxW", help="height x width in pixels; default: what suits the first input")
    parser.add_argument("--fps", type=at_least(0.1, float), help="default: that of the first video, or the model's")
    parser.add_argument("--seed", type=at_least(0), default=0, help="default: 0")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="sampler steps")
    parser.add_argument("--guidance", type=at_least(0, float), metavar="SCALE", help="by the prompt; 1 for none")
    parser.add_argument(
        "--context-guidance", type=at_least(0, float), metavar="SCALE", help="by what is given; 1 for as the model says"
    )
    parser.add_argument("--known-level", type=at_least(0, float), metavar="LEVEL", help="noise on what is given")
    parser.add_argument("--negative", default="", metavar="TEXT", help="a prompt to guide away from")
    parser.add_argument("--sampler", metavar="NAME", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="may be repeated")
    parser.add_argument("--weights", choices=WEIGHTS, help="how weights are held; default: as they are stored")
    parser.add_argument("--compute", choices=COMPUTE, help="type of products; default: the run's; public: by device")
    parser.add_argument("--mesh", metavar="AXES", help="how devices share the work, as in fsdp=2,sequence=4")


def split_words(options: argparse.Namespace, *, inputs: Sequence[str], least: int | None = None) -> Words:
    """The words, checked before anything is loaded, as is --out.

    inputs: names of the files, for messages; the last one may be given any number of times where it ends in "...".
    least: how many must be there; None for all.
    """
    command = f"vdit {options.command}"
    if options.model is None and not options.words:
        raise UsageError(f"no model: give RUN, the folder of a run, or --model FOLDER (see {command} --help)")
    folder, *words = options.words if options.model is None else [options.model, *options.words]
    least = len(inputs) if least is None else least
    most = math.inf if inputs and inputs[-1].endswith("...") else len(inputs)
    wanted = " ".join([*inputs, "PROMPT"])
    if not least + 1 <= len(words) <= most + 1:
        after = "the folder" if options.model is not None else "RUN"
        given = ", ".join(map(repr, words)) or "nothing"
        raise UsageError(
            f'{given} after {after}: give {wanted}, and quote the prompt ("" for none) (see {command} --help)'
        )
    *files, prompt = words
    if prompt and Path(prompt).is_file():
        raise UsageError(f'{prompt!r} is a file, where the prompt should be: give {wanted} ("" for no prompt)')
    if options.sampler is not None and options.sampler not in SAMPLERS:
        hint = nearest(options.sampler, SAMPLERS)
        raise UsageError(f"sampler {options.sampler!r} is unknown{hint} (samplers: {', '.join(SAMPLERS)})")
    if options.size is not None:
        size(options.size)
    _check_out(Path(options.out))
    return Words(folder=folder, inputs=tuple(files), prompt=prompt)


def duration(text: str) -> Duration:
    """A type for add_argument: "48" frames, "2s" or "1.5s" seconds."""
    found = re.fullmatch(r"(\d+)|(\d+\.?\d*|\.\d+)s", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of frames, as in 48, or of seconds, as in 2s")
    return Duration(amount=float(found[1] or found[2]), seconds=found[1] is None)


def split_time(text: str) -> tuple[str, Duration | None]:
    """"end.jpg@1.5s" -> ("end.jpg", 1.5 s); without a time None. A file of that whole name is itself."""
    name, at, time = text.rpartition("@")
    if not at or Path(text).exists():
        return text, None
    try:
        return name, duration(time)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{text}: the time after @: {error}") from None


@contextlib.contextmanager
def opened(options: argparse.Namespace, words: Words) -> Iterator:
    """Around the work: the generator (vdit.infer), on one host or on several that start the same command."""
    from vdit.cli.cache import keep_compiled
    from vdit.cli.hosts import joined
    from vdit.dist.mesh import make_mesh
    from vdit.infer import load

    asked = {name: value for name, value in vars(options).items() if name not in ("run", "parser")}
    with joined({"the command": str(asked)}):
        keep_compiled()
        mesh = make_mesh(_mesh(options.mesh))
        yield load(words.folder, mesh, compute=options.compute, weights=options.weights, lora=options.lora)


def read_inputs(options: argparse.Namespace, files: Sequence[str], generator, **reading) -> tuple[list, float]:
    """The files as vdit.infer.inputs.Input, all of one size, and the rate of the result; prints their notes.

    reading: more for vdit.infer.inputs.read_input (last, max_frames, least, ...).
    """
    from vdit.infer.inputs import common_size, read_input

    experiment = generator.experiment
    wanted = None if options.size is None else size(options.size)
    multiple = experiment.size_multiple
    inputs, fps = [], options.fps
    if files:
        wanted = common_size(files, size=wanted, area=largest_area(experiment), multiple=multiple)
    for file in files:
        inputs.append(read_input(file, size=wanted, multiple=multiple, fps=fps, **reading))
        fps = fps or inputs[-1].fps  # the first video's rate is that of all
        say(inputs[-1].note)
    return inputs, fps or experiment.sample.fps


def largest_area(experiment) -> int:
    """Pixels of the largest frames that the model was trained on or is sampled at."""
    height, width = experiment.sample.size
    return max(*experiment.data.areas, height * width)


def sampling(options: argparse.Namespace) -> dict:
    """Keyword arguments of the functions of vdit.infer: seed and what is said of the sampler."""
    names = ("seed", "steps", "guidance", "context_guidance", "known_level", "negative", "sampler")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def finish(options: argparse.Namespace, video, fps: float) -> None:
    """Writes float32 [t h w 3] in [-1, 1] to --out, and prints its path; on several hosts by the first alone."""
    import numpy as np

    from vdit.dist.multihost import is_first
    from vdit.video_io import write_video

    if is_first():
        path = Path(options.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, np.asarray(video), fps=fps)
        say(str(path))


def say(line: str) -> None:
    """Prints, on several hosts by the first alone."""
    from vdit.dist.multihost import is_first

    if is_first():
        print(line, flush=True)


def _mesh(text: str | None):
    """"fsdp=2,sequence=4" -> MeshConfig, in which what is not named is 1, or all that are left along data."""
    from vdit.config import apply_overrides
    from vdit.dist.mesh import MeshConfig
    from vdit.errors import ConfigError

    try:
        return apply_overrides(MeshConfig(), [] if text is None else text.split(","))
    except ConfigError as error:
        raise UsageError(f"--mesh {text}: {error}") from None


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise UsageError(f"--out {out}: must be the name of a file that ends in {', '.join(SUFFIXES)}")
