"""`vdit edit`: a video becomes what a prompt says."""

from __future__ import annotations

import argparse

from vdit.cli import canvas
from vdit.cli.parser import UsageError, at_least
from vdit.cli.streaming import Soundtrack
from vdit.errors import ConfigError

SUMMARY = "change a video, or a part of it, as a prompt says"
DESCRIPTION = """\
Writes the video changed as the prompt says. Noise is added up to a level, --strength, and removed again: the lower the
level, the more of the video is kept. --invert starts from the noise that the model maps to this very video, and stays
closer to it. With --mask or --box only that part is edited; the rest does not change."""
EPILOG = """\
examples:
  vdit edit runs/mine dog.mp4 "a cat runs" --out cat.mp4
  vdit edit runs/mine dog.mp4 "a cat runs" --strength 0.9 --structure 4 --steps 40
  vdit edit runs/mine dog.mp4 "a cat runs" --source "a dog runs" --invert --strength 1
  vdit edit runs/mine dog.mp4 "a dog in the snow" --strength 0:0.8          # gradual, from the first frame to the last
  vdit edit runs/mine dog.mp4 "a red collar" --box 40%,30%,20%,20% --strength 0.8

A long video is processed in windows; each sees the end of the one before (--overlap)."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    add_part(parser)


def add_part(parser: argparse.ArgumentParser) -> None:
    """Options of which part of a video is made again, of `vdit inpaint` too."""
    parser.add_argument("--mask", metavar="FILE", help="an image or a video of the same size: white is regenerated")
    parser.add_argument(
        "--box", action="append", default=[], metavar="X,Y,W,H[@T0-T1]",
        help="regenerate this rectangle, in the file's pixels or %%, at these seconds; may be repeated",
    )  # fmt: skip
    parser.add_argument("--grow", type=at_least(0), default=0, metavar="N", help="also regenerate N pixels around it")
    parser.add_argument("--take", type=canvas.length, metavar="TIME", help="use only the start of the video")
    parser.add_argument("--overlap", type=at_least(1), metavar="N", help="frames that windows share; default: a third")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    words = canvas.split_words(options, inputs=("VIDEO",))
    if options.source is not None and not options.invert:
        raise UsageError("--source says what the video shows for its inversion: add --invert")
    if options.grow and not (options.mask or options.box):
        raise UsageError("--grow has no effect on a whole video: add --mask or --box, or leave it out")
    boxes, structure = read_boxes(options), _structure(options.structure)
    with canvas.opened(options, words) as (generator, status):
        import numpy as np

        from vdit.generate.editing import Edit, edit

        (video,), fps = canvas.open_inputs(options, words.inputs, generator, status, **taken(options))
        part = read_part(options, boxes, video)
        levels = np.linspace(options.strength[0], options.strength[-1], video.count)
        asked = {"levels": levels, "source": options.source, "structure": structure, "invert": options.invert}
        shape = {"fps": fps, "frames": video.count, "size": video.size}
        with canvas.making(options, words, generator, status, **shape):
            for seed in canvas.seeds(options):
                run = canvas.run_of(options, generator, words, seed)
                pieces = edit(run, video, Edit(part=part and part(), overlap=options.overlap, **asked))
                canvas.finish(options, pieces, fps, status, seed, sound=whole_sound(video))
    return 0


def taken(options: argparse.Namespace) -> dict:
    """--take, as arguments of vdit.generate.inputs.read_input."""
    if options.take is None:
        return {}
    return {"seconds": options.take.amount} if options.take.seconds else {"max_frames": int(options.take.amount)}


def read_boxes(options: argparse.Namespace) -> list:
    """--box, as vdit.generate.masks.Box; before anything is loaded."""
    if options.box and options.mask:
        raise UsageError("--mask and --box: give one of them, the part to regenerate")
    if not options.box:
        return []
    from vdit.generate.masks import parse_box

    return [parse_box(text) for text in options.box]


def read_part(options: argparse.Namespace, boxes: list, video, **more):
    """Gives a new vdit.generate.editing.Part of --mask or of --box when it is called; None without either."""
    from vdit.generate.editing import Part
    from vdit.generate.masks import box_masks, mask_frames

    if not (options.mask or boxes):
        return None
    masks = mask_frames(options.mask, video) if options.mask else box_masks(boxes, video)
    return lambda: Part(masks=masks.begin(), whole=masks.whole, grow=options.grow, **more)


def whole_sound(video) -> Soundtrack:
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
