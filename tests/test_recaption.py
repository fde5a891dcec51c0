"""The tool that measures what better captions bring: its captions, its prompts, its intervals."""

import re

import numpy as np
import pytest

from tools import recaption_claim as claim
from vdit.quickstart.score import PARTS
from vdit.worlds import COLOURS, DIRECTIONS, SHAPES
from vdit.worlds.moving import subset

base = pytest.importorskip("experiments.recaption").config()
NAMES = {"colour": COLOURS, "shape": SHAPES}


def test_sparse_captions_lack_attributes_and_some_are_wrong():
    random, combos = np.random.default_rng(0), subset("train")
    named, right = {"colour": 0, "shape": 0}, {"colour": 0, "shape": 0}
    for i in range(3000):
        combo = combos[i % len(combos)]
        words = set(re.findall(r"\w+", claim.sparse_caption(*combo, random)))
        for place, part in enumerate(NAMES):
            found = words & set(NAMES[part])
            named[part] += bool(found)
            right[part] += combo[place] in found
    for part in NAMES:
        assert named[part] / 3000 == pytest.approx(claim.KEPT, abs=0.04)
        assert right[part] / named[part] == pytest.approx(1 - claim.WRONG, abs=0.04)


def test_the_videos_are_of_trained_combinations_and_the_prompts_of_others():
    world = claim.world_of(base)
    assert {world[i].meta["combo"] for i in range(96)} <= set(subset("train"))
    for kind in ("short", "detailed", "words"):
        wanted = claim.prompts_of(base, 12, kind)
        assert {w[:3] for w in wanted} <= set(subset("held_out"))
        for w in wanted:
            assert {w.colour, w.shape, w.direction} <= set(re.findall(r"\w+", w.prompt.lower()))


def test_few_words_name_everything():
    for direction in DIRECTIONS:
        for number in range(4):
            text = claim.few_words("red", "cross", direction, number)
            assert {"red", "cross", direction} <= set(re.findall(r"\w+", text))


def test_rows_and_plot(tmp_path):
    right = [[True, False, True], [True, True, True]]
    runs = {f"{arm}-{seed}": {"short": right, "detailed": right} for arm in ("sparse", "true") for seed in (0, 1)}
    rows = claim.table_rows(runs | {"expansion-0": {"words": right, "expanded": right}})
    assert {(row[0], row[1]) for row in rows} == {
        ("sparse", "short"), ("sparse", "detailed"), ("true", "short"), ("true", "detailed"), ("expansion", "words"),
        ("expansion", "expanded"),
    }  # fmt: skip
    shares = {row[3]: row[4] for row in rows if row[:2] == ("true", "short")}
    assert shares == {**dict(zip(PARTS, (1.0, 0.5, 1.0))), "all": 0.5}
    claim.plot(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
