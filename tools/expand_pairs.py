"""How much of short prompts survives expansion, on pairs of short and long prompts, and examples to read.

    python -m tools.expand_pairs ../shared/data/prompts/short_long_pairs.jsonl --out runs/pairs
    python -m tools.expand_pairs ../shared/data/prompts/short_long_pairs.jsonl --lm SmolLM2.gguf --count 24

FILE is a .jsonl of {"short", "long"}. Some short prompts are held out, with all of their pairs. Without --lm a language
model is trained on the other pairs (it stays in OUT/expander). Prints, for the held-out prompts: the share of first
answers that keep every important word (vdit/language/words.py), the share of such words that they keep, the share of
prompts that are expanded after all tries, the same of the file's own long prompts, and examples.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
from pathlib import Path

import numpy as np

from vdit import paths
from vdit.generate.expansion import FOLDER, file_pairs, open_expander, save_expander
from vdit.language.base import Completion
from vdit.language.words import important_words, lost_words
from vdit.train.expander import ExpanderConfig, train_expander


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="pairs of prompts")
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"), help="default: %(default)s")
    parser.add_argument("--lm", help="a public language model instead of one that is trained")
    parser.add_argument("--count", type=int, default=500, help="held-out prompts; default: %(default)s")
    parser.add_argument("--steps", type=int, default=400, help="of training; default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=1.5e-2, help="the largest; default: %(default)s")
    parser.add_argument("--width", type=int, default=128, help="of the language model; default: %(default)s")
    parser.add_argument("--tries", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    pairs = file_pairs(options.file)
    shorts = list(dict.fromkeys(short for short, _ in pairs))
    held = set(np.random.default_rng(options.seed).permutation(shorts)[: options.count].tolist())
    prompts = [short for short in shorts if short in held]
    folder = options.out / FOLDER
    if options.lm is None and not folder.exists():
        config = ExpanderConfig(
            width=options.width, vocab_size=2048, steps=options.steps, learning_rate=options.learning_rate,
            seed=options.seed,
        )  # fmt: skip
        rest = [pair for pair in pairs if pair[0] not in held]
        show = lambda done, loss: print(f"{done} of {config.steps}, loss {loss:.3f}", file=sys.stderr, flush=True)  # noqa: E731
        save_expander(folder, train_expander(rest, config, progress=show), pairs=len(rest))
        print(f"trained on {len(rest)} pairs in {cpu():.0f} CPU s")
    expander = open_expander(lm=options.lm or folder, tries=options.tries)
    expander = dataclasses.replace(expander, model=(kept := Kept(expander.model)))
    began = cpu()
    made = expander.expand(prompts, seed=options.seed)
    first = [answer.text for answer in kept.answers[: len(prompts)]]
    longs = dict(reversed(pairs))
    rows = {
        "first answers": survival(prompts, first),
        f"after {options.tries} tries": survival(prompts, [one.text for one in made]),
        "the file's own": survival(prompts, [longs[prompt] for prompt in prompts]),
    }
    print(f"{len(prompts)} held-out prompts, {cpu() - began:.0f} CPU s")
    for name, (whole, words) in rows.items():
        print(f"{name:16} all words kept {whole:.1%}, of all words {words:.1%}")
    print(f"expanded, not unchanged: {np.mean([one.expanded for one in made]):.1%}")
    for one in made[:: max(1, len(made) // 10)][:10]:
        print(f"\n- {one.prompt}\n  {one.note or one.text}")
    paths.write_atomic(options.out / "expansions.json", json.dumps([one.about() for one in made], indent=1) + "\n")


class Kept:
    """A model whose answers are kept."""

    def __init__(self, model):
        self.model, self.name, self.answers = model, model.name, []

    def complete(self, requests, options) -> list[Completion]:
        made = self.model.complete(requests, options)
        self.answers += made
        return made


def survival(prompts: list[str], texts: list[str]) -> tuple[float, float]:
    """(share of texts that keep every important word, share of the words that are kept)."""
    lost = [len(lost_words(prompt, text)) for prompt, text in zip(prompts, texts)]
    return float(np.mean([not count for count in lost])), 1 - sum(lost) / sum(len(important_words(p)) for p in prompts)


def cpu() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


if __name__ == "__main__":
    main()
