import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vdit.errors import ShapeError
from vdit.eval.metrics import edge_sharpness, frame_psnr, frame_ssim, psnr, ssim


@pytest.fixture(scope="module")
def video():
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(3, 24, 31, 3)), (0, 2, 2, 0)) * 200 + 128
    return np.clip(smooth, 20, 235).astype(np.uint8)


def test_psnr_of_a_constant_offset_is_known(video):
    for offset in (1, 10):
        assert psnr(video, video + np.uint8(offset)) == pytest.approx(20 * np.log10(255 / offset), abs=1e-4)
    a = np.zeros((2, 4, 4, 3), np.float32)
    assert psnr(a, a + 0.2) == pytest.approx(20.0, abs=1e-4)  # 0.2 of a range of 2: a tenth
    assert psnr(a - 1, a + 1) == pytest.approx(0.0, abs=1e-6)  # the worst there is


def test_psnr_of_known_noise(video):
    noise = np.random.default_rng(1).choice([-8, 8], size=video.shape)
    noisy = (video + noise).astype(np.uint8)
    assert psnr(video, noisy) == pytest.approx(10 * np.log10(255**2 / 64), abs=1e-4)


def test_equal_videos_score_perfectly(video):
    assert psnr(video, video) == np.inf
    assert ssim(video, video) == pytest.approx(1.0, abs=1e-12)


def test_uint8_and_float_score_the_same(video):
    other = np.clip(video.astype(int) + np.random.default_rng(2).integers(-9, 9, video.shape), 0, 255)
    other = other.astype(np.uint8)
    as_float = [x.astype(np.float32) / 127.5 - 1 for x in (video, other)]
    assert psnr(*as_float) == pytest.approx(psnr(video, other), abs=1e-4)
    assert ssim(*as_float) == pytest.approx(ssim(video, other), abs=1e-5)
    assert psnr(video, as_float[1]) == pytest.approx(psnr(video, other), abs=1e-4)
    assert psnr(jnp.asarray(as_float[0], jnp.bfloat16), as_float[0]) > 40


def test_values_beyond_the_range_count_as_they_are_shown():
    a = np.ones((1, 4, 4, 3), np.float32)
    assert psnr(a, a * 3) == np.inf


def test_frames_are_scored_on_their_own(video):
    other = video.copy()
    other[1] += 10
    scores = frame_psnr(video, other)
    assert scores.shape == (3,)
    assert np.isinf(scores[[0, 2]]).all()
    assert scores[1] == pytest.approx(20 * np.log10(25.5), abs=1e-4)
    batch = np.stack([video, video])
    assert frame_ssim(batch, batch).shape == (2, 3)


def test_ssim_equals_its_definition_with_scipy_windows(video):
    other = np.clip(video * 0.8 + 10 * np.random.default_rng(3).normal(size=video.shape), 0, 255)
    other = other.astype(np.uint8)

    def smooth(x):
        return gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)[5:-5, 5:-5]

    want = []
    for a, b in zip(video / 255.0, other / 255.0):
        ma, mb = smooth(a), smooth(b)
        va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
        score = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        want.append(score.mean())
    np.testing.assert_allclose(frame_ssim(video, other), want, atol=1e-5)
    assert 0 < ssim(video, other) < 0.95


def test_ssim_of_flat_frames_is_known():
    a, b = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    x, y = 100 / 255, 150 / 255
    assert ssim(a, b) == pytest.approx((2 * x * y + 1e-4) / (x * x + y * y + 1e-4), abs=1e-5)


@pytest.mark.parametrize(("a", "b", "message"), [
    (np.zeros((2, 16, 16, 3)), np.zeros((1, 16, 16, 3)), r"shapes \(2, 16, 16, 3\) and \(1, 16, 16, 3\)"),
    (np.zeros((16, 16)), np.zeros((16, 16)), "both must be the same"),
    (np.zeros((0, 16, 16, 3)), np.zeros((0, 16, 16, 3)), "nothing to compare"),
    (np.zeros((2, 16, 16, 3), int), np.zeros((2, 16, 16, 3), int), "int64 has no known range"),
    (np.zeros((2, 10, 16, 3)), np.zeros((2, 10, 16, 3)), "frames of 10x16 are too small for SSIM"),
])
def test_what_cannot_be_compared_is_refused(a, b, message):
    with pytest.raises(ShapeError, match=message):
        ssim(a, b)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("contrast", [40, 200])
def test_an_edge_is_as_sharp_as_one_over_its_width(width, contrast):
    """Of a square whose sides are ramps of that many pixels, on grey."""
    distance = np.maximum(*np.abs(np.mgrid[:48, :48] - 24))
    frame = 20 + contrast * np.clip((14 - distance) / width, 0, 1)
    video = np.repeat(np.round(frame).astype(np.uint8)[None, ..., None], 3, -1)
    assert edge_sharpness(video) == pytest.approx([1 / width], rel=0.03)
    noise = np.random.default_rng(0).normal(0, contrast / 100, video.shape)
    assert edge_sharpness(np.round(video + noise).astype(np.uint8)) == pytest.approx([1 / width], rel=0.15)


def test_a_frame_of_one_colour_has_no_edges():
    assert edge_sharpness(np.full((2, 16, 16, 3), 90, np.uint8)).tolist() == [0, 0]
