"""Every word of a caption that names a fact is true of the facts."""

import re

import numpy as np
import pytest

from vdit import worlds

COLOURS = "|".join(worlds.COLOURS)


def both(sample):
    return sample.caption.lower(), sample.detailed.lower()


def test_moving():
    world = worlds.make("moving", seed=2, size=(24, 24), frames=5, fps=4.0)
    details = set()
    for i in range(256):
        sample = world[i]
        (thing,) = sample.meta["objects"]
        dx, dy = thing["position"][-1] - thing["position"][0]
        way = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
        assert sample.meta["combo"] == (thing["colour"], thing["shape"], way)
        for text in both(sample):
            assert set(re.findall(rf"\b({COLOURS})\b", text)) == {thing["colour"]}
            assert set(re.findall(r"\b(circle|square|triangle|cross)\b", text)) == {thing["shape"]}
            assert set(re.findall(r"\b(left|right|up|down)\b", text)) == {way}
        assert ("large" in sample.detailed) == (thing["size"] >= 0.17)
        assert ("quick" in sample.detailed) == (np.abs(thing["velocity"]).max() >= 0.22)
        assert ("slow" in sample.detailed) == (np.abs(thing["velocity"]).max() < 0.22)
        assert ("dark grey" in sample.detailed) == (sample.meta["background"]["level"] < 60)
        details.add(sample.detailed.split(thing["colour"])[0][:12])
    assert len(details) >= 4
    assert (
        worlds.make("moving", combos=(("red", "circle", "left"),))[0].caption
        == "a red circle moves to the left"
    )
    assert worlds.make("moving", combos=(("orange", "cross", "up"),))[0].caption == "an orange cross moves up"


@pytest.mark.parametrize("name", ["bounce", "collide"])
def test_balls(name):
    world = worlds.make(name, seed=1, size=(24, 24))
    walls = {"left wall": "left", "right wall": "right", "ceiling": "top", "floor": "bottom"}
    for i in range(128):
        sample = world[i]
        contacts = sample.meta["contacts"]
        colours = [thing["colour"] for thing in sample.meta["objects"]]
        pairs = {frozenset(colours[k] for k in c["objects"]) for c in contacts if c["kind"] == "pair"}
        hits = {(colours[c["objects"][0]], c["wall"]) for c in contacts if c["wall"]}
        assert re.findall(rf"({COLOURS}) ball", sample.caption) == colours
        assert ("collide" in sample.caption) == bool(pairs)
        if name == "bounce":
            assert ("bounce" in sample.caption) == bool(hits)
        else:
            assert ("bounce" in sample.caption) == any(wall == "bottom" for _, wall in hits)
            fell = [t["position"][:3, 1] for t in sample.meta["objects"]]
            early = [c for c in contacts if c["time"] <= sample.meta["times"][1]]
            assert all(y[1] > y[0] for y in fell) or early
        text = sample.detailed.lower()
        told = {
            frozenset(pair)
            for pair in re.findall(rf"the ({COLOURS}) ball and the ({COLOURS}) ball col", text)
        }
        assert told == pairs
        named = {
            (colour, wall)
            for colour, rest in re.findall(rf"the ({COLOURS}) ball hits ([^.]*)\.", text)
            for word, wall in walls.items()
            if word in rest
        }
        assert named == hits
        sizes = re.findall(rf"(small|large) (?:{COLOURS}) ball", text)
        assert sizes == ["large" if t["size"] >= 0.11 else "small" for t in sample.meta["objects"]]


def test_occluder():
    world = worlds.make("occluder", size=(24, 24))
    for i in range(64):
        sample = world[i]
        (thing,) = sample.meta["objects"]
        dx, dy = thing["velocity"][0]
        way = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
        assert set(re.findall(r"\b(left|right|up|down)\b", sample.caption)) == {way}
        end = {"left": "left", "right": "right", "up": "top", "down": "bottom"}[way]
        assert f"towards the {end} edge" in sample.detailed
        for text in both(sample):
            assert f"{thing['colour']} {thing['shape']}" in text
        assert thing["visibility"][0] == thing["visibility"][-1] == 1
        assert thing["visibility"].min() < 1e-9


def test_orbit():
    world = worlds.make("orbit", size=(16, 16), frames=3)
    for i in range(64):
        sample = world[i]
        things = [f"{thing['colour']} {thing['shape']}" for thing in sample.meta["objects"]]
        assert re.findall(rf"((?:{COLOURS}) (?:sphere|cube))", sample.caption) == things
        camera = sample.meta["camera"]
        step = camera["centre"][1] - camera["centre"][0]
        rightwards = camera["extrinsics"][0, 0, :3] @ step > 0
        for text in both(sample):
            assert ("to the right" in text) == rightwards
            assert ("to the left" in text) != rightwards
        assert ("quickly" in sample.detailed) == (abs(camera["degrees_per_second"]) >= 30)
        limit = {"sphere": 0.28, "cube": 0.225}
        sizes = ["large" if t["size"] >= limit[t["shape"]] else "small" for t in sample.meta["objects"]]
        assert re.findall(r"\b(small|large)\b", sample.detailed) == sizes
