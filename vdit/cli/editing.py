"""`vdit edit` and `vdit inpaint`: a video, or a part of it, made again as a prompt says."""

from __future__ import annotations

import argparse

from vdit.cli import canvas
from vdit.cli.output import Soundtrack
from vdit.cli.parser import Command, UsageError, at_least, length, size
from vdit.errors import ConfigError


def _edit_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "VIDEO", out="edited.mp4", joins=False)
    parser.add_argument(
        "--strength", type=_strength, default=(0.6,), metavar="LEVEL",
        help="above 0, to 1 (regenerate fully); A:B changes from the first frame to the last; default: 0.6",
    )  # fmt: skip
    parser.add_argument("--invert", action="store_true", help="start from the noise that the model maps to this video")
    parser.add_argument("--source", metavar="TEXT", help="with --invert: what the video shows")
    parser.add_argument(
        "--structure", metavar="FACTOR[@UNTIL]",
        help="keep the layout: the video scaled down by FACTOR, while the noise level is above UNTIL (0.3)",
    )  # fmt: skip
    _add_part(parser)


def _add_part(parser: argparse.ArgumentParser) -> None:
    """Options of which part of a video is made again, of `vdit inpaint` too."""
    parser.add_argument("--mask", metavar="FILE", help="an image or a video of the same size: white is regenerated")
    parser.add_argument(
        "--box", action="append", default=[], metavar="X,Y,W,H[@T0-T1]",
        help="regenerate this rectangle, in the file's pixels or %%, at these seconds; may be repeated",
    )  # fmt: skip
    parser.add_argument("--grow", type=at_least(0), default=0, metavar="N", help="also regenerate N pixels around it")
    parser.add_argument("--take", type=length, metavar="TIME", help="use only the start of the video")
    parser.add_argument("--overlap", type=at_least(1), metavar="N", help="frames that windows share; default: a third")


def _edit(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO",))
    if options.source is not None and not options.invert:
        raise UsageError("--source says what the video shows for its inversion: add --invert")
    if options.grow and not (options.mask or options.box):
        raise UsageError("--grow has no effect on a whole video: add --mask or --box, or leave it out")
    boxes, structure = _read_boxes(options), _structure(options.structure)
    with canvas.opened(options, words) as (generator, status):
        import numpy as np

        from vdit.generate.editing import Edit, edit

        (video,), fps = canvas.open_inputs(options, words.inputs, generator, status, **_taken(options))
        part = _read_part(options, boxes, video)
        levels = np.linspace(options.strength[0], options.strength[-1], video.count)
        asked = {"levels": levels, "source": options.source, "structure": structure, "invert": options.invert}
        shape = {"fps": fps, "frames": video.count, "size": video.size}
        with canvas.making(options, words, generator, status, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = edit(run, video, Edit(part=part and part(), overlap=options.overlap, **asked))
                canvas.finish(options, pieces, fps, status, seed, sound=_whole_sound(video))
    return 0


def _taken(options: argparse.Namespace) -> dict:
    """--take, as arguments of vdit.generate.inputs.read_input."""
    if options.take is None:
        return {}
    return {"seconds": options.take.amount} if options.take.seconds else {"max_frames": int(options.take.amount)}


def _read_boxes(options: argparse.Namespace) -> list:
    """--box, as vdit.generate.masks.Box; before anything is loaded."""
    if options.box and options.mask:
        raise UsageError("--mask and --box: give one of them, the part to regenerate")
    if not options.box:
        return []
    from vdit.generate.masks import parse_box

    return [parse_box(text) for text in options.box]


def _read_part(options: argparse.Namespace, boxes: list, video, **more):
    """Gives a new vdit.generate.editing.Part of --mask or of --box when it is called; None without either."""
    from vdit.generate.editing import Part
    from vdit.generate.masks import box_masks, mask_frames

    if not (options.mask or boxes):
        return None
    masks = mask_frames(options.mask, video) if options.mask else box_masks(boxes, video)
    return lambda: Part(masks=masks.begin(), whole=masks.whole, grow=options.grow, **more)


def _whole_sound(video) -> Soundtrack:
    """The sound of a video whose frames all stay where they are."""
    return Soundtrack.of(lambda: (video.path, 0, None))


def _strength(text: str) -> tuple[float, ...]:
    """"0.6", or "0:0.8" for a rise from the first frame to the last."""
    try:
        levels = tuple(float(part) for part in text.split(":"))
    except ValueError:
        levels = ()
    rise = len(levels) == 2 and all(0 <= level <= 1 for level in levels) and max(levels) > 0
    if not (rise or (len(levels) == 1 and 0 < levels[0] <= 1)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a level above 0 and at most 1, or two, as in 0:0.8")
    return levels


def _structure(text: str | None):
    """"4" or "4@0.5" -> vdit.sampling.config.Structure."""
    if text is None:
        return None
    from vdit.sampling.config import Structure

    factor, at, until = text.partition("@")
    try:
        return Structure(factor=float(factor), **({"until": float(until)} if at else {}))
    except ConfigError:
        raise
    except ValueError:
        raise UsageError(f"--structure {text}: write FACTOR or FACTOR@UNTIL, as in 4@0.3") from None


EDIT = Command(
    summary="change a video, or a part of it, as a prompt says",
    description="""\
Writes the video changed as the prompt says. Noise is added up to a level, --strength, and removed again: the lower the
level, the more of the video is kept. --invert starts from the noise that the model maps to this very video, and stays
closer to it. With --mask or --box only that part is edited; the rest does not change.""",
    epilog="""\
examples:
  vdit edit runs/mine dog.mp4 "a cat runs" --out cat.mp4
  vdit edit runs/mine dog.mp4 "a cat runs" --strength 0.9 --structure 4 --steps 40
  vdit edit runs/mine dog.mp4 "a cat runs" --source "a dog runs" --invert --strength 1
  vdit edit runs/mine dog.mp4 "a dog in the snow" --strength 0:0.8          # gradual, from the first frame to the last
  vdit edit runs/mine dog.mp4 "a red collar" --box 40%,30%,20%,20% --strength 0.8

A long video is processed in windows; each sees the end of the one before (--overlap).""",
    add_arguments=_edit_arguments,
    run=_edit,
)


def _inpaint_arguments(parser: argparse.ArgumentParser) -> None:
    canvas.add_arguments(parser, "VIDEO", out="inpainted.mp4")
    _add_part(parser)
    parser.add_argument(
        "--edge", type=at_least(0, float), metavar="LEVEL",
        help="starting noise for latents partly inside the mask; 1: regenerate fully, lower: keep more; default: 0.6",
    )  # fmt: skip
    parser.add_argument("--outpaint", metavar="W:H|HxW", help="a larger frame: its aspect ratio, or height x width")
    parser.add_argument("--at", metavar="Y,X", help="with --outpaint: where the video's corner goes; default: centred")


def _inpaint(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO",))
    asked = [name for name in ("mask", "box", "outpaint") if getattr(options, name)]
    if len(asked) != 1:
        given = " and ".join(f"--{name}" for name in asked) or "nothing to make"
        raise UsageError(f"{given}: give one of --mask FILE, --box X,Y,W,H, --outpaint W:H (see vdit inpaint --help)")
    if options.at is not None and not options.outpaint:
        raise UsageError("--at places the video in a larger frame: add --outpaint")
    boxes, frame, at = _read_boxes(options), _frame(options.outpaint), _at(options.at)
    with canvas.opened(options, words) as (generator, status):
        from vdit.generate import editing
        from vdit.generate.editing import Edit
        from vdit.generate.known import Frame

        if frame is not None:
            options.size, frame["size"] = _sizes(options, words.inputs, generator, **frame)
        whole = None if frame is None else frame["size"]
        (video,), fps = canvas.open_inputs(options, words.inputs, generator, status, whole=whole, **_taken(options))
        edge = editing.EDGE if options.edge is None else options.edge
        given = video
        if frame is None:
            part = _read_part(options, boxes, video, edge=edge)
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
                canvas.finish(options, pieces, fps, status, seed, sound=_whole_sound(video))
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


INPAINT = Command(
    summary="regenerate a masked part of a video, or enlarge its frame",
    description="""\
Writes the video with one part regenerated as the prompt says: where a mask is white, inside boxes, or, with --outpaint,
around the video in a larger frame. All other pixels are kept bit for bit (in the file too if it is .mkv, which is
lossless).""",
    epilog="""\
examples:
  vdit inpaint runs/mine dog.mp4 "a meadow" --mask mask.png --out empty.mp4
  vdit inpaint runs/mine dog.mp4 "a meadow" --box 120,40,64,80 --box 10%,0%,20%,20%@1-2.5 --grow 8
  vdit inpaint runs/mine dog.mp4 "a dog on a meadow" --outpaint 16:9
  vdit inpaint runs/mine dog.mp4 "a dog on a meadow" --outpaint 96x128 --size 64x64 --at 0,32

A mask is an image, or a video that has as many frames, of the video's own width and height. A long video is
processed in windows; each sees the end of the one before (--overlap).""",
    add_arguments=_inpaint_arguments,
    run=_inpaint,
)
