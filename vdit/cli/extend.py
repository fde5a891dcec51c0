"""`vdit extend`: continue a video after its end, or before its start."""

from __future__ import annotations

import argparse

from vdit.cli import canvas
from vdit.cli.parser import UsageError, at_least
from vdit.cli.streaming import Soundtrack

SUMMARY = "make a video longer, forward, backward, or both"
DESCRIPTION = """\
Writes the video with new frames after it (--after), before it (--before), or both. Its own frames do not change. An
extension longer than one window is generated window by window; each sees the end of the one before."""
EPILOG = """\
examples:
  vdit extend runs/mine dog.mp4 "a dog runs" --after 2s --out longer.mp4
  vdit extend runs/mine dog.mp4 "a dog runs" --before 24 --after 24 --context 9 --size 64x96
  vdit extend --model Wan2.2-TI2V-5B cat.mp4 "the cat jumps" --after 5s --out jump.mp4

Durations are frames (48) or seconds (2s)."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "VIDEO", out="longer.mp4")
    parser.add_argument("--after", type=canvas.duration, metavar="TIME", help="how much to generate after the video")
    parser.add_argument("--before", type=canvas.duration, metavar="TIME", help="how much to generate before it")
    parser.add_argument("--context", type=at_least(1), metavar="N", help="at most N of its frames are used as context")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO",))
    if not any(time is not None and time.amount for time in (options.after, options.before)):
        raise UsageError("nothing to make: give --after TIME, --before TIME, or both, above 0")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate.sliding import extend

        (video,), fps = canvas.open_inputs(options, words.inputs, generator, status)
        asked = {"before": options.before, "after": options.after}
        lengths = {name: 0 if time is None else time.frames(fps) for name, time in asked.items()}
        made = sum(lengths.values())
        shape = {"fps": fps, "frames": video.count + made, "made": made, "size": video.size}
        sound = Soundtrack.of(
            lambda: (None, 0, lengths["before"]), lambda: (video.path, 0, video.read), lambda: (None, 0, None)
        )
        with canvas.making(options, words, generator, status, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = extend(run, video, **lengths, context=options.context)
                canvas.finish(options, pieces, fps, status, seed, sound=sound)
    return 0
