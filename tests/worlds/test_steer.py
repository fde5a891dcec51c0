"""What is done is what is seen: the steered world and the actions of the orbiting camera."""

import itertools
import re

import numpy as np
import pytest

from vdit import worlds
from vdit.errors import ShapeError


def centres(video):
    """The centre of mass [t 2] (x, y) of what is not grey, in pixels."""
    weight = np.ptp(video.astype(np.float64), axis=-1)
    weight[weight < 8] = 0
    _, height, width = weight.shape
    total = weight.sum((1, 2))
    x, y = weight.sum(1) @ (np.arange(width) + 0.5), weight.sum(2) @ (np.arange(height) + 0.5)
    return np.stack([x, y], 1) / total[:, None]


def samples(count, **options):
    world = worlds.make("steer", **options)
    return [s for s in map(world.__getitem__, range(count)) if s.meta["objects"][0]["colour"] != "white"]


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (80, 48)])
def test_the_pixels_move_by_what_the_facts_say(size):
    for sample in samples(24, size=size, frames=33):
        meta = sample.meta
        step = np.diff(centres(sample.video), axis=0)
        assert np.abs(step - meta["displacement"][1:] * meta["scale"]).max() < 0.15
        wanted = sample.actions * meta["step"]
        free = ~meta["stopped"]
        np.testing.assert_allclose(meta["displacement"][free], wanted[free], atol=1e-12)
        lost = np.abs(wanted - meta["displacement"])[~free]
        assert (lost > 0).all()
        assert (lost <= meta["step"] + 1e-12).all()
        (thing,) = meta["objects"]
        np.testing.assert_allclose(np.cumsum(meta["displacement"], 0) + thing["position"][0], thing["position"])
        np.testing.assert_allclose(thing["velocity"], meta["displacement"] * sample.fps)


def test_a_shape_is_stopped_at_the_edges_only_and_stays_whole():
    seen = set()
    for sample in samples(40, frames=65):
        edges = np.concatenate([sample.video[:, [0, -1]].reshape(-1, 3), sample.video[:, :, [0, -1]].reshape(-1, 3)])
        assert np.ptp(edges.astype(int), axis=1).max() < 10
        (thing,), outline = sample.meta["objects"], worlds.SHAPES[sample.meta["objects"][0]["shape"]]
        low = thing["size"] * np.array([outline.left, outline.up]) + 0.02
        high = 1 - thing["size"] * np.array([outline.right, outline.down]) - 0.02
        wanted = thing["position"][:-1] + sample.actions[1:] / 16
        beyond = (wanted < low - 1e-9) | (wanted > high + 1e-9)
        np.testing.assert_array_equal(sample.meta["stopped"][1:], beyond)
        np.testing.assert_allclose(thing["position"][1:], np.clip(wanted, low, high), atol=1e-12)
        for axis, way in itertools.product((0, 1), (-1, 1)):
            if (sample.meta["stopped"][:, axis] & (sample.actions[:, axis] == way)).any():
                seen.add((axis, way))
    assert len(seen) == 4


def test_actions_are_held_use_all_ways_and_stand_still():
    actions = np.stack([s.actions for s in samples(200, frames=33, size=(16, 16))])
    ways, count = np.unique(actions[:, 1:].reshape(-1, 2), axis=0, return_counts=True)
    assert ways.tolist() == [[x, y] for x in (-1, 0, 1) for y in (-1, 0, 1)]
    assert count.min() / count.sum() > 0.08
    kept = (actions[:, 2:] == actions[:, 1:-1]).all(-1).mean()
    assert 0.65 < kept < 0.9  # 1 - 8/9 / 4 = 0.78: runs of 4 frames on the average


def test_a_longer_clip_begins_with_the_shorter_and_the_rate_changes_nothing():
    world = worlds.make("steer", seed=5)
    for i in range(6):
        long, short = world.render(i, frames=40, fps=24.0), world.render(i, frames=9, fps=8.0)
        np.testing.assert_array_equal(long.video[:9], short.video)
        np.testing.assert_array_equal(long.actions[:9], short.actions)


def test_playing_its_own_actions_gives_the_sample_and_others_another_video_from_the_same_start():
    world = worlds.make("steer", seed=2, frames=13)
    for i in range(8):
        sample = world[i]
        again = world.play(i, sample.actions)
        np.testing.assert_array_equal(again.video, sample.video)
        assert (again.caption, again.detailed) == (sample.caption, sample.detailed)
        actions = np.zeros((21, 2))
        actions[1:9, 0], actions[9:, 1] = 1, -0.5
        other = world.play(i, actions, size=(48, 48))
        np.testing.assert_array_equal(other.meta["objects"][0]["position"][0], sample.meta["objects"][0]["position"][0])
        assert (other.meta["displacement"][1:9] >= 0).all()
        first = 1 + np.flatnonzero(~other.meta["stopped"][1:9, 0])
        np.testing.assert_allclose(other.meta["displacement"][first, 0], 1 / 16)
        assert other.video.shape == (21, 48, 48, 3)


@pytest.mark.parametrize(("actions", "message"), [
    (np.zeros((3, 1)), r"shape \(3, 1\)"), (np.zeros((0, 2)), r"shape \(0, 2\)"), (np.full((2, 2), np.nan), "finite"),
    (np.ones((3, 2)), r"actions\[0\]=\[1.0, 1.0\]"),
])  # fmt: skip
def test_actions_that_cannot_be_played_are_refused(actions, message):
    with pytest.raises(ShapeError, match=message):
        worlds.make("steer").play(0, actions)


def test_captions_say_what_is_there():
    for sample in samples(40, size=(16, 16), frames=3):
        (thing,) = sample.meta["objects"]
        assert re.fullmatch(rf"an? {thing['colour']} {thing['shape']} that is steered", sample.caption)
        assert ("large" in sample.detailed) == (thing["size"] >= 0.15)
        assert ("dark grey" in sample.detailed) == (sample.meta["background"]["level"] < 60)


@pytest.mark.parametrize("fps", [8.0, 24.0])
def test_actions_of_the_camera_are_how_far_it_turns(fps):
    world = worlds.make("orbit", size=(16, 16), frames=9, fps=fps)
    for i in range(8):
        sample = world[i]
        angle = np.unwrap(np.arctan2(*sample.meta["camera"]["centre"].T[1::-1]))
        np.testing.assert_allclose(np.diff(np.degrees(angle)) / 10, sample.actions[1:, 0], rtol=1e-5)
