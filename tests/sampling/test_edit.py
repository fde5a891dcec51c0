"""What edit, inpaint and outpaint give a canvas: which latents are known, fills, frames, low frequencies, windows."""


import numpy as np
import pytest

from vdit.errors import ConfigError, ShapeError
from vdit.generate.known import (
    Frame,
    check_mask,
    check_strength,
    edge_levels,
    edit,
    grown,
    inpaint,
    nearest_shown,
    size_of_aspect,
    smooth_fill,
)
from vdit.models.vae.config import VAEConfig
from vdit.sampling.config import Structure
from vdit.sampling.programs import latent_level

VAE = VAEConfig(channel_mults=(1,), spatial_down=(), temporal_down=(), patch=4, patch_frames=4)


def moving_box(rng, frames, height, width):
    """bool [t h w]: a box that drifts, now and then gone."""
    mask = np.zeros((frames, height, width), bool)
    corner, drift = rng.uniform(0, (height, width)), rng.uniform(-2, 2, 2)
    size = rng.integers(1, (height // 2, width // 2))
    for frame in np.flatnonzero(rng.random(frames) < 0.7):
        y, x = np.round(np.clip(corner + frame * drift, 0, (height - 1, width - 1))).astype(int)
        mask[frame, y : y + size[0], x : x + size[1]] = True
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_a_latent_is_known_if_and_only_if_all_of_its_pixels_are(seed):
    """Those known in part begin at their own level."""
    rng = np.random.default_rng(seed)
    frames, height, width = 1 + 4 * int(rng.integers(1, 5)), 4 * int(rng.integers(2, 6)), 4 * int(rng.integers(2, 6))
    mask, edge = moving_box(rng, frames, height, width), np.float32(rng.choice([0.6, 1.0]))
    given = inpaint(
        rng.uniform(-1, 1, (1, frames, height, width, 3)).astype(np.float32), mask,
        edge_levels(mask, edge=edge, stride=4, side=4),
    )  # fmt: skip
    level = np.asarray(latent_level(VAE, given.level))[0]
    for k in range(level.shape[0]):
        group = mask[:1] if k == 0 else mask[4 * k - 3 : 4 * k + 1]
        for y in range(level.shape[1]):
            for x in range(level.shape[2]):
                cell = group[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                assert level[k, y, x] == (1 if cell.all() else edge if cell.any() else 0)
    np.testing.assert_array_equal(given.known[0], ~mask)


def test_levels_of_an_edit_are_the_largest_of_their_frames_and_nothing_outside_a_mask():
    video = np.zeros((1, 9, 8, 8, 3), np.float32)
    rise = edit(video, strength=np.linspace(0, 0.8, 9, dtype=np.float32))
    np.testing.assert_allclose(np.asarray(latent_level(VAE, rise.level)).ravel(), [0, 0.4, 0.8], atol=1e-6)
    mask = np.zeros((9, 8, 8), bool)
    mask[:, 5, 2] = True
    level = np.asarray(latent_level(VAE, edit(video, strength=0.5, mask=mask).level))
    np.testing.assert_array_equal(level, np.broadcast_to([[0, 0], [0.5, 0]], (1, 3, 2, 2)))


def test_fills_go_smoothly_on_from_what_is_around():
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(-1, 1, 24, dtype=np.float32)[None, :, None], (20, 24, 3))
    video = np.stack([ramp, ramp[::-1], np.full_like(ramp, 0.25), ramp])
    mask = moving_box(rng, 4, 20, 24) | moving_box(rng, 4, 20, 24)
    mask[:3, 6:14, 8:15] = True
    mask[3] = True
    filled = smooth_fill(video, mask)
    np.testing.assert_array_equal(filled[~mask], video[~mask])
    np.testing.assert_allclose(filled[2], 0.25, atol=1e-6)
    assert np.abs(filled[:2] - video[:2]).max() < 0.35, "what was there, nearly, for a gentle ramp"
    steps = np.abs(np.diff(filled[:2], axis=2))
    assert steps.max() < 0.35, "no edge"
    np.testing.assert_array_equal(filled[3], 0)
    np.testing.assert_array_equal(nearest_shown(mask), [0, 1, 2, 2])


def test_a_mask_is_grown_on_all_sides_within_its_frame():
    mask = np.zeros((3, 9, 9), bool)
    mask[1, 4, 7] = True
    wanted = np.zeros_like(mask)
    wanted[1, 2:7, 5:9] = True
    np.testing.assert_array_equal(grown(mask, 2), wanted)
    np.testing.assert_array_equal(grown(mask, 0), mask)
    with pytest.raises(ShapeError, match="grow=-1"):
        grown(mask, -1)


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 8, 2.0), (5, 12, 4.0), (3, 2, 9.0)])
def test_low_frequencies_are_a_projection(height, width, factor):
    structure, rng = Structure(factor=factor), np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    low = np.asarray(structure.low(x))
    np.testing.assert_allclose(structure.low(low), low, atol=1e-5)
    np.testing.assert_allclose(low.mean((1, 2)), x.mean((1, 2)), atol=1e-5)
    assert np.std(low) < 0.8 * np.std(x)
    kept = np.linalg.matrix_rank(np.asarray(structure.low(np.eye(height * width, dtype=np.float32).reshape(
        height * width, height, width, 1))).reshape(height * width, -1), tol=1e-4)  # fmt: skip
    assert kept == max(1, round(height / factor)) * max(1, round(width / factor))
    np.testing.assert_allclose(Structure(factor=1.0).low(x), x, atol=1e-5)


def test_a_frame_holds_the_video_where_it_should():
    video = np.random.default_rng(0).uniform(-1, 1, (1, 2, 16, 16, 3)).astype(np.float32)
    for at, corner in (((3, 5), (3, 5)), ("centre", (8, 16))):
        frame = Frame.around((16, 16), (32, 48), at, 4)
        assert frame.at == corner
        np.testing.assert_array_equal(frame.place(video)[:, :, ~frame.mask], video.reshape(1, 2, -1, 3))
        assert frame.mask.sum() == 32 * 48 - 16 * 16
    assert Frame.around((16, 16), (24, 30), "centre", 4).at == (4, 8), "on a latent's corner"
    assert Frame.around((16, 16), (16, 19), "centre", 4).at == (0, 0)
    with pytest.raises(ShapeError, match=r"16x16 does not go into a frame of 8x32 .*give a larger"):
        Frame.around((16, 16), (8, 32), "centre", 4)
    with pytest.raises(ShapeError, match="nothing is to be made"):
        Frame.around((16, 16), (16, 16), "centre", 4)
    with pytest.raises(ShapeError, match=r"at=\(17, 0\).*give \(0, 0\) to \(16, 32\)"):
        Frame.around((16, 16), (32, 48), (17, 0), 4)


@pytest.mark.parametrize("aspect", [0.4, 1.0, 4 / 3, 16 / 9, 3.0])
def test_frames_of_an_aspect_are_multiples_that_hold_the_video(aspect):
    for inner in ((64, 96), (50, 40), (96, 64)):
        size = size_of_aspect(inner, aspect, 8)
        assert size[0] % 8 == size[1] % 8 == 0
        assert inner[0] <= size[0]
        assert inner[1] <= size[1]
        assert size[0] < inner[0] + 8 or size[1] < inner[1] + 8, "no larger than it must be"
        assert abs(np.log(size[1] / size[0] / aspect)) < np.log(1 + 8 / min(inner))
    with pytest.raises(ShapeError, match="aspect=0"):
        size_of_aspect((64, 64), 0.0, 8)


def test_strengths_and_masks_that_cannot_be_are_refused():
    shape = (1, 5, 8, 8, 3)
    for strength in (0, -0.1, 1.1, float("nan"), [0.5] * 4 + [2.0], [0.0] * 5):
        with pytest.raises(ShapeError, match=r"strength=.*more than 0 and at most 1"):
            check_strength(strength, 5)
    with pytest.raises(ShapeError, match=r"strength of shape \(3,\).*each of 5 frames"):
        check_strength([0.5] * 3, 5)
    np.testing.assert_allclose(check_strength(0.5, 3), [0.5] * 3)
    still = np.zeros((8, 8), bool)
    still[2] = True
    np.testing.assert_array_equal(check_mask(still, shape), np.broadcast_to(still, (5, 8, 8)))
    with pytest.raises(ShapeError, match="mask of uint8: give bool"):
        check_mask(np.ones((8, 8), np.uint8), shape)
    with pytest.raises(ShapeError, match=r"mask of shape \(4, 8, 8\) .*\(8, 8\), or \(5, 8, 8\)"):
        check_mask(np.ones((4, 8, 8), bool), shape)
    with pytest.raises(ShapeError, match="nothing is to be made"):
        check_mask(np.zeros((8, 8), bool), shape)
    with pytest.raises(ShapeError, match=r"edge=0: .*more than 0 and at most 1"):
        edge_levels(mask=np.ones((5, 8, 8), bool), edge=0, stride=4, side=4)
    cut = edge_levels(mask=np.ones((4, 8, 8), bool), edge=0.5, stride=4, side=4)
    np.testing.assert_array_equal(cut, 1)  # a last group that is not whole goes on as it ends
    with pytest.raises(ConfigError, match=r"factor=0.5"):
        Structure(factor=0.5)
    with pytest.raises(ConfigError, match=r"until=1.5"):
        Structure(until=1.5)
