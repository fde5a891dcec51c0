"""`vdit quickstart`: the embedded default, from nothing to a page."""

from __future__ import annotations

import argparse
import shlex

from vdit.cli.parser import at_least

SUMMARY = "from nothing to a trained, sampled and measured model, and a page that shows it"
DESCRIPTION = """\
Renders an embedded world (one coloured shape that moves), trains a small video VAE, encodes latents, trains a
tokenizer and a small text-to-video transformer on packed rows, samples 64 prompts with combinations of colour,
shape and direction that it never saw, counts with an exact detector how many are right, and writes one
self-contained page, DIR/report.html. It takes about ten minutes on two CPU cores. If it is interrupted, the same
command resumes it."""
EPILOG = """\
examples:
  vdit quickstart
  vdit quickstart runs/longer --cfg.dit_train.steps=20000
  vdit quickstart --help-config       # lists every --cfg key with its type and value"""
TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", nargs="?", default="runs/quickstart", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--prompts", type=at_least(2), default=64, metavar="N", help="how many to sample; default: 64")
    parser.add_argument("--batch", type=at_least(1), default=16, metavar="N", help="how many at once; default: 16")
    parser.add_argument("--help-config", action="store_true", help="list every --cfg key, its type and value, and stop")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from vdit.cli.print_config import show_config
    from vdit.cli.train import with_overrides
    from vdit.quickstart.config import experiment

    chosen = with_overrides(experiment(), overrides)
    if options.help_config:
        show_config(chosen)
        return 0
    from rich.console import Console

    from vdit.cli.cache import keep_compiled
    from vdit.cli.status import Status
    from vdit.dist.mesh import available_devices
    from vdit.quickstart.run import quickstart
    from vdit.train.preemption import PreemptionHandler

    keep_compiled()
    available_devices()  # refused here, before any work
    words = ["vdit", "quickstart", options.workdir, "--prompts", str(options.prompts), "--batch", str(options.batch)]
    command = shlex.join([*words, *(f"--cfg.{override}" for override in overrides)])
    # Stop: also after training, where a call of the compiler can hold a signal up for a minute.
    with PreemptionHandler(), Status("quickstart", console=Console()) as status:
        made = quickstart(options.workdir, chosen, count=options.prompts, batch=options.batch, command=command)
        status.wrote(made.page)
        status.next = f'vdit sample {shlex.quote(options.workdir)} "a red circle moves to the left" --out sample.mp4'
    return 0
