"""Learned variance: the bound's terms against integrals, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from vdit.diffusion import DDPM, DiffusionConfig, diffusion_loss, target
from vdit.diffusion.objectives import BIN, binned_log_likelihood, bound_terms, gaussian_kl, posterior_tables
from vdit.samplers.base import discretize, posterior

SCHEDULE = DDPM(steps=50)
LEVELS = np.arange(50, -1, -1) / 50


def test_kl_is_the_integral():
    a, b = (0.3, 0.4), (-0.2, 0.7)
    x = np.linspace(-8, 8, 40001)
    density, log_ratio = norm.pdf(x, *a), norm.logpdf(x, *a) - norm.logpdf(x, *b)
    wanted = np.trapezoid(density * log_ratio, x)
    got = gaussian_kl(a[0], 2 * np.log(a[1]), b[0], 2 * np.log(b[1]))
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_binned_likelihoods_sum_to_one_and_keep_their_digits_in_the_tail():
    x = jnp.arange(-1500, 1500) * BIN
    log_p = binned_log_likelihood(x, jnp.float32(0.21), jnp.float32(2 * np.log(0.3)))
    np.testing.assert_allclose(jnp.exp(log_p).sum(), 1.0, rtol=1e-4)
    far = binned_log_likelihood(jnp.float32(4.0), jnp.float32(0.0), jnp.float32(0.0))
    np.testing.assert_allclose(far, norm.logpdf(4.0) + np.log(BIN), rtol=1e-3)
    mirrored = binned_log_likelihood(jnp.float32(-4.0), jnp.float32(0.0), jnp.float32(0.0))
    np.testing.assert_allclose(far, mirrored, rtol=1e-6)


def test_posterior_tables_are_bayes_rule_and_the_samplers_own():
    tables = posterior_tables(SCHEDULE)
    steps = posterior(discretize(SCHEDULE, "noise", LEVELS))
    np.testing.assert_allclose(tables["from_x0"][::-1], steps.from_x0, rtol=1e-9)
    np.testing.assert_allclose(tables["from_x"][::-1], steps.from_x, atol=1e-12)
    np.testing.assert_allclose(np.exp(tables["log_small"])[:0:-1], steps.variance[:-1], rtol=1e-9)
    np.testing.assert_allclose(np.exp(tables["log_large"])[::-1], steps.largest, rtol=1e-9)
    # Bayes on a grid, at time 9: q(x_8 | x_9, x_0) is q(x_9 | x_8) q(x_8 | x_0), normalised.
    i, x0, x = 9, 0.8, 0.1
    beta = np.exp(tables["log_large"][i])
    z = np.linspace(-6, 6, 60001)
    before = i / 50
    weight = np.asarray(norm.pdf(x, np.sqrt(1 - beta) * z, np.sqrt(beta))) * np.asarray(
        norm.pdf(z, SCHEDULE.alpha(before) * x0, SCHEDULE.sigma(before))
    )
    weight = weight / weight.sum()
    mean = (weight * z).sum()
    np.testing.assert_allclose(mean, tables["from_x0"][i] * x0 + tables["from_x"][i] * x, rtol=1e-4)
    np.testing.assert_allclose((weight * (z - mean) ** 2).sum(), np.exp(tables["log_small"][i]), rtol=1e-4)


def example(prediction="noise", index=9):
    x0, noise = (jax.random.normal(jax.random.key(k), (2, 3, 4)) for k in (1, 2))
    level = jnp.full((2, 3), (index + 1) / 50)
    raw = jax.random.uniform(jax.random.key(3), x0.shape, minval=-1.0)
    values = target(SCHEDULE, prediction, x0, noise, level) + 0.3
    return x0, noise, level, jnp.concatenate([values, raw], axis=-1)


@pytest.mark.parametrize("prediction", ["noise", "v", "velocity", "sample"])
def test_bound_terms_are_the_kl_in_bits(prediction):
    x0, noise, level, output = example(prediction)
    got = bound_terms(SCHEDULE, prediction, output, x0=x0, noise=noise, level=level)
    assert got.shape == (2, 3)
    t = posterior_tables(SCHEDULE)
    alpha, sigma = SCHEDULE.alpha(0.2), SCHEDULE.sigma(0.2)
    # An error of 0.3 in the prediction, as an error of the estimated data.
    off = {"noise": -sigma / alpha, "v": -sigma, "velocity": -sigma / (alpha + sigma), "sample": 1.0}
    gap = t["from_x0"][9] * 0.3 * off[prediction]
    share = (np.asarray(output[..., 4:], np.float64) + 1) / 2
    log_var = share * t["log_large"][9] + (1 - share) * t["log_small"][9]
    true = np.exp(t["log_small"][9])
    kl = 0.5 * (log_var - np.log(true) - 1 + (true + gap**2) / np.exp(log_var))
    np.testing.assert_allclose(got, kl.mean(-1) / np.log(2), rtol=2e-4, atol=1e-5)


def test_a_perfect_network_with_the_small_variance_has_no_bound_but_at_time_zero():
    for index, wanted in ((9, 0.0), (49, 0.0), (0, None)):
        x0, noise, level, output = example(index=index)
        output = output.at[..., :4].add(-0.3).at[..., 4:].set(-1.0)
        got = bound_terms(SCHEDULE, "noise", output, x0=x0, noise=noise, level=level)
        if wanted is None:
            std = np.exp(0.5 * posterior_tables(SCHEDULE)["log_small"][0])
            wanted = -np.log2(2 * norm.cdf(BIN / 2 / std) - 1)
        np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)


def test_the_bound_teaches_the_variance_only():
    x0, noise, level, output = example()
    gradient = jax.grad(
        lambda o: bound_terms(SCHEDULE, "noise", o, x0=x0, noise=noise, level=level).sum()
    )(output)
    assert (gradient[..., :4] == 0).all()
    assert (gradient[..., 4:] != 0).all()


def test_the_loss_is_squared_error_and_a_thousandth_of_the_summed_bound():
    x0, noise, level, output = example()
    config = DiffusionConfig(kind="ddpm", prediction="noise", steps=50, learn_variance=True)
    loss, metrics = diffusion_loss(
        config, output, x0=x0, noise=noise, level=level, weight=jnp.ones((2, 3))
    )
    np.testing.assert_allclose(metrics["mse"], 0.09, rtol=1e-4)
    np.testing.assert_allclose(loss, metrics["mse"] + 50 * metrics["bound"] / 1000, rtol=1e-6)
    # Known tokens at level 0 carry no weight, and leave no trace either.
    weight = jnp.ones((2, 3)).at[:, 0].set(0)
    gradient = jax.grad(
        lambda o: diffusion_loss(
            config, o, x0=x0, noise=noise, level=level.at[:, 0].set(0), weight=weight
        )[0]
    )(output)
    assert np.isfinite(gradient).all()
    assert (gradient[:, 0] == 0).all()
