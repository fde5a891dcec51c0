"""`vdit expand`: short prompts to detailed captions; and the options of `vdit sample --expand`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vdit import paths
from vdit.cli.parser import Command, UsageError, at_least, seed

if TYPE_CHECKING:
    from vdit.language.expansion import Expander, Expansion

SUMMARY = "make detailed captions of short prompts, as the model's training captions are"
DESCRIPTION = """\
Rewrites each prompt into a detailed caption in the style that the model was trained on, and prints it. What writes it:
RUN's own expander, a small language model trained on the run's captions (--train makes it; `vdit quickstart` has one);
or --lm, a public language model; or --endpoint, a model behind an OpenAI-compatible server.

Every colour, number, object and direction of the prompt must be in the caption. If one is lost, or the answer is a
refusal, a repetition or too long, the model is asked again; after the last try the prompt is printed unchanged, with a
note on stderr, and the exit code is still 0. The same seed gives the same text. `vdit sample --expand` uses the caption
and writes prompt, caption and model into the video's metadata and the manifest."""
EPILOG = """\
examples:
  vdit expand runs/quickstart "red circle left"
  vdit expand runs/mine --train                                  # on the captions of the run, in a minute
  vdit expand runs/mine "a dog runs" --lm SmolLM2-135M-Instruct  # a folder of transformers, or a .gguf file
  vdit expand --endpoint MODEL "a dog runs" --task image         # the server at $OPENAI_BASE_URL
  vdit expand runs/mine "a dog runs" --lm MODEL --prompt-file my_prompts.md --json
  vdit sample runs/quickstart "red circle left" --expand --out circle.mp4

A prompt file is Markdown with the headings `# system`, `# video`, `# image` and `# edit`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="RUN PROMPT", help="the folder of a run, then texts; quote them")
    _add_models(parser)
    parser.add_argument("--task", choices=("video", "image", "edit"), default="video", help="default: %(default)s")
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each prompt")
    parser.add_argument("--train", action="store_true", help="train RUN's expander on its captions, into RUN/expander")
    parser.add_argument("--pairs", metavar="FILE", help='with --train: a .jsonl of {"short", "long"} instead')
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="with --train; default: 250")


def add_expansion(parser: argparse.ArgumentParser) -> None:
    """Options of commands that make videos of prompts."""
    parser.add_argument("--expand", action="store_true", help="first make detailed captions of prompts (vdit expand)")
    _add_models(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lm", metavar="PATH", help="expand by this language model: a folder, or a .gguf file")
    parser.add_argument("--endpoint", metavar="MODEL", help="expand by a model of the server at $OPENAI_BASE_URL")
    parser.add_argument("--prompt-file", metavar="FILE", help="what --lm or --endpoint is asked; default: vdit's own")
    parser.add_argument(
        "--tries", type=at_least(1, most=100), metavar="N", help="of each prompt; default: 3; RUN's own: 8"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    named = options.lm is not None or options.endpoint is not None
    folder = options.words[0] if options.words and (not named or paths.is_dir(options.words[0])) else None
    prompts = options.words if folder is None else options.words[1:]
    if options.train:
        return _train(options, folder, prompts)
    if options.pairs is not None or options.steps is not None:
        raise UsageError("--pairs and --steps are for --train")
    if not prompts:
        rule = "nothing to expand: give RUN and a PROMPT (see vdit expand --help)"
        absent = folder is not None and not paths.is_dir(folder)
        raise UsageError(f"{folder!r} is no folder of a run; {rule}" if absent else rule)
    for one in _expanded(options, folder, prompts, options.task):
        if options.json:
            print(json.dumps(one.about(), ensure_ascii=False), flush=True)
        else:
            print(one.text, flush=True)
    return 0


def _train(options: argparse.Namespace, folder: str | None, prompts: Sequence[str]) -> int:
    if folder is None or prompts or options.lm or options.endpoint:
        raise UsageError("--train: give RUN, the folder of a run, and no prompt, --lm or --endpoint")
    from rich.console import Console

    from vdit.cli.process import keep_compiled
    from vdit.cli.status import Status
    from vdit.generate.expansion import file_pairs, run_pairs, train_run_expander
    from vdit.train.expander import ExpanderConfig

    pairs = run_pairs(folder) if options.pairs is None else file_pairs(options.pairs)
    config = ExpanderConfig() if options.steps is None else ExpanderConfig(steps=options.steps)
    keep_compiled()
    with Status("expand", console=Console()) as status:
        status.tell("found", f"{len(pairs)} pairs of a short and a detailed caption in {options.pairs or folder}")
        status.tell("makes", f"an expander {config.width} wide and {config.layers} deep, {config.steps} steps")
        status.begin()
        with status.progress("steps", config.steps) as display:
            made = train_run_expander(
                folder, config, pairs=pairs, progress=lambda done, loss: display.update(done, {"loss": loss})
            )
        status.wrote(made)
        status.next = f'vdit expand {shlex.quote(str(folder))} "a prompt"'
    return 0


def expansions(options: argparse.Namespace, folder: str, prompts: Sequence[str]) -> list[Expansion] | None:
    """What `vdit sample --expand` makes of its prompts; None where it is not asked to."""
    given = next((name for name in ("lm", "endpoint", "prompt_file", "tries") if getattr(options, name)), None)
    if not options.expand:
        if given is not None:
            raise UsageError(f"--{given.replace('_', '-')} is for --expand: give both")
        return None
    task = "image" if options.image is not None else "video"
    return _expanded(options, folder, prompts, task)


def _expanded(options: argparse.Namespace, folder: str | None, prompts: Sequence[str], task: str) -> list[Expansion]:
    """Expands prompts, and says on stderr what was made of each."""
    from vdit.cli.process import keep_compiled

    keep_compiled()
    expander = _opened(options, folder)
    made = expander.expand(prompts, seed=options.seed, task=task)
    for one in made:
        line = f"{one.prompt!r} is {one.note}" if one.note else f"{one.prompt!r} -> {one.text!r}"
        print(f"vdit: expand ({one.model}, seed {one.seed}): {line}", file=sys.stderr, flush=True)
    return made


def _opened(options: argparse.Namespace, folder: str | None) -> Expander:
    from vdit.generate.expansion import open_expander

    return open_expander(
        folder, lm=options.lm, endpoint=options.endpoint, prompt_file=options.prompt_file, tries=options.tries
    )


EXPAND = Command(summary=SUMMARY, description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
