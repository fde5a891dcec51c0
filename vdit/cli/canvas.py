"""What the commands share that fill in a canvas: animate, extend, loop, connect, edit, inpaint, rollout, simulate.

One grammar for all of them:

    vdit COMMAND RUN [INPUT ...] PROMPT [options]
    vdit COMMAND --model FOLDER [INPUT ...] PROMPT [options]

- RUN is the folder of a run, or --model FOLDER that of public weights, as in `vdit sample`. INPUTs are the files that
  the command works on, in the order of its help. PROMPT is always there and always last; "" says nothing. Options
  come after these words.
- A duration is a number of frames, "48", or of seconds, "2s", at the rate of the video that is made. A file at a time
  is "end.jpg@1.5s" or "end.jpg@36".
- Inputs are fitted as vdit.generate.inputs has it, to --size, or to what suits the first of them within the largest
  area that the model was trained on or is sampled at.
- Videos are taken, and the result is written, at the model's frame rate (its experiment's `sample.fps`; of public
  weights, the published one): the model knows no other. Inputs of another rate are resampled by time. --fps overrides
  the rate of both, and a line says what that means.
- Inputs are read while the result is made and written: a long video takes no more memory than a short one. What is
  made at once must fit into the host's memory (vdit.generate.host_memory).
- The sound of the inputs goes along with their frames; what is made is silent.
- --out names one file, which is replaced if it is there, or a folder. With several seeds (--seeds, --count), in a
  folder, and without --out the seed is in the name, and where such a file is there a number is added. What the user
  gave (inputs, the run, a mask, ...) is never replaced.
- A line for each input says how it was fitted; then one line names the prompt and how long the
  video will be, then the path of each file. The rest goes to stderr (vdit/cli/status.py).

A command is a Command (vdit/cli/parser.py) in the table of vdit/cli/main.py, of two functions:

    def add_arguments(parser):
        canvas.add_arguments(parser, "VIDEO", out="longer.mp4")
        parser.add_argument("--after", type=duration, ...)

    def run(options, overrides):
        words = canvas.split_words(options, inputs=("VIDEO",))
        with canvas.opened(options, words) as (generator, status):
            (video,), fps = canvas.open_inputs(options, words.inputs, generator, status)
            with canvas.making(options, words, generator, status, fps=fps, frames=..., made=..., size=video.size):
                for seed in canvas.seeds(options):
                    run = canvas.run_of(options, generator, words, seed)
                    canvas.finish(options, extend(run, video, ...), fps, status, seed, sound=...)
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from vdit.cli import output
from vdit.cli.output import say
from vdit.cli.parser import RATE, Duration, UsageError, at_least, duration, size
from vdit.cli.status import Status, counted, following, numbers, shown_method

# What may follow on a command: (command, its options).
NEXT = {
    "animate": ("extend", "--after 2s --out longer.mp4"),
    "extend": ("loop", "--out loop.mp4"),
    "connect": ("loop", "--out loop.mp4"),
    "edit": ("extend", "--after 2s --out longer.mp4"),
    "inpaint": ("extend", "--after 2s --out longer.mp4"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """The words before the options: the model's folder, the files, the prompt."""

    folder: str
    inputs: tuple[str, ...]
    prompt: str


def add_arguments(parser: argparse.ArgumentParser, inputs: str, *, out: str, joins: bool = True) -> None:
    """The words (`inputs`: as the usage line has them, "VIDEO") and the options that all these commands have.

    joins: whether the command puts given frames back, so that --joins has an effect.
    """
    words = " ".join(filter(None, ["RUN", inputs, "PROMPT"]))
    parser.add_argument("words", nargs="*", metavar=words, help='a run, files, and a text ("" for none); quote it')
    kinds, default = ", ".join(output.VIDEO), output.with_seed(Path(out), 0)
    parser.add_argument("--out", metavar="PATH", help=f"a file ({kinds}) or a folder; default: {default}")
    parser.set_defaults(usual_name=out)
    parser.add_argument("--size", metavar="HxW", help="height x width in pixels; default: what suits the first input")
    parser.add_argument("--fps", type=RATE, help="rate of inputs and output; default: the model's own")
    parser.add_argument("--window", type=at_least(1), metavar="N", help="frames in a window; default: as in training")
    output.add_sampling(parser)
    parser.add_argument(
        "--context-guidance", type=at_least(0, float), metavar="SCALE", help="guidance toward the given frames; 1: off"
    )
    parser.add_argument(
        "--known-level", type=at_least(0, float), metavar="LEVEL", help="noise added to the given frames; 0: none"
    )
    if joins:
        parser.add_argument(
            "--joins", choices=("motion", "colour"),
            help="how generated frames meet given ones: motion mixes frames beside a join with the given frame, moved "
            "along, and matches colours; colour only matches colours; default: motion",
        )  # fmt: skip
    output.add_seeds(parser)
    output.add_model(parser)


def split_words(options: argparse.Namespace, *, inputs: Sequence[str], least: int | None = None) -> Words:
    """The words, checked before anything is loaded, as are --out and what else can be.

    inputs: names of the files, for messages; the last one may be given any number of times where it ends in "...".
    least: how many must be there; None for all.
    """
    folder, words = output.split_model(options)
    least = len(inputs) if least is None else least
    most = math.inf if inputs and inputs[-1].endswith("...") else len(inputs)
    wanted = " ".join([*inputs, "PROMPT"])
    if not least + 1 <= len(words) <= most + 1:
        given = ", ".join(map(repr, words)) or "nothing"
        where = "the options" if options.model else "RUN"
        raise UsageError(
            f"{output.no_run(options, folder)}{given} after {where}: give {wanted}, and quote the prompt "
            f'("" for none) (see vdit {options.command} --help)'
        )
    *files, prompt = words
    if prompt and (Path(prompt).is_file() or Path(prompt.rpartition("@")[0]).is_file()):
        raise UsageError(f'{prompt!r} is a file, where the prompt should be: give {wanted} ("" for no prompt)')
    output.check_texts(options, [prompt])
    output.check_sampler(options)
    asked_size(options)
    seeds(options)
    if options.out is not None and output.is_file(options.out):
        output.check_suffix(Path(options.out), None, options.fps, name=f"--out {options.out}")
    given = output.given_files(options, folder, *(split_time(file)[0] for file in files))
    many = seeds(options)
    for seed in {many[0], many[-1]}:  # the others differ by a number
        output.check_target(target(options, seed), given)
    return Words(folder=folder, inputs=tuple(files), prompt=prompt)


def split_time(text: str) -> tuple[str, Duration | None]:
    """"end.jpg@1.5s" -> ("end.jpg", 1.5 s); without a time None. A file of that whole name is itself."""
    name, at, time = text.rpartition("@")
    if not at or Path(text).exists():
        return text, None
    try:
        return name, duration(time)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{text}: the time after @: {error}") from None


def asked_size(options: argparse.Namespace) -> tuple[int, int] | None:
    """--size: (height, width)."""
    return None if options.size is None else size(options.size)


def seeds(options: argparse.Namespace) -> list[int]:
    """One for each video that is to be made."""
    return output.seeds_of(options)


def opened(options: argparse.Namespace, words: Words) -> AbstractContextManager:
    """Around the work: (the generator, the Status), as vdit.cli.output.opened has it."""
    return output.opened(options, words.folder)


def open_inputs(
    options: argparse.Namespace, files: Sequence[str], generator, status: Status, *,
    whole: tuple[int, int] | None = None, **reading,
) -> tuple[list, float]:  # fmt: skip
    """The files as vdit.generate.inputs.VideoInput, all of one size and rate, and the rate of the result.

    Their frames are read while the result is made. A line tells of each how it is taken. Before anything is read:
    ShapeError if what is made at once would not fit into the host's memory.

    Args:
        whole: (height, width) of what is written, where it is larger.
        reading: more for vdit.generate.inputs.open_input (seconds, max_frames).
    """
    from vdit.generate.generator import window_of
    from vdit.generate.host_memory import check_memory
    from vdit.generate.inputs import common_size, open_input

    experiment = generator.experiment
    wanted, multiple = asked_size(options), experiment.size_multiple
    fps = output.rate(options, experiment)
    if files:
        wanted = common_size(files, size=wanted, area=largest_area(experiment), multiple=multiple)
    if note := check_memory(window_of(generator, options.window), whole or wanted or experiment.sample.size):
        say(note)
    inputs = []
    for file in files:
        inputs.append(output.Counted(open_input(file, size=wanted, multiple=multiple, fps=fps, **reading)))
        status.tell("input", inputs[-1].note)
    if len(inputs) == 1 and inputs[0].fps is not None and options.fps is None:
        fps = inputs[0].fps  # 29.97 where the model makes 30: frames and sound stay in step
    return inputs, fps


def _work(options: argparse.Namespace) -> str:
    """What the command does to its video."""
    part = options.command == "edit" and (options.mask or options.box)
    return "edit a part" if part else options.command


def largest_area(experiment) -> int:
    """Pixels of the largest frames that the model was trained on or is sampled at."""
    height, width = experiment.sample.size
    return max(*experiment.data.pixel_budgets, height * width)


def sampling(options: argparse.Namespace, seed: int | None = None) -> dict:
    """Keyword arguments of the functions of vdit.generate: a seed (None: --seed) and what is said of the sampler."""
    names = ("steps", "guidance", "context_guidance", "known_level", "negative", "sampler", "reuse")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return asked | {"seed": options.seed if seed is None else seed}


def run_of(options: argparse.Namespace, generator, words: Words, seed: int):
    """One call of a verb (vdit.generate.sliding.Run)."""
    from vdit.generate.sliding import Run

    joins = getattr(options, "joins", None)
    return Run.of(generator, words.prompt, window=options.window, joins=joins, **sampling(options, seed))


def passage_frames(time: Duration | None, fps: float, generator, window: int | None) -> int:
    """Frames of a passage: as asked; of seconds the nearest number that the model makes; None is the usual one."""
    from vdit.generate.generator import grouping_of, usual_passage

    if time is None:
        return usual_passage(generator, window)
    step = grouping_of(generator).step
    return max(step, round(time.frames(fps) / step) * step) if time.seconds else time.frames(fps)


def tell(
    options: argparse.Namespace, words: Words, generator, status: Status, *, fps: float, frames: int,
    made: int | None = None, size: tuple[int, int] | None = None,
) -> float:  # fmt: skip
    """Says what is about to be made: a video of `frames`, of which `made` (None: all) are new, of (height, width).

    Returns how much work it is, for Status.progress.
    """
    from vdit.sampling.config import known_changes, sampling_config

    new = "" if made is None or made == frames else f", {made} of them new"
    status.tell("prompt", f"{words.prompt!r}: {counted(frames, 'frame')}{new}, {frames / fps:.4g} s at {fps:.4g} fps")
    experiment, many = generator.experiment, seeds(options)
    height, width = experiment.sample.size if size is None else size
    each = "a video" if len(many) == 1 else f"{len(many)} videos"
    out = target(options, many[0]).path if len(many) == 1 else options.out or options.usual_name
    status.tell("makes", f"{each} of {height}x{width}, seed {numbers(many)} -> {out}")
    names = ("steps", "guidance", "context_guidance", "known_level", "sampler", "reuse")
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    # A rollout is given the end of what it has made.
    given = options.command == "rollout" or (words.inputs and _work(options) != "edit")
    asked = known_changes(experiment, asked) if given else asked
    method = sampling_config(experiment, **asked)
    more = {"negative": options.negative, "joins": getattr(options, "joins", None)}
    status.tell("with", shown_method(method, asked | more))
    return (frames if made is None else made) * len(many) * height * width * method.grid.steps * method.rows


def target(options: argparse.Namespace, seed: int) -> output.Target:
    """Where the video of a seed goes: --out, or the command's usual name with the seed in it."""
    return output.target(options.out, options.usual_name, seed, several=len(seeds(options)) > 1)


@contextlib.contextmanager
def making(
    options: argparse.Namespace, words: Words, generator, status: Status, *, fps: float, frames: int,
    made: int | None = None, size: tuple[int, int] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Around the work: says what is about to be made (see `tell`), then how much is done and the time left."""
    work = tell(options, words, generator, status, fps=fps, frames=frames, made=made, size=size)
    total = (frames if made is None else made) * len(seeds(options))
    with status.progress("frames", total, work=work, canvases=True):
        yield


def finish(
    options: argparse.Namespace, pieces: Iterable, fps: float, status: Status, seed: int, *,
    sound: output.Soundtrack | None = None,
) -> None:  # fmt: skip
    """Writes a video while it is made, of pieces float32 [1 t h w 3] in [-1, 1], and prints its path."""
    path = output.write(target(options, seed), (piece[0] for piece in pieces), fps, sound=sound)
    status.wrote(path)
    if options.command in NEXT and not status.next:
        command, more = NEXT[options.command]
        status.next = following(options, command, path, options.words[-1], more)
