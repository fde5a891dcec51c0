"""`vdit inpaint`: regenerate a part of a video, or generate what is around it."""

from __future__ import annotations

import argparse

from vdit.cli import canvas
from vdit.cli.edit import add_part, read_boxes, read_part, taken, whole_sound
from vdit.cli.parser import UsageError, at_least, size

SUMMARY = "regenerate a masked part of a video, or enlarge its frame"
DESCRIPTION = """\
Writes the video with one part regenerated as the prompt says: where a mask is white, inside boxes, or, with --outpaint,
around the video in a larger frame. All other pixels are kept bit for bit (in the file too if it is .mkv, which is
lossless)."""
EPILOG = """\
examples:
  vdit inpaint runs/mine dog.mp4 "a meadow" --mask mask.png --out empty.mp4
  vdit inpaint runs/mine dog.mp4 "a meadow" --box 120,40,64,80 --box 10%,0%,20%,20%@1-2.5 --grow 8
  vdit inpaint runs/mine dog.mp4 "a dog on a meadow" --outpaint 16:9
  vdit inpaint runs/mine dog.mp4 "a dog on a meadow" --outpaint 96x128 --size 64x64 --at 0,32

A mask is an image, or a video that has as many frames, of the video's own width and height. A long video is
processed in windows; each sees the end of the one before (--overlap)."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "VIDEO", out="inpainted.mp4")
    add_part(parser)
    parser.add_argument(
        "--edge", type=at_least(0, float), metavar="LEVEL",
        help="starting noise for latents partly inside the mask; 1: regenerate fully, lower: keep more; default: 0.6",
    )  # fmt: skip
    parser.add_argument("--outpaint", metavar="W:H|HxW", help="a larger frame: its aspect ratio, or height x width")
    parser.add_argument("--at", metavar="Y,X", help="with --outpaint: where the video's corner goes; default: centred")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO",))
    asked = [name for name in ("mask", "box", "outpaint") if getattr(options, name)]
    if len(asked) != 1:
        given = " and ".join(f"--{name}" for name in asked) or "nothing to make"
        raise UsageError(f"{given}: give one of --mask FILE, --box X,Y,W,H, --outpaint W:H (see vdit inpaint --help)")
    if options.at is not None and not options.outpaint:
        raise UsageError("--at places the video in a larger frame: add --outpaint")
    boxes, frame, at = read_boxes(options), _frame(options.outpaint), _at(options.at)
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate import editing
        from vdit.generate.editing import Edit
        from vdit.generate.known import Frame

        if frame is not None:
            options.size, frame["size"] = _sizes(options, words.inputs, generator, **frame)
        whole = None if frame is None else frame["size"]
        (video,), fps = canvas.open_inputs(options, words.inputs, generator, status, whole=whole, **taken(options))
        edge = editing.EDGE if options.edge is None else options.edge
        given = video
        if frame is None:
            part = read_part(options, boxes, video, edge=edge)
        else:
            status.tell("", "in a frame of {}x{} (height x width)".format(*frame["size"]))
            placed = Frame.around(video.size, frame["size"], at, generator.experiment.vae.spatial_stride)
            given = editing.PlacedFrames(video=video, frame=placed)
            part = lambda: given.part(grow=options.grow, edge=edge)  # noqa: E731
        shape = {"fps": fps, "frames": video.count, "size": given.size}
        with canvas.making(options, words, generator, status, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = editing.edit(run, given, Edit(part=part(), overlap=options.overlap))
                canvas.finish(options, pieces, fps, status, seed, sound=whole_sound(video))
    return 0


def _sizes(
    options: argparse.Namespace, files, generator, *, size: tuple[int, int] | None, aspect: float | None
) -> tuple[str, tuple[int, int]]:
    """("HxW" that the video is fitted to, (h, w) of the frame around it).

    Without --size the video is as large as goes into the frame, and the frame has the model's largest area at most,
    up to rounding; the video is not scaled up.
    """
    from vdit.generate.inputs import common_size
    from vdit.generate.known import size_of_aspect

    multiple, inner = generator.experiment.size_multiple, canvas.asked_size(options)
    if inner is None:
        height, width = common_size(files)
        if size is None:
            ratio = aspect * height / width
            area = canvas.largest_area(generator.experiment) * min(ratio, 1 / ratio)
        else:
            area = height * width * min(size[0] / height, size[1] / width, 1) ** 2
        inner = common_size(files, area=int(area), multiple=multiple)
    if size is None:
        size = size_of_aspect(inner, aspect, multiple)
    return "{}x{}".format(*inner), size


def _frame(text: str | None) -> dict | None:
    """--outpaint: {"size": (h, w) or None, "aspect": width / height or None}."""
    if text is None:
        return None
    if ":" not in text:
        return {"size": size(text), "aspect": None}
    try:
        width, height = (float(part) for part in text.split(":"))
    except ValueError:
        width = height = 0.0
    if not (0 < width < float("inf") and 0 < height < float("inf")):
        raise UsageError(f"--outpaint {text}: write WIDTH:HEIGHT, as in 16:9, or height x width, as in 96x128")
    return {"size": None, "aspect": width / height}


def _at(text: str | None):
    """--at: (y, x), or "centre" without."""
    if text is None:
        return "centre"
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--at {text}: write Y,X, the pixels above the video and left of it, as in 0,32")
    return int(parts[0]), int(parts[1])
