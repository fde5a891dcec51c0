"""Metrics of exact truth: near perfect on the true videos, and each sees what breaks its own law."""

import numpy as np
import pytest

from vdit import worlds
from vdit.eval.evaluate import Case, VideoSet, evaluate, metrics_of

NAMES = ("attributes", "trajectory", "permanence", "energy", "momentum", "contacts", "camera")
# The most (or least) of each figure on the true videos: what the detectors themselves are wrong by.
FLOORS = {
    "moving": {"attributes": 1, "trajectory": 0.002, "in_sight": 1},
    "bounce": {"trajectory": 0.002, "in_sight": 1, "energy": 0.03, "momentum": 0.01, "contacts": 0.9},
    "collide": {"trajectory": 0.005, "energy": 0.02, "momentum": 0.02, "contacts": 0.9},
    "occluder": {"permanence": 1, "trajectory": 0.005},
    "steer": {"trajectory": 0.002, "in_sight": 1},
    "orbit": {"trajectory": 0.03, "camera": 4, "space": 0.01},
}


def figures(name, change, count=4):
    world = worlds.make(name, size=(64, 64), frames=17)

    def case(i):
        scene = world[i]
        return Case(name=str(i), video=change(scene.video), truth=scene.video, fps=scene.fps, caption=scene.caption,
                    scene=scene.meta)  # fmt: skip

    cases = VideoSet(name=name, cases=[lambda i=i: case(i) for i in range(count)])
    found = evaluate(cases, metrics_of(NAMES, ["truth", "scene"]))
    assert not found.notes
    return {figure.name: (figure.interval.value, figure.better) for figure in found.figures}


@pytest.mark.parametrize("name", FLOORS)
def test_true_videos_are_right_and_frozen_ones_are_not(name):
    def freeze(video):
        frozen = video.copy()
        frozen[5:] = frozen[4]
        return frozen

    true, frozen = figures(name, lambda video: video), figures(name, freeze)
    for figure, bound in FLOORS[name].items():
        value, better = true[figure]
        assert value >= bound if better == "higher" else value <= bound, (figure, value)
    for figure in set(FLOORS[name]) - {"in_sight", "attributes", "space"}:
        (right, better), (wrong, _) = true[figure], frozen[figure]
        assert wrong < right - 0.2 if better == "higher" else wrong > 3 * right, (figure, right, wrong)


def test_each_law_is_broken_by_itself():
    backward = figures("bounce", lambda video: video[::-1].copy())
    assert backward["energy"][0] < 0.3 < 0.5 < backward["momentum"][0]  # energy has no direction, momentum has
    assert figures("moving", lambda video: video[::-1].copy())["direction"][0] == 0
    gone = figures("bounce", lambda video: np.full_like(video, 60))
    assert gone["in_sight"][0] == 0
    assert gone["energy"][0] > 0.8
    twisted = figures("orbit", lambda video: np.stack([np.roll(frame, (t * 7) % 17 - 8, axis=0) for t, frame in
                                                       enumerate(video)]))  # fmt: skip
    assert twisted["space"][0] > 0.02  # not one rigid scene from any place of the circle
