"""`vdit`: finds the command, runs it, and turns what a user can fix into one line and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

import vdit
from vdit.cli import (
    caption,
    curate,
    editing,
    encode_text,
    evaluate,
    expand,
    public_weights,
    reconstruct,
    record,
    sample,
    serve,
    simulate,
    train,
    verbs,
)
from vdit.cli.parser import Command, Parser, UsageError, nearest, refuse_unknown, take_overrides, take_plugins
from vdit.cli.process import exit_status, heard_interrupts, outlived_output
from vdit.errors import EX_OK, EX_USAGE, VditWarning

COMMANDS: dict[str, Command] = {
    "quickstart": train.QUICKSTART,
    "curate": curate.CURATE,
    "record": record.RECORD,
    "caption": caption.CAPTION,
    "train": train.TRAIN,
    "encode-text": encode_text.ENCODE_TEXT,
    "plan": train.PLAN,
    "expand": expand.EXPAND,
    "sample": sample.SAMPLE,
    "animate": verbs.ANIMATE,
    "extend": verbs.EXTEND,
    "loop": verbs.LOOP,
    "connect": verbs.CONNECT,
    "edit": editing.EDIT,
    "inpaint": editing.INPAINT,
    "rollout": verbs.ROLLOUT,
    "simulate": simulate.SIMULATE,
    "serve": serve.SERVE,
    "eval": evaluate.EVAL,
    "reconstruct": reconstruct.RECONSTRUCT,
    "import": public_weights.IMPORT,
    "export": public_weights.EXPORT,
}

DESCRIPTION = """\
Train, sample and measure video diffusion transformers.

A run is a folder: `vdit train` fills it (VAE, latents, tokenizer, diffusion transformer), and the other commands
read it. `vdit quickstart` does all of it on embedded data. Public weights (Wan, DiT) can be sampled directly,
imported as a run, and exported again."""

EPILOG = """\
examples:
  vdit quickstart                                  # from nothing to a measured model, in minutes
  vdit curate films curated                        # raw footage to clips, for vdit train --data curated
  vdit train --data my_videos --workdir runs/mine  # a folder of video files with captions
  vdit train experiments/clips.py --cfg.backbone.depth=4 # an experiment file, one value changed
  vdit plan experiments/dit_xl_pod.py              # what a pod needs for it, compiled without one
  vdit sample runs/mine "a dog runs" --out dog.mp4
  vdit sample --model Wan2.1-T2V-1.3B-Diffusers "a dog runs" --out dog.mp4
  vdit animate runs/mine dog.jpg "a dog runs"    # and vdit extend, vdit loop, vdit connect: from images and videos
  vdit rollout runs/mine "a dog runs" --seconds 60 # any length; also vdit simulate: play a world model
  vdit import Wan2.1-T2V-1.3B-Diffusers runs/wan # and vdit export runs/wan FOLDER, the way back
  vdit eval runs/mine --given 5                  # measured: table, JSON, page
  vdit reconstruct runs/mine video.mp4 --out check

`vdit COMMAND --help` says more. User errors print one line and exit with code 2. Exit code 75 means: start the same
command again (SIGTERM, a lost host); 130: Ctrl-C ended it. Compiled programs are cached in ~/.cache/vdit for the next
command (JAX_COMPILATION_CACHE_DIR: another folder; JAX_ENABLE_COMPILATION_CACHE=false: no cache)."""


def entry() -> None:
    """What the shell's `vdit` runs: one command line, after which the process ends.

    A command that fails or is stopped exits at once: Python's own exit would wait for work on the devices,
    minutes at times.
    """
    code = main()
    if code != EX_OK:
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    with outlived_output(), heard_interrupts(), _warnings_as_lines():
        try:
            return _run([item for item in arguments if item != "--traceback"])
        except SystemExit as stop:  # argparse after --help and --version
            return int(stop.code or 0)
        except BaseException as error:
            known = exit_status(error)
            if known is None:
                raise
            line, code = known
            if show_traceback and isinstance(error, Exception):
                traceback.print_exc()
            print(f"vdit: {line}", file=sys.stderr)
            return code


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """What vdit warns of is printed once, as one line; other warnings as ever."""
    said: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.simplefilter("always", VditWarning)

        def line(message, category, *place, **more) -> None:
            if not issubclass(category, VditWarning):
                show(message, category, *place, **more)
            elif str(message) not in said:
                said.add(str(message))
                print(f"vdit: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)

        warnings.showwarning = line
        yield


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(options, overrides "key=value") of a command line; UsageError where it cannot be understood.

    options.command is None where no command is named.
    """
    parser = _parser()
    rest, overrides = take_overrides(arguments)
    name = next((item for item in rest if not item.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{nearest(name, COMMANDS)} (commands: {', '.join(COMMANDS)})")
    options, unknown = parser.parse_known_args(rest)
    if options.command is None:
        refuse_unknown(unknown, parser)
    else:
        refuse_unknown(unknown, options.parser, _config_keys if options.takes_overrides else tuple)
    if overrides and options.command is not None and not options.takes_overrides:
        raise UsageError(f"--cfg.{overrides[0].split('=')[0]}: vdit {options.command} takes no overrides")
    return options, overrides


def _config_keys() -> list[str]:
    """Dotted keys of an experiment's config."""
    from vdit.config import describe
    from vdit.experiment.experiment import Experiment

    return [key for key, _, _ in describe(Experiment(name=""))]


def _run(arguments: list[str]) -> int:
    arguments, plugins = take_plugins(arguments)
    if plugins:
        from vdit.config import load_plugin

        for plugin in plugins:
            load_plugin(plugin)
    options, overrides = parse(arguments)
    if options.command is None:
        _parser().print_help()
        return EX_USAGE
    return options.run(options, overrides)


def _parser() -> Parser:
    parser = Parser(prog="vdit", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"vdit {vdit.__version__}")
    parser.add_argument("--traceback", action="store_true", help="with an error, show where it was raised")
    parser.add_argument(
        "--plugin", action="append", metavar="MODULE", help="import this module or .py file first, for any command: "
        "backbones, data sources, losses, ... that it registers can be named in configs; may be repeated"
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name, help=command.summary, description=command.description, epilog=command.epilog
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run, parser=added, takes_overrides=command.takes_overrides)
    return parser


if __name__ == "__main__":
    entry()
