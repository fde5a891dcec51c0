"""The consistency sampler where data are Gaussian, so that the true consistency function is a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.diffusion import DDPM, Flow, from_clean_and_noise
from vdit.errors import ConfigError
from vdit.samplers import make

MEAN, STD = 0.7, 0.5
SCHEDULES = {"flow": Flow(), "linear": DDPM()}


def predicting(clean, schedule):
    """denoise(x, t) -> velocity of a network whose word on the data is clean(x, alpha, spread of x_t)."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = clean(x, alpha, jnp.sqrt(alpha**2 * STD**2 + sigma**2))
        return from_clean_and_noise("velocity", x0, (x - alpha * x0) / sigma, alpha, sigma)

    return denoise


def where_the_path_ends(x, alpha, spread):
    return MEAN + STD / spread * (x - alpha * MEAN)


def mean_of_the_data(x, alpha, spread):
    return MEAN + alpha * STD**2 / spread**2 * (x - alpha * MEAN)


def draw(clean, kind, grid, x=None, count=40_000):
    schedule = SCHEDULES[kind]
    start, key = jax.random.split(jax.random.key(3))
    x = jax.random.normal(start, (count,)) if x is None else x
    sample = make("consistency").sample
    run = jax.jit(lambda x: sample(
        predicting(clean, schedule), x, schedule=schedule, prediction="velocity", grid=grid, key=key
    ))  # fmt: skip
    return np.asarray(run(x))


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_consistency_model_gives_the_data_distribution_in_any_number_of_steps(kind, steps):
    made = draw(where_the_path_ends, kind, steps)
    assert abs(made.mean() - MEAN) < 0.01
    assert abs(made.std() - STD) < 0.01
    inside = np.mean(np.abs(made - MEAN) < STD)
    assert abs(inside - 0.6827) < 0.01


def test_an_ordinary_model_gives_data_that_are_blurred():
    """It says the mean of what the data may be: nothing of their spread in one step, some in several."""
    spreads = [draw(mean_of_the_data, "flow", steps).std() for steps in (1, 4, 16)]
    assert spreads[0] < 1e-3
    assert spreads[0] < spreads[1] < spreads[2] < 0.95 * STD


def test_one_step_is_the_models_own_word():
    x = jnp.linspace(-2.0, 2.0, 5)
    want = where_the_path_ends(x, 0.2, np.hypot(0.2 * STD, 0.8))
    np.testing.assert_allclose(draw(where_the_path_ends, "flow", np.array([0.8, 0.0]), x), want, rtol=1e-5)


def test_each_step_begins_with_new_noise():
    """What a step's guess was noised with before has no part in it: only the guess goes on."""
    made = draw(lambda x, alpha, spread: jnp.full_like(x, MEAN), "flow", np.array([1.0, 0.5]))
    assert abs(made.mean() - 0.5 * MEAN) < 0.01
    assert abs(made.std() - 0.5) < 0.01
    start = np.asarray(jax.random.normal(jax.random.split(jax.random.key(3))[0], (40_000,)))
    assert abs(np.corrcoef(made, start)[0, 1]) < 0.02


def test_it_asks_for_a_key():
    with pytest.raises(ConfigError, match="sampler 'consistency' adds noise at each step: give it key="):
        make("consistency").sample(lambda x, t: x, jnp.zeros(2), schedule=Flow(), prediction="velocity", grid=2)
