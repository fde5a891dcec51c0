"""Samplers against problems whose answers are known, without a network.

For one-dimensional data with a known density at every level, the exact denoiser is a formula, and the
probability-flow ODE keeps every point's quantile: F_t(x_t) is the same at all t. So the end of each path is
known exactly, and a sampler's order is read off from the error at one step size and at half of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from vdit.diffusion import DDPM, Flow
from vdit.diffusion.objectives import from_clean_and_noise
from vdit.samplers import Grid, make
from vdit.samplers.base import discretize, posterior

SCHEDULES = {"flow": Flow(), "linear": DDPM(), "cosine": DDPM(beta_schedule="cosine")}
SPANS = {"flow": (0.95, 0.08), "linear": (0.8, 0.12), "cosine": (0.9, 0.1)}
PREDICTIONS = ("noise", "velocity", "v", "sample")
GAUSSIAN = ((1.0, 0.7, 0.5),)  # (weight, mean, standard deviation) of each part
MIXTURE = ((0.4, -1.0, 0.6), (0.6, 0.8, 0.5))
X = np.linspace(-1.5, 1.5, 9)


def parts_at(parts, alpha, sigma):
    """Weights, means and standard deviations of x_t."""
    weight, mean, std = (np.array(v) for v in zip(*parts))
    return weight, alpha * mean, (alpha**2 * std**2 + sigma**2) ** 0.5


def exact_denoiser(parts, schedule, prediction):
    """denoise(x [...], t []): the posterior mean of the data, in the wanted parametrisation."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        weight, mean, std = parts_at(parts, alpha, sigma)
        log_share = norm.logpdf(x[..., None], mean, std) + np.log(weight)
        gain = alpha * np.array([p[2] for p in parts]) ** 2 / std**2
        each = np.array([p[1] for p in parts]) + gain * (x[..., None] - mean)
        x0 = jnp.sum(jax.nn.softmax(log_share) * each, axis=-1)
        return from_clean_and_noise(prediction, x0, (x - alpha * x0) / sigma, alpha, sigma)

    return denoise


def exact_path_end(parts, schedule, x, start, end):
    """Where the probability-flow ODE takes x from level `start` to level `end`: by quantiles."""
    target = jnp.sum(_cdf(parts, schedule, x, start), axis=-1)
    low, high = jnp.full_like(x, -20.0), jnp.full_like(x, 20.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = jnp.sum(_cdf(parts, schedule, middle, end), axis=-1) < target
        low, high = jnp.where(below, middle, low), jnp.where(below, high, middle)
    return np.asarray(0.5 * (low + high))


def _cdf(parts, schedule, x, t):
    weight, mean, std = parts_at(parts, float(schedule.alpha(t)), float(schedule.sigma(t)))
    return weight * norm.cdf(jnp.asarray(x)[..., None], mean, std)


def measured_order(sampler, parts, schedule, prediction, span, spacing, steps):
    """log2 of the error at `steps` steps over that at twice as many, ending above clean data."""
    start, end = span
    denoise = exact_denoiser(parts, schedule, prediction)

    def errors(x, wanted):
        for n in (steps, 2 * steps):
            if spacing == "level":
                levels = np.linspace(start, end, n + 1)
            else:
                levels = Grid(steps=n + 1, spacing="log_snr", start=start, low=end).levels(schedule)[:-1]
            y = sampler.sample(denoise, x, schedule=schedule, prediction=prediction, grid=levels)
            yield jnp.abs(y - wanted).max()

    with jax.enable_x64(True):
        wanted = exact_path_end(parts, schedule, jnp.asarray(X), start, end)
        coarse, fine = jax.jit(lambda x: tuple(errors(x, wanted)))(jnp.asarray(X))
    return float(np.log2(coarse / fine))


CASES = [  # sampler, options, spacing, steps, order
    # At first order an error of 1% in a coefficient hides behind the method's own until steps are small.
    ("euler", {}, "level", 400, 1),
    ("ddim", {}, "level", 400, 1),
    ("heun", {}, "level", 40, 2),
    ("heun", {"frame": "exploding"}, "level", 40, 2),
    ("dpmpp2m", {"lower_order_final": False}, "log_snr", 40, 2),
    ("dpmpp2m", {}, "log_snr", 80, 2),
    ("dpmpp2m", {"lower_order_below": 15}, "log_snr", 40, 2),
    ("dpmpp2m", {"solver": "heun", "lower_order_final": False}, "log_snr", 40, 2),
    ("dpmpp2m", {"order": 1}, "log_snr", 200, 1),
    ("unipc", {"corrector": False}, "log_snr", 80, 2),
    ("unipc", {"corrector": False, "order": 1}, "log_snr", 200, 1),
    ("unipc", {"order": 1}, "log_snr", 80, 2),
    ("unipc", {"solver": "bh1", "lower_order_final": False}, "log_snr", 80, 3),
    # The first steps are of lower order, which shows only in runs of more steps.
    ("unipc", {"order": 3, "lower_order_final": False}, "log_snr", 80, 4),
    ("unipc", {}, "log_snr", 80, 2),
    ("unipc", {"lower_order_final": False}, "log_snr", 40, 3),
]


@pytest.mark.parametrize("kind", ["flow", "linear"])
@pytest.mark.parametrize(("name", "options", "spacing", "steps", "order"), CASES)
def test_halving_the_step_divides_the_error_by_two_to_the_order(kind, name, options, spacing, steps, order):
    # One prediction here: that all four give the same numbers is a test of its own.
    slope = measured_order(make(name, **options), MIXTURE, SCHEDULES[kind], "v", SPANS[kind], spacing, steps)
    print(f"{name} {options} {kind}: order {slope:.2f}, expected {order}")
    assert abs(slope - order) < 0.25


@pytest.mark.parametrize(
    ("kind", "name"),
    [("flow", name) for name in ("ddpm", "ddim", "euler", "heun", "dpmpp2m", "unipc", "consistency")]
    + [("cosine", "heun")],
)
def test_every_prediction_gives_the_same_numbers(kind, name):
    sampler, schedule, levels = make(name), SCHEDULES[kind], np.linspace(*SPANS[kind], 7)

    def run(x):
        return [
            sampler.sample(
                exact_denoiser(MIXTURE, schedule, prediction),
                x,
                schedule=schedule,
                prediction=prediction,
                grid=levels,
                key=jax.random.key(0),
            )
            for prediction in PREDICTIONS
        ]

    with jax.enable_x64(True):
        first, *others = jax.jit(run)(jnp.asarray(X))
    for other in others:
        np.testing.assert_allclose(first, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("flow", "euler"), ("flow", "heun"), ("flow", "dpmpp2m"), ("flow", "unipc"), ("cosine", "unipc")],
)
def test_whole_runs_in_float32_reach_the_data(kind, name):
    """From pure noise to clean data: finite, and close to the known end, on the default grid."""
    schedule = SCHEDULES[kind]
    start = 1.0 - 1e-6
    wanted = exact_path_end(MIXTURE, schedule, X, start, 1e-6)

    def run(x):
        denoise = exact_denoiser(MIXTURE, schedule, "velocity")
        return [
            make(name).sample(denoise, x, schedule=schedule, prediction="velocity", grid=n) for n in (10, 100)
        ]

    coarse, fine = jax.jit(run)(jnp.asarray(X, jnp.float32))
    assert fine.dtype == jnp.float32
    assert np.abs(fine - wanted).max() < (0.06 if name == "euler" else 0.015)
    assert np.abs(fine - wanted).max() < 0.5 * np.abs(coarse - wanted).max()


def draw_samples(sampler, parts, schedule, prediction, steps, count=40_000):
    noise_key, key = jax.random.split(jax.random.key(3))
    denoise = exact_denoiser(parts, schedule, prediction)

    def run(x, key):
        return sampler.sample(denoise, x, schedule=schedule, prediction=prediction, grid=steps, key=key)

    return np.asarray(jax.jit(run)(jax.random.normal(noise_key, (count,)), key))


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("flow", "ddpm", {"variance": "small"}),
        ("cosine", "ddpm", {"variance": "large"}),
        ("linear", "ddim", {"eta": 1.0}),
    ],
)
def test_stochastic_samplers_converge_to_the_data_distribution(kind, name, options):
    mean = sum(w * m for w, m, _ in MIXTURE)
    std = (sum(w * (m**2 + s**2) for w, m, s in MIXTURE) - mean**2) ** 0.5
    few, many = (
        draw_samples(make(name, **options), MIXTURE, SCHEDULES[kind], "velocity", n) for n in (10, 200)
    )
    assert abs(many.mean() - mean) < 0.02
    assert abs(many.std() - std) < 0.015
    assert abs(many.std() - std) < 0.5 * abs(few.std() - std)
    # Not the moments alone: the share left of the gap between the two parts.
    left = sum(w * norm.cdf((0.0 - m) / s) for w, m, s in MIXTURE)
    assert abs((many < 0).mean() - left) < 0.015


@pytest.mark.parametrize("kind", ["flow", "linear"])
def test_ddpm_with_the_exact_learned_variance_is_exact_in_four_steps(kind):
    """Gaussian data make every reverse step Gaussian: with its true variance, few steps are enough."""
    schedule, (_, mean, std) = SCHEDULES[kind], GAUSSIAN[0]
    levels = np.array([1.0, 0.7, 0.4, 0.15, 0.05])
    problem = discretize(schedule, "sample", levels)
    step = posterior(problem)
    data_variance = 1.0 / (1.0 / std**2 + (problem.alpha / problem.sigma) ** 2)
    share = np.log((step.variance + step.from_x0**2 * data_variance) / step.variance)
    raw = jnp.asarray(2.0 * share / np.log(step.largest / step.variance) - 1.0, jnp.float32)
    assert raw.min() > -1
    assert raw.max() < 1

    def denoise(x, t):
        here = raw[jnp.argmin(jnp.abs(levels[:-1] - t))]
        return jnp.concatenate([inner(x, t), jnp.full_like(x, here)], axis=-1)

    inner = exact_denoiser(GAUSSIAN, schedule, "sample")
    x = float(schedule.alpha(1.0)) * mean
    x = x + jnp.sqrt(float(schedule.alpha(1.0)) ** 2 * std**2 + float(schedule.sigma(1.0)) ** 2) * (
        jax.random.normal(jax.random.key(5), (60_000, 1))
    )
    options = {"schedule": schedule, "prediction": "sample", "grid": levels, "key": jax.random.key(6)}
    wanted = np.sqrt(schedule.alpha(0.05) ** 2 * std**2 + schedule.sigma(0.05) ** 2)
    learned = jax.jit(lambda x: make("ddpm").sample(denoise, x, **options))(x)
    small = jax.jit(lambda x: make("ddpm", variance="small").sample(denoise, x, **options))(x)
    assert abs(float(learned.std()) / wanted - 1.0) < 0.01
    assert abs(float(learned.mean()) - schedule.alpha(0.05) * mean) < 0.01
    assert abs(float(small.std()) / wanted - 1.0) > 0.04
