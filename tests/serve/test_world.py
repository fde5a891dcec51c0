"""The live world: which key a step plays, and the renderer beside the model."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="vdit serve needs fastapi: pip install -e '.[serve]'")

from tests import tiny
from vdit import worlds
from vdit.data.data_source import WorldsSource
from vdit.generate.simulator import NOTHING
from vdit.serve.world import WORLD_SEED, Latest, RenderedSteer, encode_picture, packed


def test_the_latest_key_wins_and_a_tap_is_played_once():
    latest = Latest()
    assert latest.take() == (NOTHING, None, 0)
    latest.press("d", 1)
    latest.press("w", 2)
    assert latest.take() == ("w", 2, 1)  # d was skipped
    assert latest.take() == ("w", None, 0)  # it is held
    latest.release("w")
    assert latest.take() == ("d", None, 0)  # d still is
    latest.release("d")
    latest.press("a", 3)
    latest.release("a")
    assert latest.take() == ("a", 3, 0)  # tapped between two steps
    assert latest.take() == (NOTHING, None, 0)
    assert latest.idle


def test_the_renderer_step_by_step_is_the_whole_play():
    """Also at the frame's edges, which stop the shape."""
    experiment = tiny.experiment(stride=1, actions=2)
    data = dataclasses.replace(experiment.data, source=WorldsSource(world="steer", count=16))
    generator = types.SimpleNamespace(experiment=dataclasses.replace(experiment, data=data))
    rendered = RenderedSteer(generator, 3)
    rng = np.random.default_rng(0)
    actions = rng.integers(-1, 2, (60, 2)).astype(np.float32)
    actions[10:40, 0] = 1
    steps = [rendered.step(part) for part in np.split(actions, 20)]
    world = worlds.make("steer", seed=WORLD_SEED, size=experiment.sample.size, fps=experiment.sample.fps)
    whole = world.play(3, np.concatenate([np.zeros((1, 2), np.float32), actions]))
    assert whole.meta["stopped"].any()
    np.testing.assert_array_equal(rendered.first, whole.video[0])
    apart = np.abs(np.concatenate(steps).astype(int) - whole.video[1:])
    assert apart.max() <= 1  # sums in another order


@pytest.mark.parametrize(("side", "start"), [(16, b"\x89PNG"), (256, b"\xff\xd8")])
def test_pictures_and_messages(side, start):
    picture = encode_picture(np.zeros((side, side, 3), np.uint8))
    assert picture.startswith(start)
    message = packed({"pictures": [len(picture)]}, [picture])
    assert message.endswith(picture)
    assert int.from_bytes(message[:4], "little") == len(message) - 4 - len(picture)
