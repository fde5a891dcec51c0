"""What a captioner of worlds gets right on scenes that it never saw, by the worlds' exact facts.

    python -m tools.captioner_report runs/worlds_captioner --scenes 240 --out captioner

For each scene the caption's words are compared with the scene's facts: colours, shapes, count, direction of motion,
contacts and the camera; in the short and in the detailed caption. Beside it stands the baseline: captions of random
training scenes of the same world, so that only what is seen in the clip tells them apart. Writes OUT.json and OUT.html.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
from pathlib import Path

import numpy as np

from vdit import worlds
from vdit.eval.page import Page
from vdit.generate.captions import load_captioner
from vdit.language.base import Frames
from vdit.language.captioning import Captioner
from vdit.language.checks import CaptionRules
from vdit.seeds import child_seed
from vdit.worlds.draw import COLOURS, SHAPES

KINDS = (*SHAPES, "ball", "sphere", "cube")
DIRECTIONS = ("left", "right", "up", "down")
ATTRIBUTES = ("colour", "shape", "count", "direction", "contact", "camera")


def facts_of(sample: worlds.WorldSample) -> dict[str, str]:
    """Attribute -> what is true; only those that the world's captions speak of."""
    meta = sample.meta
    kinds = ["ball" if meta["world"] == "bounce" else one["shape"] for one in meta["objects"]]
    facts = {
        "colour": " ".join(sorted(one["colour"] for one in meta["objects"])),
        "shape": " ".join(sorted(set(kinds))),
        "count": str(len(kinds)),
        "camera": "still",
    }
    if meta["world"] == "moving":
        facts["direction"] = meta["combo"][2]
    if meta["world"] == "bounce":
        pairs = any(contact["kind"] == "pair" for contact in meta["contacts"])
        walls = any(contact["kind"] == "wall" for contact in meta["contacts"])
        facts["contact"] = " ".join(["pair"] * pairs + ["wall"] * walls) or "none"
    if meta["world"] == "orbit":
        facts["camera"] = "right" if meta["camera"]["degrees_per_second"] > 0 else "left"
    return facts


def read_facts(text: str) -> dict[str, str]:
    """What a caption says, in the same words."""
    text = text.casefold()
    found = re.findall(rf"\b({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b", text)
    named = sorted(set(found)) or [(colour, "") for colour in re.findall(rf"\b({'|'.join(COLOURS)})\b", text)[:1]]
    kinds = re.findall(rf"\b({'|'.join(KINDS)})\b", text)
    camera = re.search(r"camera[^.]*?\bto the (left|right)\b", text)
    way = re.search(r"\b(up|down)\b(?! from)|to the (left|right)", re.sub(r"[^.]*camera[^.]*\.?", "", text))
    pair = "collide" in text
    wall = bool(re.search(r"bounces? off|\bhits\b", text))
    return {
        "colour": " ".join(sorted({colour for colour, _ in named})),
        "shape": " ".join(sorted(set(kinds))),
        "count": str(len(named)),
        "direction": next((part for part in (way.groups() if way else ()) if part), "none"),
        "contact": " ".join(["pair"] * pair + ["wall"] * wall) or "none",
        "camera": camera[1] if camera else "still",
    }


def scores(facts: list[dict], said: list[str]) -> dict[str, tuple[int, int]]:
    """Attribute -> (right, asked) over scenes; "all" where every attribute of a scene is right."""
    total = {name: [0, 0] for name in (*ATTRIBUTES, "all")}
    for true, text in zip(facts, said):
        read = read_facts(text)
        right = {name: read[name] == value for name, value in true.items()} | {}
        for name, good in (right | {"all": all(right.values())}).items():
            total[name][0] += good
            total[name][1] += 1
    return {name: (good, asked) for name, (good, asked) in total.items()}


def interval(good: int, asked: int) -> str:
    """Share with Wilson's 95% interval."""
    if not asked:
        return "-"
    p, z = good / asked, 1.96
    middle = (p + z**2 / (2 * asked)) / (1 + z**2 / asked)
    half = z * ((p * (1 - p) + z**2 / (4 * asked)) / asked) ** 0.5 / (1 + z**2 / asked)
    return f"{100 * p:.0f}% [{100 * (middle - half):.0f}, {100 * (middle + half):.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a captioner that was trained on worlds")
    parser.add_argument("--scenes", type=int, default=240)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--out", default="captioner", help="OUT.json and OUT.html; default: %(default)s")
    options = parser.parse_args()
    model = load_captioner(options.run)
    e = model.experiment
    source, data = e.data.source, e.data
    height = round(max(data.pixel_budgets) ** 0.5) // data.size_multiple * data.size_multiple
    view = {"size": (height, height), "frames": max(data.frames), "fps": max(data.fps)}
    held_out = worlds.make(source.world, seed=child_seed(e.seed, 1), count=options.scenes, **source.arguments(), **view)
    training = worlds.make(source.world, seed=e.seed, count=source.count, **source.arguments(), **view)
    samples = [held_out[i] for i in range(options.scenes)]
    captioner = Captioner(model=model, prompts=model.prompts, max_tokens=model.max_tokens,
                          rules=CaptionRules(language="any"))  # fmt: skip
    captions = []
    for first in range(0, len(samples), options.batch):
        part = samples[first : first + options.batch]
        captions += captioner.caption([Frames(pixels=sample.video) for sample in part])
        print(f"{len(captions)} of {len(samples)}", flush=True)
    facts = [facts_of(sample) for sample in samples]
    rng = np.random.default_rng(0)
    turns = source.world.count("+") + 1
    random = [training[int(rng.integers(source.count // turns)) * turns + i % turns] for i in range(len(samples))]
    said = {
        "captioner, short": [one.short for one in captions],
        "captioner, detailed": [one.detailed for one in captions],
        "random, short": [one.caption for one in random],
        "random, detailed": [one.detailed for one in random],
        "the world's own, short": [one.caption for one in samples],
        "the world's own, detailed": [one.detailed for one in samples],
    }
    table = {name: scores(facts, texts) for name, texts in said.items()}
    confusion = {name: collections.Counter() for name in ATTRIBUTES}
    for true, one in zip(facts, captions):
        read = read_facts(one.short)
        for name, value in true.items():
            confusion[name][value, read[name]] += 1
    marked = collections.Counter(one.problem for one in captions if one.problem)
    report(options.out, table, confusion, marked, samples, captions)


def report(out: str, table, confusion, marked, samples, captions) -> None:
    """Prints the table, and writes it with confusions and examples."""
    names = (*ATTRIBUTES, "all")
    rows = [[name, *(interval(*table[name][attribute]) for attribute in names)] for name in table]
    for row in [["", *names], *rows]:
        print("  ".join(f"{cell:>16}" if i else f"{cell:26}" for i, cell in enumerate(row)))
    values = {
        "scenes": len(samples),
        "marked": {str(name): count for name, count in marked.items()},
        "right_of": {name: {attribute: table[name][attribute] for attribute in names} for name in table},
        "confusion": {name: [[*pair, n] for pair, n in counts.most_common()] for name, counts in confusion.items()},
    }
    Path(f"{out}.json").write_text(json.dumps(values, indent=1) + "\n")
    page = Page("captioner", f"{len(samples)} scenes that it never saw; {sum(marked.values())} answers marked")
    page.table(["captions", *names], rows, title="right, with 95% intervals")
    for name, counts in confusion.items():
        wrong = [[true, read, count] for (true, read), count in counts.most_common() if true != read][:12]
        if wrong:
            page.table(["true", "said", "scenes"], wrong, title=f"{name}: most common confusions, short captions")
    cards = [(sample.video, f"{one.short or one.problem} (true: {sample.caption})",
              "ok" if one.problem is None and scores([facts_of(sample)], [one.short])["all"][0] else "wrong")
             for sample, one in zip(samples[:48], captions)]  # fmt: skip
    page.videos(cards, 8, title="examples").save(f"{out}.html")


if __name__ == "__main__":
    main()
