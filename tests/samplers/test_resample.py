"""Repeated steps join what is put back and what is made, without a network: two correlated numbers, one known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.diffusion import DDPM, Flow, add_noise
from vdit.diffusion.objectives import from_clean_and_noise
from vdit.errors import ConfigError
from vdit.samplers import Grid, make

CORRELATION, KNOWN = 0.95, 1.5


def drawn(sampler, schedule, count=2000):
    """Pairs [count 2] of which the second is put back at every level, as KNOWN."""
    covariance = jnp.array([[1.0, CORRELATION], [CORRELATION, 1.0]])

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(2))
        x0 = x @ gain.T
        return from_clean_and_noise("velocity", x0, (x - alpha * x0) / jnp.maximum(sigma, 1e-6), alpha, sigma)

    noise = jax.random.normal(jax.random.key(0), (count, 2))
    known = add_noise(schedule, jnp.full((count, 2), KNOWN), noise, jnp.zeros(count))

    def project(x, t):
        noised = add_noise(schedule, known, noise, jnp.full(count, t))
        return jnp.stack([x[:, 0], noised[:, 1]], axis=1)

    return np.asarray(sampler.sample(
        denoise, noise, schedule=schedule, prediction="velocity", grid=Grid(steps=16, ceiling=0.999),
        key=jax.random.key(1), project=project,
    ))  # fmt: skip


@pytest.mark.parametrize("schedule", [Flow(), DDPM(beta_schedule="cosine")], ids=["flow", "cosine"])
def test_what_is_made_fits_what_is_known_the_better_the_more_often_a_step_is_taken(schedule):
    errors = []
    for times in (1, 4, 16):
        pairs = drawn(make("resample", times=times), schedule)
        np.testing.assert_allclose(pairs[:, 1], KNOWN, atol=1e-5)
        errors.append(abs(pairs[:, 0].mean() - CORRELATION * KNOWN))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.05


def test_taken_once_it_is_eulers_method():
    once, euler = (drawn(make(name, **more), Flow(), 50) for name, more in (("resample", {"times": 1}), ("euler", {})))
    np.testing.assert_allclose(once, euler, atol=1e-5)


def test_times_below_one_is_refused():
    with pytest.raises(ConfigError, match="times is 0"):
        make("resample", times=0)
