"""`vdit encode-text`: encode a run's captions once, so that its training holds no text encoder."""

from __future__ import annotations

import argparse
import dataclasses
import shlex

from vdit.cli.parser import Command
from vdit.errors import ConfigError

SUMMARY = "encode a run's captions once, so that its training step holds no text encoder"
DESCRIPTION = """\
Encodes every different caption of a run's latents with the text encoder of the model that training starts from, and
writes the features to RUN/texts (float16 unless --dtype says otherwise; padding is not stored). `vdit train RUN` then
reads them: its step neither holds nor runs the text encoder, which is most of the memory and time of a LoRA for Wan.
Dropped captions become the encoded empty prompt, which is stored, too. The run remembers it (latents.text=True); an
experiment with that setting needs no command: its stage "latents" does the same.

For models whose text encoder is not trained: a LoRA, or any training that starts from a model with a T5. Videos that
are not encoded yet are encoded first. After an interruption the same command goes on; new captions are added."""
EPILOG = """\
examples:
  vdit encode-text experiments/wan_lora.py --workdir runs/style --cfg.data.source.path=my_videos
  vdit encode-text runs/style                 # a run whose videos are encoded already
  vdit train runs/style"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a run's folder, a .py file, or a shipped name")
    parser.add_argument("--workdir", metavar="RUN", help="the run's folder; default: as of vdit train")
    parser.add_argument("--data", metavar="FOLDER", help="a folder of videos, instead of the experiment's own data")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="of features on disk; default: the experiment's"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rich.console import Console

    from vdit.cli.process import keep_compiled
    from vdit.cli.status import Status
    from vdit.cli.train import _default_folder, find_experiment, with_overrides
    from vdit.train.stages import Logging
    from vdit.train.stages import run as run_stages
    from vdit.train.workspace import Workspace

    experiment = with_overrides(find_experiment(options.experiment, options.data), overrides)
    if not experiment.text_is_frozen:
        raise ConfigError(
            f"{options.experiment}: its text encoder is trained with it, so captions cannot be encoded once: train a "
            "LoRA, or start from a model with a T5 (start_from)"
        )
    dtype = options.dtype or experiment.latents.text_dtype
    latents = dataclasses.replace(experiment.latents, text=True, text_dtype=dtype)
    experiment = dataclasses.replace(experiment, latents=latents)
    space = Workspace(options.workdir or _default_folder(options.experiment, experiment.name))
    keep_compiled()
    with Status("encode-text", console=Console()) as status:
        kind = "T5" if experiment.text.t5 is not None else "small encoder"
        status.tell("encodes", f"captions of {space.latents} by the {kind} of {experiment.start_from}, "
                               f"{experiment.text.width} wide, as {latents.text_dtype}")  # fmt: skip
        status.begin()
        run_stages(experiment, space, stages=("vae", "latents"), logging=Logging(tensorboard=False))
        status.wrote(space.texts)
        status.next = f"vdit train {shlex.quote(str(space.root))}"
    return 0


ENCODE_TEXT = Command(
    summary=SUMMARY, description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run,
    takes_overrides=True,
)  # fmt: skip
