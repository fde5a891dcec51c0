"""Better captions make better text-to-video models: the claim of re-captioning, measured.

    python -m tools.recaption_claim runs/recaption --captioner runs/worlds_captioner
    python -m tools.recaption_claim runs/recaption --arms sparse true      # without a captioner

Trains the model of experiments/recaption.py on the same videos with three sets of captions: "sparse" (attributes are
missing at random, some are wrong), "synthetic" (a captioner wrote them: --captioner names its run, --captions a
captions.jsonl of `vdit caption`, with a line for each world's number, as 00012.mkv), "true". Steps, videos, VAE and
tokenizer are the same. Each model then makes videos of held-out combinations of colour, shape and direction, from short
and from detailed prompts, and an exact detector says which are right. The "synthetic" model ("true" where there is
none) also makes videos of a user's few words, with and without expansion by a language model of the same captions.

What is finished is not made again. Writes OUT/ARM-SEED (runs), OUT/results.json, OUT/table.md, OUT/plot.png.
Intervals are 95% bootstrap intervals over seeds and prompts together.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import vdit
from experiments.recaption import config
from tools.claims.common import cpu_seconds, interval, quiet
from vdit import paths
from vdit.data.latents import LatentStore, write_latents
from vdit.eval.detectors import detect
from vdit.experiment.experiment import Experiment
from vdit.generate.expansion import open_expander, save_expander
from vdit.language.expansion import Expander
from vdit.quickstart.config import Wanted, held_out_world
from vdit.quickstart.score import PARTS, hits
from vdit.train.expander import ExpanderConfig, caption_pairs, train_expander
from vdit.train.stages import run
from vdit.train.workspace import Workspace
from vdit.worlds import COLOURS, DIRECTIONS, SHAPES, make

ARMS = ("sparse", "synthetic", "true")
KEPT, WRONG = 0.5, 0.15  # of an attribute in a sparse caption: it is named; it is named wrongly
NOUNS = ("shape", "object", "animation", "clip", "thing")
TAILS = ("", "", "", " stock video", " HD", " loop", " free download", " background")
WAYS = {"left": "moving left", "right": "moving right", "up": "going up", "down": "going down"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder for all of it")
    parser.add_argument("--captioner", help="the run of a captioner, for the arm synthetic")
    parser.add_argument("--captions", type=Path, help="captions.jsonl of the videos in OUT/videos, for the same")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), help="default: 0 1 2")
    parser.add_argument("--steps", type=int, help="of each model; default: the experiment's")
    parser.add_argument("--count", type=int, default=64, help="held-out scenes; default: %(default)s")
    options = parser.parse_args(arguments)
    base = config()
    if options.steps:
        base = dataclasses.replace(base, dit_train=dataclasses.replace(base.dit_train, steps=options.steps))
    common = Workspace(options.out / "common")
    run(base, common, stages=("vae", "latents", "tokenizer"), logging=quiet())
    results = {}
    for seed in options.seeds:
        for arm in options.arms:
            captions = captions_of(arm, base, common, options)
            if captions is not None:
                results[f"{arm}-{seed}"] = measured(arm, seed, captions, base, common, options)
    arm = next((arm for arm in ("synthetic", "true") if f"{arm}-{options.seeds[0]}" in results), None)
    if arm is not None:
        expander = arm_expander(options.out / f"expander-{arm}", Workspace(options.out / f"{arm}-{options.seeds[0]}"))
        for seed in options.seeds:
            results[f"expansion-{seed}"] = expanded(Workspace(options.out / f"{arm}-{seed}"), expander, base, options)
    save_results(options.out, results)


# Captions.


def world_of(base: Experiment):
    """The world that the common latents show."""
    source, sample = base.data.source, base.sample
    return make(
        source.world, seed=base.seed, count=source.count, size=sample.size, frames=sample.frames, fps=sample.fps,
        **source.arguments(),
    )  # fmt: skip


def sparse_caption(colour: str, shape: str, direction: str, random: np.random.Generator) -> str:
    """An alternative text as web pages have them: attributes are missing at random, and some are wrong."""
    named = []
    for value, table in ((colour, list(COLOURS)), (shape, list(SHAPES)), (direction, list(DIRECTIONS))):
        keep, wrong = random.random() < KEPT, random.random() < WRONG
        other = table[(table.index(value) + random.integers(1, len(table))) % len(table)]
        named.append((other if wrong else value) if keep else None)
    noun = named[1] or str(random.choice(NOUNS))
    words = [named[0] or "", noun, WAYS.get(named[2] or "", "")]
    return " ".join(word for word in words if word) + str(random.choice(TAILS))


def captions_of(
    arm: str, base: Experiment, common: Workspace, options: argparse.Namespace
) -> list[tuple[str, ...]] | None:
    """The captions of every common latent, or None where there is nobody to write them."""
    store = LatentStore(common.latents)
    if arm == "true":
        return [tuple(store[i]["captions"]) for i in range(len(store))]
    world = world_of(base)
    items = [int(store[i]["id"].partition("[")[2].rstrip("]")) for i in range(len(store))]
    if arm == "sparse":
        random = np.random.default_rng(7)
        return [(sparse_caption(*world[item].meta["combo"], random),) for item in items]
    file = options.captions or options.out / "synthetic.jsonl"
    if not file.exists():
        if options.captioner is None:
            print("synthetic: no --captioner and no --captions: left out", file=sys.stderr)
            return None
        write_captions(file, world, items, options.captioner)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    written = {line["file"]: tuple(text for text in (line.get("caption"), line.get("detailed")) if text)
               for line in lines}  # fmt: skip
    lost = [item for item in items if not written.get(video_name(item))]
    if lost:
        print(f"synthetic: {len(lost)} of {len(items)} videos are trained without a caption", file=sys.stderr)
    return [written.get(video_name(item)) or ("",) for item in items]


def video_name(item: int) -> str:
    return f"{item:05d}.mkv"


def write_captions(file: Path, world, items: Sequence[int], captioner: str, batch: int = 32) -> None:
    """What a captioner's run says of each of the world's videos: a captions.jsonl."""
    from vdit.generate.captions import load_captioner
    from vdit.language.base import Frames
    from vdit.language.captioning import Captioner

    model = load_captioner(captioner)
    asked = Captioner(model=model, prompts=model.prompts, max_tokens=model.max_tokens)
    unique, lines = list(dict.fromkeys(items)), []
    for start in range(0, len(unique), batch):
        part = unique[start : start + batch]
        for item, made in zip(part, asked.caption([Frames(pixels=world[item].video) for item in part])):
            fields = {"caption": made.short, "detailed": made.detailed, "problem": made.problem}
            lines.append(json.dumps({"file": video_name(item)} | {k: v for k, v in fields.items() if v}))
        print(f"captions: {len(lines)} of {len(unique)}", file=sys.stderr, flush=True)
    paths.write_atomic(file, "\n".join(lines) + "\n")


# Models.


def measured(
    arm: str, seed: int, captions: Sequence[tuple[str, ...]], base: Experiment, common: Workspace,
    options: argparse.Namespace,
) -> dict:  # fmt: skip
    """Trains one model, and says which of its videos are right: {"short": [[bool 3] ...], "detailed": ...}."""
    space = Workspace(options.out / f"{arm}-{seed}")
    file = space.root / "measured.json"
    if file.exists():
        return json.loads(file.read_text())
    experiment = dataclasses.replace(base, name=f"recaption-{arm}", seed=seed)
    if not paths.exists(space.latents):
        space.save_experiment(experiment)
        paths.copy_folder(common.vae, space.vae)
        for name in ("statistics.json", "tokenizer.model"):
            paths.copy_file(common.root / name, space.root / name)
        write_latents(space.latents, with_captions(LatentStore(common.latents), captions))
    before = cpu_seconds()
    run(experiment, space, stages=("dit",), logging=quiet())
    trained = cpu_seconds() - before
    generator = vdit.load(space.root)
    found = {}
    for kind in ("short", "detailed"):
        wanted = prompts_of(base, options.count, kind)
        found[kind] = right(generator, wanted, seed).tolist()
    found |= {"cpu_seconds": {"train": round(trained), "sample": round(cpu_seconds() - before - trained)}}
    paths.write_atomic(file, json.dumps(found) + "\n")
    for kind in ("short", "detailed"):
        shares = np.mean(found[kind], 0)
        print(f"{arm}-{seed} {kind}: " + ", ".join(f"{part} {share:.0%}" for part, share in zip(PARTS, shares)),
              file=sys.stderr, flush=True)  # fmt: skip
    return found


def arm_expander(folder: Path, space: Workspace) -> Expander:
    """A language model of the captions that an arm is trained on."""
    if not folder.exists():
        store = LatentStore(space.latents)
        pairs = caption_pairs(store[i]["captions"] for i in range(len(store)))
        save_expander(folder, train_expander(pairs, ExpanderConfig()), pairs=len(pairs))
    return open_expander(lm=folder)


def expanded(space: Workspace, expander: Expander, base: Experiment, options: argparse.Namespace) -> dict:
    """A user's few words, as they are and expanded: {"words": [[bool 3] ...], "expanded": ..., "texts": [...]}."""
    file = space.root / "expanded.json"
    if file.exists():
        return json.loads(file.read_text())
    seed = space.experiment().seed
    generator, wanted = vdit.load(space.root), prompts_of(base, options.count, "words")
    made = expander.expand([each.prompt for each in wanted], seed=seed)
    longer = [each._replace(prompt=one.text) for each, one in zip(wanted, made)]
    found = {"words": right(generator, wanted, seed).tolist(), "expanded": right(generator, longer, seed).tolist()}
    found["texts"] = [one.about() for one in made]
    paths.write_atomic(file, json.dumps(found) + "\n")
    return found


def with_captions(store: LatentStore, captions: Sequence[tuple[str, ...]]) -> Iterator[dict]:
    for number, texts in enumerate(captions):
        yield dict(store[number]) | {"captions": list(texts)}


def prompts_of(base: Experiment, count: int, kind: str) -> list[Wanted]:
    """A prompt for each held-out scene; their combinations of attributes were never trained on."""
    world = held_out_world(base, count)
    scenes = [world[i] for i in range(count)]
    if kind == "words":
        return [Wanted(*scene.meta["combo"], few_words(*scene.meta["combo"], i)) for i, scene in enumerate(scenes)]
    return [Wanted(*s.meta["combo"], s.detailed if kind == "detailed" else s.caption) for s in scenes]


def few_words(colour: str, shape: str, direction: str, number: int) -> str:
    """What a user may type."""
    forms = ("{c} {s} {d}", "{s}, {c}, {d}", "{c} {s} going {d}", "make a {c} {s} go {d}")
    return forms[number % len(forms)].format(c=colour, s=shape, d=direction)


def right(generator, wanted: Sequence[Wanted], seed: int, batch: int = 32) -> np.ndarray:
    """bool [n 3]: whether colour, shape and direction are as wanted."""
    videos = []
    for start in range(0, len(wanted), batch):
        texts = [each.prompt for each in wanted[start : start + batch]]
        videos += list(np.asarray(generator(texts, seed=1000 * seed + start)))
    return hits([detect(video) for video in videos], wanted)


# Results.


def table_rows(results: dict[str, dict]) -> list[tuple]:
    """(what, prompts, seeds, part, mean, low, high) for each group of runs."""
    groups: dict[tuple[str, str], list[np.ndarray]] = {}
    for name, found in sorted(results.items()):
        for kind in ("short", "detailed", "words", "expanded"):
            if kind in found:
                groups.setdefault((name.rpartition("-")[0], kind), []).append(np.asarray(found[kind], bool))
    rows = []
    for (arm, kind), rights in groups.items():
        for part in (*PARTS, "all"):
            of_part = [r.all(1) if part == "all" else r[:, PARTS.index(part)] for r in rights]
            rows.append((arm, kind, len(rights), part, *interval(of_part)))
    return rows


def save_results(out: Path, results: dict[str, dict]) -> None:
    """Writes results.json, table.md and plot.png, and prints the table."""
    rows = table_rows(results)
    paths.write_atomic(out / "results.json", json.dumps({"runs": results, "rows": rows}, indent=1) + "\n")
    shown = {(arm, kind, part): f"{mean:.0%} ({low:.0%} to {high:.0%})" for arm, kind, _, part, mean, low, high in rows}
    lines = ["| captions | prompts | " + " | ".join((*PARTS, "all")) + " |", "| --- | --- |" + " ---: |" * 4]
    for arm, kind in dict.fromkeys((row[0], row[1]) for row in rows):
        cells = " | ".join(shown[arm, kind, part] for part in (*PARTS, "all"))
        lines.append(f"| {arm} | {kind} | {cells} |")
    table = "\n".join(lines)
    paths.write_atomic(out / "table.md", table + "\n")
    plot(out / "plot.png", rows)
    print(table)
    print(out / "plot.png")


def plot(path: Path, rows: Sequence[tuple]) -> None:
    """Shares with their intervals, a panel for each kind of prompt."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    kinds = [kind for kind in ("short", "detailed", "words", "expanded") if any(row[1] == kind for row in rows)]
    titles = {"short": "short prompts", "detailed": "detailed prompts", "words": "a user's few words",
              "expanded": "the same, expanded"}  # fmt: skip
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(3.4 * len(kinds), 3.2), sharey=True, squeeze=False)
    for panel, kind in zip(panels[0], kinds):
        arms = [arm for arm in (*ARMS, "expansion") if any(row[:2] == (arm, kind) for row in rows)]
        for place, arm in enumerate(arms):
            of_arm = [row for row in rows if row[:2] == (arm, kind)]
            x = np.arange(len(of_arm)) + 0.8 * (place + 0.5) / len(arms) - 0.4
            mean, low, high = np.array([row[4:] for row in of_arm]).T
            panel.bar(x, mean, 0.8 / len(arms), label=arm, yerr=(mean - low, high - mean), capsize=3)
        panel.set_xticks(range(len(PARTS) + 1), (*PARTS, "all"))
        panel.set_title(titles[kind], fontsize=10)
        panel.set_ylim(0, 1)
    panels[0][0].set_ylabel("share of videos that are right")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
