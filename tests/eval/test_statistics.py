"""Distances between sets of features: properties, and the same numbers as scipy's definitions."""

import numpy as np
import pytest
from scipy import linalg

from vdit.errors import ShapeError
from vdit.eval.statistics import frechet, frechet_infinite, mean_interval, mmd, precision_recall, set_intervals


def features(n, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_the_frechet_distance_is_that_of_normal_distributions():
    a = np.random.default_rng(0).normal(size=(4000, 3))
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + [1.0, 2.0, 0.0]) == pytest.approx(5.0, abs=1e-6)
    assert frechet(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * np.trace(np.cov(a.T)), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(50, 40), (5, 40), (4, 5)], ids=["many", "fewer than features", "few"])
def test_frechet_equals_the_root_of_the_product_of_covariances(n, m):
    a, b = features(n), features(m, seed=1)
    cov_a, cov_b = (np.cov(x, rowvar=False) for x in (a, b))
    root = linalg.sqrtm(cov_a @ cov_b + 1e-13 * np.eye(6)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)


def test_extrapolation_takes_the_bias_of_few_videos_away():
    """Both sets are of one distribution, so the true distance is 0; that of n videos is about a constant over n."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(120, 16)), rng.normal(size=(120, 16))
    raw, found = frechet(a, b), frechet_infinite(a, b)
    assert raw > 0.5
    assert abs(found.value) < raw / 4
    assert (np.diff(found.distances) < 0).all()
    assert found.counts[-1].tolist() == [120, 120]


def test_mmd_is_the_mean_of_kernels_over_all_pairs():
    a, b = features(7, 4), features(5, 4, seed=1)
    kernel = lambda x, y: np.mean([(p @ q / 4) ** 2 for p in x for q in y])  # noqa: E731
    assert mmd(a, b) == pytest.approx(kernel(a, a) + kernel(b, b) - 2 * kernel(a, b), rel=1e-9)
    assert mmd(a, a[::-1]) == pytest.approx(0, abs=1e-9)


def test_precision_falls_where_videos_are_wrong_and_recall_where_kinds_are_missing():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(20, 1, (60, 2))])
    one_kind = rng.normal(0, 1, (60, 2))
    precision, recall = precision_recall(one_kind, real)
    assert precision > 0.85
    assert recall == pytest.approx(0.5, abs=0.1)
    assert precision_recall(one_kind + 100, real) == (0.0, 0.0)
    assert precision_recall(real, real) == (1.0, 1.0)


def test_intervals_hold_the_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        found = mean_interval(rng.normal(3.0, 1.0, 30), resamples=300, seed=seed)
        held += found.low <= 3.0 <= found.high
    assert 0.88 <= held / 200 <= 0.99
    assert mean_interval(np.array([1.0, np.nan, 3.0])).n == 2


def test_an_interval_of_two_sets_shrinks_with_their_size():
    rng = np.random.default_rng(0)
    width = {}
    for n in (20, 320):
        a, b = rng.normal(size=(n, 3)), rng.normal(0.5, 1, (n, 3))
        measure = lambda i, j, a=a, b=b: {"frechet": frechet(a[i], b[j])}  # noqa: E731
        found = set_intervals(measure, (n, n), resamples=40)["frechet"]
        assert found.low <= found.value <= found.high
        width[n] = found.high - found.low
    assert width[320] < width[20] / 2


@pytest.mark.parametrize("bad", [np.zeros((1, 3)), np.zeros(3), np.full((4, 3), np.nan), np.zeros((4, 2))])
def test_features_that_cannot_be_compared_are_refused(bad):
    with pytest.raises(ShapeError):
        frechet(bad, np.zeros((4, 3)))
