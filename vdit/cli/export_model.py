"""`vdit export`: a model as a diffusers folder."""

from __future__ import annotations

import argparse
import contextlib
import tempfile

from vdit.cli.parser import UsageError, at_least
from vdit.outputs import check_new_folder

SUMMARY = "write a Wan or DiT model as a diffusers folder"
DESCRIPTION = """\
Writes an imported model, or one fine-tuned from it, as a folder that diffusers reads: weights as safetensors, configs,
scheduler, tokenizer. Imported weights that were not trained keep the same bits. A LoRA is merged."""
EPILOG = """\
examples:
  vdit export runs/wan-1.3b wan-diffusers
  vdit export runs/my_lora wan-mine --dtype bfloat16 --max-shard 2
  vdit export gs://my-bucket/runs/my_lora --push hf://me/my-model"""
TAKES_OVERRIDES = False


def _step(text: str) -> int | str:
    """A type for add_argument: a step, or "best"."""
    return text if text == "best" else at_least(0)(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="the folder of an imported model, or of a run")
    parser.add_argument(
        "out", metavar="OUT", nargs="?", help="a new folder, here or in a bucket (gs://, s3://); optional with --push"
    )
    parser.add_argument("--push", metavar="hf://ORG/NAME", help="also upload it as a model, which is made private")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: each weight's own")
    parser.add_argument("--max-shard", type=at_least(1e-6, float), default=5.0, metavar="GB", help="default: 5")
    parser.add_argument("--step", type=_step, metavar="STEP", help="a checkpoint, or best; default: the last one")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    if options.out is None and options.push is None:
        raise UsageError("nowhere to export to: give OUT, a new folder, or --push hf://ORG/NAME")
    from vdit import hub, paths
    from vdit.cli.status import Status
    from vdit.generate import open_generator
    from vdit.pretrained.export import check_export, export_model
    from vdit.train.workspace import Workspace

    with Status("export") as status, contextlib.ExitStack() as inside:
        out = options.out or inside.enter_context(tempfile.TemporaryDirectory(prefix="vdit-export-"))
        check_new_folder(out)
        if options.push is not None:
            hub.check_push(options.push)
        space = Workspace(options.run_folder)
        generator = open_generator(options.run_folder, step=options.step, loading=status.loading)
        check_export(space, generator.experiment)
        target = " and ".join(filter(None, (options.out, options.push)))
        status.tell("makes", f"{space.root} -> {target}, weights as {options.dtype or 'they are held'}")
        params, vae = generator.params, generator.vae.params
        more = {"dtype": options.dtype, "max_shard": options.max_shard * 1e9}
        with status.phases() as phase:
            export_model(space, generator.experiment, params, vae, out, say=phase, **more)
            if options.push is not None:
                phase(f"pushed: {hub.push(paths.local_folder(out), options.push)}")
        if options.out is not None:
            status.wrote(options.out)
    return 0
