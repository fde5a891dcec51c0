"""`vdit import`: public weights to a folder like a run's."""

from __future__ import annotations

import argparse
import shlex

from vdit.outputs import check_new_folder

SUMMARY = "convert public weights into a run's folder"
DESCRIPTION = """\
Reads Wan 2.1 and 2.2 (text to video, image to video, TI2V-5B, A14B) and DiT, as diffusers folders or in the original
repositories' layouts. Checks every tensor's name and shape, and writes a run's folder OUT: a checkpoint, the matching
experiment, the tokenizer. Only one tensor is in memory at a time. OUT then works like any run: vdit sample OUT, vdit
train with start_from=OUT."""
EPILOG = """\
examples:
  vdit import Wan2.1-T2V-1.3B-Diffusers runs/wan-1.3b
  vdit import Wan2.2-TI2V-5B runs/wan-5b --dtype bfloat16
  vdit import mix.safetensors runs/mix --parts Wan2.1-T2V-1.3B-Diffusers        # a Wan's transformer in one file
  vdit import dit-xl models/dit-xl        # a folder with DiT-XL-2-256x256.pt and vae/, an AutoencoderKL's folder

Nothing in the folder is executed: torch files are read without unpickling. Sampling needs no import:
vdit sample --model FOLDER "a prompt"."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="the folder of the public model, or a Wan in one file")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype of weights; default: each tensor's own")
    parser.add_argument(
        "--parts", action="append", default=[], metavar="PATH",
        help="for a Wan in one file: its text encoder, VAE, tokenizer, or a folder of them; may be repeated",
    )  # fmt: skip


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    from vdit.cli.status import Status
    from vdit.pretrained.model import import_model

    check_new_folder(options.out)
    with Status("import", devices=False) as status:
        status.tell("makes", f"{options.folder} -> {options.out}, weights as {options.dtype or 'they are stored'}")
        with status.phases() as phase:
            import_model(options.folder, options.out, dtype=options.dtype, parts=options.parts, say=phase)
        status.wrote(options.out)
        status.next = f'vdit sample {shlex.quote(options.out)} "a prompt" --out sample.mp4'
    return 0
