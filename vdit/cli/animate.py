"""`vdit animate`: an image, or several at chosen times, become a video."""

from __future__ import annotations

import argparse

from vdit.cli import canvas
from vdit.cli.parser import UsageError

SUMMARY = "make a video from an image, or from several at chosen times"
DESCRIPTION = """\
Writes a video that contains the images as frames: the first image is the first frame, others come at the time after
their name. Images are scaled to cover the size, then cropped to their centre."""
EPILOG = """\
examples:
  vdit animate runs/mine dog.jpg "a dog runs" --frames 2s --out dog.mp4
  vdit animate runs/mine dog.jpg end.jpg@1.5s "a dog runs" --frames 2s --fps 24
  vdit animate --model Wan2.1-I2V-14B-480P-Diffusers dog.jpg "a dog runs" --size 480x832 --out dog.mp4

Durations and times are frames (48) or seconds (2s)."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "IMAGE[@TIME]...", out="animated.mp4")
    parser.add_argument("--frames", type=canvas.length, metavar="TIME", help="video length; default: the model's own")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("IMAGE[@TIME]...",))
    files, times = zip(*map(canvas.split_time, words.inputs))
    if times.count(None) > 1:
        untimed = [file for file, time in zip(files, times) if time is None]
        raise UsageError(f"{' and '.join(untimed)}: one is the first frame; give others times, as in end.jpg@2s")
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate.images import read_image
        from vdit.generate.sliding import animate

        inputs, fps = canvas.open_inputs(options, files, generator, status, max_frames=1)
        # As they are, not as they were fitted: a model's image encoder cuts them in its own way.
        images = [read_image(given.path) if given.fps is None else first_frame(given) for given in inputs]
        frames = generator.experiment.sample.frames if options.frames is None else options.frames.frames(fps)
        moments = [0 if time is None else time.frames(fps) for time in times]
        size = inputs[0].size
        with canvas.making(options, words, generator, status, fps=fps, frames=frames, size=size):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = animate(run, images, times=moments, frames=frames, size=size)
                canvas.finish(options, pieces, fps, status, seed)
    return 0


def first_frame(video):
    """uint8 [h w 3]"""
    from vdit.generate.images import as_bytes

    return as_bytes(next(iter(video))[0, 0])[0]
