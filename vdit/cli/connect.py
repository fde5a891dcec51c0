"""`vdit connect`: two videos become one, by a passage that is made between them or by a gradual blend."""

from __future__ import annotations

import argparse

from vdit.cli import canvas
from vdit.cli.parser import UsageError
from vdit.cli.streaming import Soundtrack

SUMMARY = "join two videos by a generated passage, or blend one into the other"
DESCRIPTION = """\
Writes the first video, a generated passage from its end to the start of the second, and the second. Frames of both do
not change. With --blend both play at once for that long instead, and one gradually turns into the other."""
EPILOG = """\
examples:
  vdit connect runs/mine dog.mp4 cat.mp4 "a dog turns into a cat" --frames 24 --out both.mp4
  vdit connect runs/mine dog.mp4 cat.mp4 "a dog turns into a cat" --frames 2s --blend --strength 0.7

Durations are frames (48) or seconds (2s). A passage, or a blend, is a multiple of the frames that are generated
at once; given in seconds it is rounded to one. Both videos are read at the model's frame rate (or at --fps)."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "VIDEO VIDEO", out="connected.mp4")
    parser.add_argument("--frames", type=canvas.length, metavar="TIME", help="default: half a window")
    parser.add_argument("--blend", action="store_true", help="turn one video into the other while both play")
    parser.add_argument(
        "--strength", type=float, metavar="LEVEL", help="of a blend: how freely its middle is generated; default: 0.8"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO", "VIDEO"))
    if options.strength is not None and not options.blend:
        raise UsageError("--strength: is of a blend; add --blend, or leave it out")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate.sliding import connect

        (first, second), fps = canvas.open_inputs(options, words.inputs, generator, status)
        frames = canvas.passage_frames(options.frames, fps, generator, options.window)
        whole = first.count + second.count + (-frames if options.blend else frames)
        strength = (0.8 if options.strength is None else options.strength) if options.blend else None
        half = frames // 2
        between = Soundtrack.of(
            lambda: (first.path, 0, first.read), lambda: (None, 0, frames), lambda: (second.path, 0, None)
        )
        # While both run, the first is heard in the first half and the second in the other.
        blended = Soundtrack.of(lambda: (first.path, 0, first.read - frames + half), lambda: (second.path, half, None))
        shape = {"fps": fps, "frames": whole, "made": frames, "size": first.size}
        with canvas.making(options, words, generator, status, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = connect(run, first, second, frames=run.passage_frames("frames", frames), blend=strength)
                canvas.finish(options, pieces, fps, status, seed, sound=blended if options.blend else between)
    return 0
