"""Distances between two sets of features, and how sure a figure is: Fréchet, MMD, precision and recall, bootstrap.

All of it is float64. Features are [n d], one row a video.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from vdit.errors import ShapeError
from vdit.reprs import short_repr


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance between normal distributions fitted to two sets of features (Dowson and Landau, 1982).

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)) with covariances over n - 1. The trace of the root is the
    sum of the singular values of A B^T, for A^T A = C_a and B^T B = C_b. So no root of a matrix is taken, fewer videos
    than features are no problem, and equal sets give 0 up to rounding.

    Args:
        a: [n d].
        b: [m d].

    Returns:
        0 or more. With few videos it is too large: see `frechet_infinite`.

    Raises:
        ShapeError: the sets have other shapes, fewer than two rows, or values that are not finite.
    """
    a, b = _pair(a, b)
    shift = float(np.square(a.mean(0) - b.mean(0)).sum())
    root_a, root_b = _root(a), _root(b)
    both = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(shift + float(np.square(root_a).sum() + np.square(root_b).sum() - 2 * both), 0.0)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Extrapolated:
    """The Fréchet distance that infinitely many videos would have.

    Attributes:
        value: the intercept of the line.
        counts: int [k], videos of each set in the subsets.
        distances: float64 [k], the mean distance of subsets of that size.
    """

    value: float
    counts: np.ndarray
    distances: np.ndarray


def frechet_infinite(
    a: np.ndarray, b: np.ndarray, *, points: int = 8, repeats: int = 4, seed: int = 0
) -> Extrapolated:
    """Extrapolate the Fréchet distance to infinitely many videos (Chong and Forsyth, 2020).

    The distance of n videos is too large by about a constant over n. Here it is measured for random subsets of both
    sets, from half of each to all, and a straight line in 1 / n is fitted. Its value at 1 / n = 0 is the result. Unlike
    the paper's, the subsets are of both sets, since the real set is often as small as the other.

    Args:
        a: [n d].
        b: [m d].
        points: sizes of subsets.
        repeats: subsets of each size.
        seed: of the subsets.

    Raises:
        ShapeError: see `frechet`; or a set has fewer than 8 rows.
    """
    a, b = _pair(a, b)
    if min(len(a), len(b)) < 8:
        raise ShapeError(f"{min(len(a), len(b))} videos are too few to extrapolate a distance: give 8 or more")
    random = np.random.default_rng(seed)
    fractions, counts, found = np.linspace(0.5, 1.0, points), [], []
    for fraction in fractions:
        sizes = [round(fraction * len(x)) for x in (a, b)]
        times = 1 if fraction == 1 else repeats
        parts = ([x[random.permutation(len(x))[:size]] for x, size in zip((a, b), sizes)] for _ in range(times))
        counts.append(sizes)
        found.append(np.mean([frechet(*part) for part in parts]))
    slope_intercept = np.polyfit(1 / fractions, found, 1)
    return Extrapolated(value=float(slope_intercept[1]), counts=np.array(counts), distances=np.array(found))


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Maximum mean discrepancy with a polynomial kernel, as JEDi has it (Luo et al., 2024), without its scale of 100.

    mean k(a, a') + mean k(b, b') - 2 mean k(a, b), with k(x, y) = (x y / d)^2 and all pairs counted.

    Args:
        a: [n d].
        b: [m d].

    Returns:
        0 for equal sets, more for others.

    Raises:
        ShapeError: see `frechet`.
    """
    a, b = _pair(a, b)
    d = a.shape[1]
    return float(_kernel(a, a, d) + _kernel(b, b, d) - 2 * _kernel(a, b, d))


def precision_recall(made: np.ndarray, real: np.ndarray, *, neighbours: int = 3) -> tuple[float, float]:
    """Precision and recall of a model's videos (Kynkäänniemi et al., 2019).

    A set's region is the union of balls around its features. A ball reaches to the k-th nearest neighbour in its set.

    Args:
        made: [n d].
        real: [m d].
        neighbours: k.

    Returns:
        (share of `made` inside the region of `real`, share of `real` inside the region of `made`).

    Raises:
        ShapeError: see `frechet`; or a set has k rows or fewer.
    """
    made, real = _pair(made, real)
    if min(len(made), len(real)) <= neighbours:
        count = min(len(made), len(real))
        raise ShapeError(f"{count} videos are too few for {neighbours} neighbours each: give {neighbours + 1} or more")
    between = _squared(made, real)
    reach = [np.partition(_squared(x, x), neighbours, axis=1)[:, neighbours] for x in (made, real)]
    precision = (between <= reach[1][None]).any(1).mean()
    recall = (between <= reach[0][:, None]).any(0).mean()
    return float(precision), float(recall)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and where it lies in 95% of resamplings.

    Attributes:
        value: the figure.
        low: end of the interval.
        high: end of the interval.
        n: videos that it is of.
    """

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """The mean of values [n], with a percentile bootstrap over them. NaN values are left out; n is of the others."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"), n=0)
    index = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[index].mean(1), (2.5, 97.5))
    return Interval(value=float(values.mean()), low=float(low), high=float(high), n=len(values))


def set_intervals(
    measure: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
    counts: tuple[int, int],
    *,
    resamples: int | None = None,
    seed: int = 0,
) -> dict[str, Interval]:
    """Figures of two sets, with intervals from subsamples of half of each.

    Distances between sets grow where videos occur twice, as in a plain bootstrap. So each resample takes half of each
    set without repetition. The spread of such halves around their mean is that of the whole sets times about
    sqrt(1/0.5 - 1) = 1 (a delete-half jackknife; Shao and Tu, 1995), and is put around the figure.

    Args:
        measure: (int indices of the first set, of the second) -> name -> figure. It may raise ShapeError for halves
            that are too few, or leave a figure out; then that figure has no interval (NaN).
        counts: rows of the sets.
        resamples: how many. None: 50, or 10 of sets of more than 300 rows.
        seed: of the subsets.

    Raises:
        ShapeError: the whole sets are too small.
    """
    random, n = np.random.default_rng(seed), min(counts)
    resamples = resamples or (50 if max(counts) <= 300 else 10)
    whole = measure(np.arange(counts[0]), np.arange(counts[1]))
    halves: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(resamples if n >= 4 else 0):
        try:
            found = measure(*(random.permutation(count)[: count // 2] for count in counts))
        except ShapeError:
            break
        for name in halves.keys() & found.keys():
            halves[name].append(found[name])
    intervals = {}
    for name, value in whole.items():
        low = high = float("nan")
        if len(halves[name]) == resamples:
            low, high = np.percentile(halves[name], (2.5, 97.5)) - np.mean(halves[name]) + value
        intervals[name] = Interval(value=float(value), low=float(low), high=float(high), n=n)
    return intervals


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(f"features of shapes {a.shape} and {b.shape}: give [n d] and [m d], two rows or more of each")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ShapeError("features hold values that are not finite: look for videos that the net overflows on")
    return a, b


def _root(x: np.ndarray) -> np.ndarray:
    """R [min(n, d) d] with R^T R = the covariance of x [n d]."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else np.linalg.qr(centred, mode="r")


def _kernel(a: np.ndarray, b: np.ndarray, d: int) -> float:
    return float(np.square(a @ b.T / d).mean())


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [n m]; 0 and not less for equal rows."""
    found = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return np.maximum(found, 0.0)
