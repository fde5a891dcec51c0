"""The flow is the motion that was rendered, and a seam is told from a step."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from vdit import worlds
from vdit.errors import ShapeError
from vdit.eval.metrics import optical_flow, seam, speed
from vdit.worlds.draw import COLOURS, SHAPES, canvas, grey, paint, to_uint8


def texture(size=120, seed=0):
    random = np.random.default_rng(seed)
    return gaussian_filter(random.normal(0, 1, (size, size, 3)), (2, 2, 0)) * 300 + 128


@pytest.mark.parametrize(("motion", "tolerance"), [((0.5, 0), 0.02), ((-1.3, 0.7), 0.02), ((4, -2), 0.05)])
def test_a_picture_that_moves_as_a_whole(motion, tolerance):
    picture = texture()
    moved = shift(picture, (motion[1], motion[0], 0), order=3, mode="nearest")
    a, b = picture[20:84, 20:84], moved[20:84, 20:84]
    inner = optical_flow(a, b)[14:-14, 14:-14]
    np.testing.assert_allclose(inner.mean((0, 1)), motion, atol=tolerance)
    assert np.quantile(np.abs(inner - motion), 0.95) < 3 * tolerance  # some pixels come from beyond the edge
    assert speed(a, b) == pytest.approx(np.hypot(*motion), rel=0.1)


@pytest.mark.parametrize(("size", "blur", "noise"), [((32, 32), 0, 0), ((48, 48), 1, 6), ((64, 64), 0, 0)])
def test_rendered_shapes_move_as_the_facts_say(size, blur, noise):
    """Within the shape, and by the speed of all: 6% on the average over clips; in each clip 15% within the shape."""
    world, random, ratios = worlds.make("moving", size=size, seed=1), np.random.default_rng(0), []
    for i in range(16):
        sample = world[i]
        (thing,), scale = sample.meta["objects"], sample.meta["scale"]
        video = gaussian_filter(sample.video[4:6].astype(float), (0, blur, blur, 0), mode="nearest")
        video += random.normal(0, noise, video.shape)
        (step,), centre = np.diff(thing["position"][4:6], axis=0) * scale, thing["position"][4] * scale
        rows, columns = np.indices(size) + 0.5
        inside = np.hypot(columns - centre[0], rows - centre[1]) < thing["size"] * scale
        found = optical_flow(*video)[inside].mean(0)
        along, across = found @ step / (step @ step), found @ step[::-1] / (step @ step)
        assert abs(along - 1) < 0.15
        assert abs(across) < 0.1
        ratios.append((along, speed(*video) / np.hypot(*step)))
    assert np.abs(np.mean(ratios, 0) - 1).max() < 0.06


def test_nothing_moves_where_nothing_is_or_stands_still():
    picture = texture(64)
    assert np.abs(optical_flow(picture, picture)).max() == 0
    plain = np.full((48, 48, 3), 100.0)
    random = np.random.default_rng(0)
    assert speed(plain, plain + 1) < 0.01
    assert speed(plain + random.normal(0, 2, plain.shape), plain + random.normal(0, 2, plain.shape)) < 0.1


def circling(frames, turn):
    """A disc on a circle: `turn` of it in so many frames, so that a whole one closes without a seam."""
    angle = 2 * np.pi * turn * np.arange(frames) / frames
    centre = 32 + 14 * np.stack([np.cos(angle), np.sin(angle)], 1)
    video = canvas(grey((64, 64), 60.0), frames)
    paint(video, SHAPES["circle"], centre, 9.0, COLOURS["green"])
    return to_uint8(video)


def test_a_loop_that_closes_has_no_seam_and_one_that_does_not_has():
    whole = seam(circling(24, turn=1.0))
    assert whole.pixels == pytest.approx(whole.inside_pixels, rel=0.1)
    assert whole.flow == pytest.approx(whole.inside_flow, rel=0.1)
    assert whole.inside_flow == pytest.approx(2 * np.pi * 14 / 24, rel=0.12)
    for turn in (0.9, 0.75, 0.5):
        broken = seam(circling(24, turn))
        assert broken.pixels > 2 * broken.inside_pixels
    slight = seam(circling(24, turn=0.9))
    assert slight.flow > 2 * slight.inside_flow


def test_a_still_clip_has_no_steps_and_a_cut_shows_in_the_pixels():
    still = np.repeat(circling(24, 1.0)[:1], 5, axis=0)
    told = seam(still)
    assert (told.pixels, told.inside_pixels, told.flow, told.inside_flow) == (0, 0, 0, 0)
    told = seam(np.linspace(-0.5, 0.5, 9)[:, None, None, None] * np.ones((9, 16, 16, 3)))
    assert told.inside_pixels == pytest.approx(127.5 / 8)
    assert told.pixels == pytest.approx(127.5)


def test_a_clip_too_short_for_a_loop_is_refused():
    with pytest.raises(ShapeError, match="2 frames"):
        seam(np.zeros((2, 16, 16, 3)))
