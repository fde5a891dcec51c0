"""The tracker finds what was rendered, through blur and noise, beside walls, and nothing where nothing is."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vdit import worlds
from vdit.errors import ShapeError
from vdit.eval.detectors import (
    Track,
    colour_drift,
    count_objects,
    displacements,
    is_permanent,
    obeyed_fraction,
    position_error,
    track,
)

MEASURABLE = {"sizes": (0.08, 0.1), "hiding": (0.06, 0.09), "place": (0.45, 0.55)}


def spoilt(video, blur, noise, random):
    """uint8 [t h w 3] -> float in [-1, 1] through a Gaussian blur (pixels) and noise (of 0..255)."""
    x = gaussian_filter(video.astype(np.float32), (0, blur, blur, 0), mode="nearest")
    return np.clip(x + random.normal(0, noise, x.shape), 0, 255) / 127.5 - 1


def measured(name, size, blur=0.0, noise=0.0, count=24, **options):
    """Of each clip: the sample, what is found, and the true centres in pixels."""
    world, random = worlds.make(name, size=size, seed=3, **options), np.random.default_rng(0)
    for i in range(count):
        sample = world[i]
        truth = sample.meta["objects"][0]["position"] * sample.meta["scale"]
        yield sample, track(spoilt(sample.video, blur, noise, random)), truth


@pytest.mark.parametrize(("blur", "noise", "bound"), [(0.0, 0.0, 0.16), (1.0, 6.0, 0.2), (1.5, 12.0, 0.5)])
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (48, 80)])
@pytest.mark.parametrize("name", ["moving", "steer"])
def test_centres_are_the_rendered_ones_and_colours_too(name, size, blur, noise, bound):
    for sample, found, truth in measured(name, size, blur, noise):
        assert position_error(found.centres, truth).max() < bound
        assert found.seen.all()
        assert set(found.colour) == {sample.meta["objects"][0]["colour"]}


@pytest.mark.parametrize(("blur", "noise", "bound"), [(0.0, 0.0, 0.4), (1.0, 6.0, 0.7), (1.5, 12.0, 0.85)])
@pytest.mark.parametrize("options", [{}, MEASURABLE])
def test_beside_a_wall_too_and_behind_it_nothing_is_in_sight(options, blur, noise, bound):
    hidden = 0
    for sample, found, truth in measured("occluder", (48, 48), blur, noise, **options):
        (thing,) = sample.meta["objects"]
        whole, none = thing["visibility"] > 1 - 1e-9, thing["visibility"] < 1e-9
        assert position_error(found.centres, truth)[whole].max() < bound
        assert {found.colour[t] for t in np.flatnonzero(whole)} == {thing["colour"]}
        assert not found.seen[none].any()
        assert np.isnan(found.centres[none]).all()
        assert {found.colour[t] for t in np.flatnonzero(none)} <= {None}
        hidden += none.sum()
    assert hidden > 20


def test_the_area_is_what_is_in_sight_of_the_shape():
    for sample, found, _ in measured("occluder", (64, 64), 1.0, 3.0):
        (thing,) = sample.meta["objects"]
        share = found.area / found.area[thing["visibility"] > 1 - 1e-9].mean()
        clear = thing["visibility"] > 0.3
        bound = 0.25 if thing["colour"] == "white" else 0.05
        np.testing.assert_allclose(share[clear], thing["visibility"][clear], atol=bound)
    circles = [(s, f) for s, f, _ in measured("moving", (64, 64)) if s.meta["combo"][1] == "circle"]
    for sample, found in circles:
        expected = np.pi * (sample.meta["objects"][0]["size"] * 64) ** 2
        np.testing.assert_allclose(found.area, expected, rtol=0.03)
    assert len(circles) >= 4


def test_each_frame_is_measured_on_its_own():
    video = worlds.make("steer", size=(48, 48))[3].video
    alone = [track(video[t : t + 1]) for t in range(len(video))]
    np.testing.assert_allclose(np.concatenate([a.centres for a in alone]), track(video).centres, rtol=1e-12)


def test_nothing_in_sight_where_nothing_is():
    random = np.random.default_rng(0)
    wall = np.full((3, 48, 48, 3), 60, np.uint8)
    wall[:, :, 20:36] = 180
    for video in (np.zeros((3, 48, 48, 3), np.uint8), np.full((1, 48, 48, 3), 255, np.uint8), wall,
                  spoilt(wall, 1.0, 12.0, random), np.full((2, 48, 48, 3), np.nan)):
        found = track(video)
        assert not found.seen.any()
        assert np.isnan(found.centres).all()
        assert set(found.colour) == {None}
        assert count_objects(video[0]) == 0


def test_a_colour_that_is_none_of_the_palettes_has_no_name():
    video = np.full((1, 48, 48, 3), 40, np.uint8)
    video[:, 10:30, 10:30] = (120, 44, 250)  # between blue and magenta
    found = track(video)
    assert found.seen.all()
    assert found.colour == (None,)
    np.testing.assert_array_equal(found.rgb, [[120, 44, 250]])


@pytest.mark.parametrize(("name", "options"), [("bounce", {"balls": (1, 4)}), ("collide", {"balls": (2, 5)}),
                                               ("moving", {}), ("occluder", {})])
@pytest.mark.parametrize(("blur", "noise"), [(0.0, 0.0), (1.0, 6.0), (1.5, 12.0)])
def test_objects_are_counted(name, options, blur, noise):
    world, random, counts = worlds.make(name, size=(48, 48), seed=4, **options), np.random.default_rng(1), set()
    for i in range(24):
        sample = world[i]
        for t in (0, 8, 16):
            sight = [thing["visibility"][t] for thing in sample.meta["objects"]]
            if any(0.05 < share <= 0.6 for share in sight):
                continue
            expected = sum(share > 0.6 for share in sight)
            assert count_objects(spoilt(sample.video[t : t + 1], blur, noise, random)[0]) == expected
            counts.add(expected)
    assert len(counts) >= {"bounce": 4, "collide": 4, "moving": 1, "occluder": 2}[name]


def test_displacements_are_those_of_the_facts_and_steps_are_obeyed_or_not():
    for sample, found, truth in measured("steer", (32, 32), 1.0, 6.0):
        asked = sample.meta["displacement"] * sample.meta["scale"]
        steps = displacements(found.centres)
        assert not steps[0].any()
        assert np.abs(steps - asked).max() < 0.35
        assert obeyed_fraction(found.centres, asked, within=0.5) == 1
        astray = found.centres.copy()
        astray[5:] += 1.0  # one step of 16 goes a pixel too far
        assert obeyed_fraction(astray, asked, within=0.5) == pytest.approx(15 / 16)
        astray[9] = np.nan  # and neither the step to it nor the one from it can be told
        assert obeyed_fraction(astray, asked, within=0.5) == pytest.approx(13 / 16)
        still = np.broadcast_to(truth[:1], truth.shape)
        expected = (np.abs(asked[1:]) <= 0.5).all(1).mean()
        assert obeyed_fraction(still, asked, within=0.5) == expected
    assert np.isnan(obeyed_fraction(np.zeros((1, 2)), np.zeros((1, 2)), within=1.0))


def test_position_errors_are_distances_and_unknown_where_nothing_is_seen():
    error = position_error(np.array([[3.0, 4.0], [np.nan, 1.0]]), np.zeros((2, 2)))
    assert error[0] == 5
    assert np.isnan(error[1])
    with pytest.raises(ShapeError, match="give as many of both"):
        position_error(np.zeros((3, 2)), np.zeros((2, 2)))


def test_colour_drift_is_a_distance_in_rgb_that_no_motion_makes():
    for _, found, _ in measured("steer", (48, 48), 1.0, 6.0, count=8):
        assert colour_drift(found.rgb).max() < 10
    video = np.full((20, 48, 48, 3), 40, np.float64)
    video[:, 10:30, 10:30] = (48, 84, 236)
    video[:, 10:30, 10:30, 2] -= 3.0 * np.arange(20)[:, None, None]
    drift = colour_drift(track(video / 127.5 - 1).rgb, first=1)
    np.testing.assert_allclose(drift, 3.0 * np.arange(20), atol=0.01)
    assert np.isnan(colour_drift(np.full((4, 3), np.nan))).all()
    assert np.isnan(colour_drift(np.array([[1.0] * 3, [np.nan] * 3]))[1])


def test_an_object_is_permanent_only_if_it_hides_and_comes_out_as_itself_where_it_must():
    rivals = {"red": "cyan"}
    for sample, found, truth in measured("occluder", (48, 48), 1.0, 6.0, count=48, **MEASURABLE):
        (thing,) = sample.meta["objects"]
        told = {"visibility": thing["visibility"], "colour": thing["colour"], "within": 3.0}
        assert is_permanent(found, truth, **told)
        assert not is_permanent(found, truth, **told | {"colour": rivals.get(thing["colour"], "red")})
        assert not is_permanent(found, truth + 4.0, **told)
        assert not is_permanent(track(np.repeat(sample.video[:1], 17, axis=0)), truth, **told)  # the first frame, still
        gone = sample.video.copy()
        gone[8:] = gone[8]  # it never comes out
        assert not is_permanent(track(gone), truth, **told)
        before = Track(centres=truth, area=np.ones(17), colour=(thing["colour"],) * 17, rgb=found.rgb)
        assert not is_permanent(before, truth, **told)  # it passes in front of the wall
    with pytest.raises(ShapeError, match="never hidden"):
        is_permanent(found, truth, np.ones(17), "red", within=1.0)
