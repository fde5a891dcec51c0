"""`vdit loop`: a video, or a prompt, becomes a loop."""

from __future__ import annotations

import argparse

from vdit.cli import canvas
from vdit.cli.parser import UsageError
from vdit.cli.streaming import Soundtrack

SUMMARY = "turn a video, or one made from a prompt, into a loop"
DESCRIPTION = """\
Writes the video followed by a passage that leads from its end back to its start, so that it plays in a loop without a
jump. Its own frames do not change. Without a VIDEO, one is generated from the prompt first."""
EPILOG = """\
examples:
  vdit loop runs/mine dog.mp4 "a dog runs" --out loop.mp4
  vdit loop runs/mine dog.mp4 "a dog runs" --passage 24 --out loop.gif
  vdit loop runs/mine "waves on a beach" --frames 2s --size 64x96 --out waves.mp4

Durations are frames (48) or seconds (2s). A passage is a multiple of the frames that are generated at
once; given in seconds it is rounded to one."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "[VIDEO]", out="loop.mp4")
    parser.add_argument("--passage", type=canvas.length, metavar="TIME", help="default: half a window")
    parser.add_argument("--frames", type=canvas.length, metavar="TIME", help="length of a video of the prompt alone")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO",), least=0)
    if words.inputs and options.frames is not None:
        raise UsageError("--frames: is of a video made of the prompt; leave it out where VIDEO is given")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate import sliding

        inputs, fps = canvas.open_inputs(options, words.inputs, generator, status)
        passage = canvas.passage_frames(options.passage, fps, generator, options.window)
        size, sound = canvas.asked_size(options), None
        if inputs:
            frames, video = inputs[0].count, inputs[0]
            shape = {"frames": frames + passage, "made": passage, "size": video.size}
            sound = Soundtrack.of(lambda: (video.path, 0, video.read), lambda: (None, 0, None))
        else:
            frames = generator.experiment.sample.frames if options.frames is None else options.frames.frames(fps)
            shape = {"frames": frames + passage, "size": size}
        with canvas.making(options, words, generator, status, fps=fps, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                given = inputs[0] if inputs else sliding.sample(run, frames=frames, size=size)
                pieces = sliding.loop(run, given, passage=run.passage_frames("passage", passage))
                canvas.finish(options, pieces, fps, status, seed, sound=sound)
    return 0
