"""`vdit import` and `vdit export`: public weights to a folder like a run's, and a model as a folder to publish."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import tempfile

from vdit.cli.parser import Command, UsageError, at_least
from vdit.outputs import check_new_folder


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="the folder of the public model, or a Wan in one file")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype of weights; default: each tensor's own")
    parser.add_argument(
        "--parts", action="append", default=[], metavar="PATH",
        help="for a Wan in one file: its text encoder, VAE, tokenizer, or a folder of them; may be repeated",
    )  # fmt: skip


def _import(options: argparse.Namespace, overrides: list[str]) -> int:
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


def _step(text: str) -> int | str:
    """A type for add_argument: a step, or "best"."""
    return text if text == "best" else at_least(0)(text)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="the folder of an imported model, or of a run")
    parser.add_argument(
        "out", metavar="OUT", nargs="?", help="a new folder, here or in a bucket (gs://, s3://); optional with --push"
    )
    parser.add_argument("--push", metavar="hf://ORG/NAME", help="also upload it as a model, which is made private")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: each weight's own")
    parser.add_argument("--max-shard", type=at_least(1e-6, float), default=5.0, metavar="GB", help="default: 5")
    parser.add_argument("--step", type=_step, metavar="STEP", help="a checkpoint, or best; default: the last one")
    parser.add_argument(
        "--layout", choices=("diffusers", "vdit"),
        help="whose folders to write; default: diffusers for a Wan or a DiT, vdit for other models",
    )  # fmt: skip


def _export(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    if options.out is None and options.push is None:
        raise UsageError("nowhere to export to: give OUT, a new folder, or --push hf://ORG/NAME")
    from vdit import hub, paths
    from vdit.cli.status import Status
    from vdit.generate import open_generator
    from vdit.pretrained.diffusers_folder import INDEX
    from vdit.pretrained.export import export_model, exported_to, native_instead
    from vdit.pretrained.native import MODEL, export_native
    from vdit.train.workspace import Workspace

    with Status("export") as status, contextlib.ExitStack() as inside:
        out = options.out or inside.enter_context(tempfile.TemporaryDirectory(prefix="vdit-export-"))
        check_new_folder(out)
        if options.push is not None:
            hub.check_push(options.push)
        space = Workspace(options.run_folder)
        generator = open_generator(options.run_folder, step=options.step, loading=status.loading)
        own = native_instead(space, generator.experiment, options.layout)
        target = " and ".join(filter(None, (options.out, options.push)))
        layout = "vdit's own layout" if own else "diffusers' layout"
        status.tell("makes", f"{space.root} -> {target} in {layout}, weights as {options.dtype or 'they are held'}")
        params, vae = generator.params, generator.vae.params
        with status.phases() as phase:
            how = {"dtype": options.dtype, "max_shard": options.max_shard * 1e9, "say": phase}
            if own:
                exported_to(out, MODEL, lambda folder: export_native(space, params, vae, folder, **how))
            else:
                write = lambda folder: export_model(space, generator.experiment, params, vae, folder, **how)  # noqa: E731
                exported_to(out, INDEX, write)
            if options.push is not None:
                phase(f"pushed: {hub.push(paths.local_folder(out), options.push)}")
        if options.out is not None:
            status.wrote(options.out)
            status.next = f'vdit sample {shlex.quote(options.out)} "a prompt" --out sample.mp4'
    return 0


IMPORT = Command(
    summary="convert public weights into a run's folder",
    description="""\
Reads Wan 2.1 and 2.2 (text to video, image to video, TI2V-5B, A14B) and DiT, as diffusers folders or in the original
repositories' layouts. Checks every tensor's name and shape, and writes a run's folder OUT: a checkpoint, the matching
experiment, the tokenizer. Only one tensor is in memory at a time. OUT then works like any run: vdit sample OUT, vdit
train with start_from=OUT.""",
    epilog="""\
examples:
  vdit import Wan2.1-T2V-1.3B-Diffusers runs/wan-1.3b
  vdit import Wan2.2-TI2V-5B runs/wan-5b --dtype bfloat16
  vdit import mix.safetensors runs/mix --parts Wan2.1-T2V-1.3B-Diffusers        # a Wan's transformer in one file
  vdit import dit-xl models/dit-xl        # a folder with DiT-XL-2-256x256.pt and vae/, an AutoencoderKL's folder

Nothing in the folder is executed: torch files are read without unpickling. Sampling needs no import:
vdit sample --model FOLDER "a prompt".""",
    add_arguments=_import_arguments,
    run=_import,
)
EXPORT = Command(
    summary="write a model as a folder to publish: diffusers' or vdit's own",
    description="""\
Writes the model of a run as a folder. An imported Wan or DiT, or one fine-tuned from it, becomes a folder that
diffusers reads: weights as safetensors, configs, scheduler, tokenizer. Imported weights that were not trained keep the
same bits. Every other model becomes a folder of vdit's own: model.json, safetensors of each network, statistics,
tokenizer. Every command of vdit samples either one. A LoRA is merged. What training needs besides (optimizer,
averages) is left out.""",
    epilog="""\
examples:
  vdit export runs/wan-1.3b wan-diffusers
  vdit export runs/my_lora wan-mine --dtype bfloat16 --max-shard 2
  vdit export runs/mine mine --dtype float16       # a model of one's own, at half the bytes
  vdit export gs://my-bucket/runs/my_lora --push hf://me/my-model""",
    add_arguments=_export_arguments,
    run=_export,
)
