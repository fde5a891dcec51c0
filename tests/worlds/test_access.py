"""Every world: sample i depends on (seed, i) alone; size, duration and rate only change how it is seen."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from vdit import worlds
from vdit.errors import ConfigError

EVERY = pytest.mark.parametrize("name", worlds.names())


def digest(samples) -> str:
    total = hashlib.sha256()
    for sample in samples:
        total.update(sample.video.tobytes())
        total.update((sample.caption + sample.detailed).encode())
        for thing in sample.meta["objects"]:
            total.update(thing["position"].tobytes() + thing["velocity"].tobytes())
        total.update(json.dumps(sample.meta["contacts"]).encode())
        if sample.actions is not None:
            total.update(sample.actions.tobytes())
    return total.hexdigest()


@EVERY
def test_the_same_in_any_order(name):
    one, other = worlds.make(name, seed=3), worlds.make(name, seed=3)
    order = [5, 0, 99_999, 2]
    first = {i: digest([one[i]]) for i in order}
    assert first == {i: digest([other[i]]) for i in reversed(order)}
    assert len(set(first.values())) == len(order)
    assert digest([worlds.make(name, seed=4)[5]]) != first[5]


def test_the_same_in_another_process():
    code = (
        "from tests_access import digest\nfrom vdit import worlds\n"
        "for name in worlds.names():\n    print(name, digest([worlds.make(name, seed=9)[i] for i in (3, 1)]))"
    )
    here = {name: digest([worlds.make(name, seed=9)[i] for i in (3, 1)]) for name in worlds.names()}
    loader = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('tests_access', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['tests_access'] = module\n"
        "spec.loader.exec_module(module)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", loader + code], capture_output=True, text=True, check=True, timeout=120
    )
    assert dict(line.split() for line in done.stdout.splitlines()) == here


@EVERY
def test_shape_and_type(name):
    world = worlds.make(name, size=(40, 72), frames=6, fps=12.0, count=7)
    assert len(world) == 7
    sample = world[6]
    assert sample.video.shape == (6, 40, 72, 3)
    assert sample.video.dtype == np.uint8
    assert sample.fps == 12.0
    np.testing.assert_allclose(sample.meta["times"], np.arange(6) / 12)
    for thing in sample.meta["objects"]:
        assert len(thing["position"]) == len(thing["velocity"]) == len(thing["visibility"]) == 6
    assert world.render(0, size=(33, 65), frames=3).video.shape == (3, 33, 65, 3)
    np.testing.assert_array_equal(world[-1].video, sample.video)
    with pytest.raises(IndexError):
        world[7]
    assert len(list(world)) == 7


@pytest.mark.parametrize("name", sorted({*worlds.names()} - {"steer"}))  # which counts in frames
def test_frame_rate_only_chooses_the_instants(name):
    world = worlds.make(name, seed=1)
    for i in range(6):
        slow, fast = world.render(i, frames=9, fps=4.0), world.render(i, frames=25, fps=12.0)
        assert (slow.caption, slow.detailed) == (fast.caption, fast.detailed)
        assert slow.meta["contacts"] == fast.meta["contacts"]
        np.testing.assert_array_equal(slow.video, fast.video[::3])
        for a, b in zip(slow.meta["objects"], fast.meta["objects"]):
            np.testing.assert_allclose(a["position"], b["position"][::3], rtol=0, atol=1e-12)
            np.testing.assert_allclose(a["velocity"], b["velocity"][::3], rtol=0, atol=1e-12)


@EVERY
def test_resolution_only_chooses_the_pixels(name):
    world = worlds.make(name, seed=2)
    for i in range(4):
        small, large = world.render(i, size=(48, 64)), world.render(i, size=(96, 128))
        assert (small.caption, small.detailed) == (large.caption, large.detailed)
        for a, b in zip(small.meta["objects"], large.meta["objects"]):
            np.testing.assert_allclose(a["position"], b["position"], rtol=0, atol=1e-12)
        mean = large.video.reshape(17, 48, 2, 64, 2, 3).mean((2, 4))
        assert np.abs(mean - small.video).mean() < 1.5


@EVERY
def test_actions_are_one_for_each_frame_and_none_leads_to_the_first(name):
    actions = worlds.make(name, seed=3).render(1, frames=11).actions
    assert (actions is not None) == (name in ("steer", "orbit"))
    if actions is not None:
        assert actions.dtype == np.float32
        assert actions.shape == (11, {"steer": 2, "orbit": 1}[name])
        assert not actions[0].any()
        assert actions[1:].any()


@EVERY
def test_one_frame_is_a_still_image(name):
    world = worlds.make(name)
    for i in range(8):
        sample = world.render(i, frames=1)
        assert sample.video.shape == (1, 64, 64, 3)
        for word in ("move", "bounce", "fall", "orbit", "comes out", "left", "right", "steer"):
            assert word not in sample.caption + sample.detailed


@EVERY
def test_facts_are_plain(name):
    def check(value):
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            value = list(value.values())
        if isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (str, int, float, bool, np.ndarray)

    check(worlds.make(name)[0].meta)


def test_unknown_names_and_values_are_refused():
    with pytest.raises(ConfigError, match=r"'bounse' is unknown; the nearest: bounce"):
        worlds.make("bounse")
    with pytest.raises(ConfigError, match="no option 'frame'; the nearest: frames"):
        worlds.make("moving", frame=3)
    for options in (
        {"size": (64, 4)},
        {"frames": 0},
        {"fps": 0.0},
        {"seed": -1},
        {"count": 0},
        {"combos": ()},
        {"combos": (("red", "circle", "sideways"),)},
    ):
        with pytest.raises(ConfigError):
            worlds.make("moving", **options)
    for name, options in (
        ("bounce", {"balls": (0, 2)}),
        ("bounce", {"balls": (4, 6), "radii": (0.1, 0.2)}),  # would find no places
        ("bounce", {"radii": (0.1, 0.3)}),
        ("bounce", {"speeds": (0.6, 0.3)}),
        ("collide", {"restitution": 0.0}),
        ("collide", {"gravity": 0.0}),
        ("orbit", {"kinds": ("cone",)}),
        ("orbit", {"solids": (3, 2)}),
        ("steer", {"step": 0.0}),
        ("occluder", {"sizes": (0.1, 0.13)}),
        ("occluder", {"sizes": (0.0, 0.1)}),
        ("occluder", {"sizes": (0.1, 0.1), "hiding": (0.2, 0.3)}),
        ("occluder", {"hiding": (0.1, 0.05)}),
        ("occluder", {"place": (0.5, 1.2)}),
        ("occluder", {"colours": ("grey",)}),
        ("steer", {"sizes": (0.2, 0.4)}),
    ):
        with pytest.raises(ConfigError):
            worlds.make(name, **options)
    with pytest.raises(ConfigError):
        worlds.make("moving").render(0, frames=0)


def test_held_out_combos_never_show():
    every = worlds.combinations()
    kept = every[::2]
    world = worlds.make("moving", combos=kept, size=(16, 16), frames=2)
    shown = [world[i].meta["combo"] for i in range(len(kept))]
    assert sorted(shown) == sorted(kept)
    assert shown != [world[i + len(kept)].meta["combo"] for i in range(len(kept))]
