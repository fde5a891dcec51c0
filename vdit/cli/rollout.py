"""`vdit rollout`: a long video, written while it is generated."""

from __future__ import annotations

import argparse

from vdit.cli import canvas, streaming
from vdit.cli.parser import UsageError, at_least
from vdit.cli.streaming import Soundtrack
from vdit.data.tables import read_lines
from vdit.errors import INTERRUPTED, TextError

SUMMARY = "make a video of any length, with prompts that change"
DESCRIPTION = """\
Writes a video of any length, from a prompt alone or as the continuation of an image or a video. A window slides along
time, and sees the end of what was generated before. Memory does not grow with the length. The file is written as
frames are generated: Ctrl-C ends it early, and keeps what is there."""
EPILOG = """\
examples:
  vdit rollout runs/mine "a dog runs" --seconds 60 --out long.mp4
  vdit rollout runs/mine dog.jpg "a dog runs" --seconds 60 --prompt-at 10s "the dog sits down"
  vdit rollout runs/mine dog.mp4 "a dog runs" --frames 480 --script story.txt --context 24

A script is a text file with a line for each prompt after the first: TIME PROMPT, as in "10s the dog sits down"."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "[IMAGE|VIDEO]", out="long.mp4")
    parser.add_argument("--seconds", type=at_least(0, float), metavar="S", help="length of the whole video")
    parser.add_argument("--frames", type=canvas.length, metavar="TIME", help="the same: frames (480) or seconds (60s)")
    parser.add_argument("--context", type=at_least(1), metavar="N", help="frames of context; default: half a window")
    parser.add_argument(
        "--prompt-at", nargs=2, action="append", default=[], metavar=("TIME", "PROMPT"),
        help="change to another prompt at a time; may be repeated",
    )  # fmt: skip
    parser.add_argument("--anchor", action="store_true", help="always see the first frames: less drift, less change")
    parser.add_argument("--script", metavar="FILE", help="a file of such changes, one a line")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("[IMAGE|VIDEO]",), least=0)
    if (options.frames is None) == (options.seconds is None):
        raise UsageError("how long the video is: give --seconds S or --frames TIME")
    later = read_prompts(options)
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate import sliding
        from vdit.sampling.sliding import PromptSchedule

        inputs, fps = canvas.open_inputs(options, words.inputs, generator, status)
        frames = round(options.seconds * fps) if options.frames is None else options.frames.frames(fps)
        script = [(0.0, words.prompt), *sorted((time.frames(fps) / fps, prompt) for time, prompt in later)]
        video = inputs[0] if inputs else None
        asked = sliding.Rollout(
            prompts=PromptSchedule.of(script), frames=frames, fps=fps, context=options.context, anchor=options.anchor,
            size=canvas.asked_size(options),
        )  # fmt: skip
        shape = {"fps": fps, "frames": frames, "made": frames - (video.count if inputs else 0)}
        shape["size"] = video.size if inputs else canvas.asked_size(options)
        sound = Soundtrack.of(lambda: (video.path, 0, video.read), lambda: (None, 0, None)) if inputs else None
        work = canvas.tell(options, words, generator, status, **shape)
        for seed in canvas.seeds(options):
            run = canvas.run_of(options, generator, words, seed)
            pieces = (piece[0] for piece in sliding.rollout(run, asked, video))
            with status.progress("frames", frames, work=work / len(canvas.seeds(options))) as display:
                more = {"display": display, "sound": sound}
                if not streaming.write(canvas.target(options, seed), pieces, fps, status, **more):
                    return INTERRUPTED
    return 0


def read_prompts(options: argparse.Namespace) -> list[tuple[canvas.Duration, str]]:
    """Those of --prompt-at and --script: (time, prompt)."""
    given = [(time, prompt, f"--prompt-at {time}") for time, prompt in options.prompt_at]
    if options.script is not None:
        for number, line in read_lines(options.script, error=TextError):
            time, _, prompt = line.partition(" ")
            given.append((time, prompt.strip(), f"{options.script}, line {number}"))
    return [(_time(time, where), prompt) for time, prompt, where in given]


def _time(text: str, where: str) -> canvas.Duration:
    try:
        time = canvas.duration(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{where}: the time {error}") from None
    if not time.amount:
        raise UsageError(f"{where}: the prompt at 0 is the command's own, give a later time")
    return time
