"""Inversion: what Euler's method takes back to the data, on densities that are known and on a tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.samplers.test_convergence import GAUSSIAN, MIXTURE, SCHEDULES, exact_denoiser, exact_path_end
from vdit.errors import ConfigError
from vdit.samplers import Grid, make
from vdit.samplers.invert import invert


def round_trip(denoise, x, schedule, prediction, grid, iterations=20):
    options = {"schedule": schedule, "prediction": prediction, "grid": grid}
    up = invert(denoise, x, iterations=iterations, **options)
    return up, make("euler").sample(denoise, up, **options)


@pytest.mark.parametrize(("name", "prediction"), [("flow", "velocity"), ("flow", "v"), ("cosine", "noise")])
@pytest.mark.parametrize("parts", [GAUSSIAN, MIXTURE])
def test_up_and_down_again_gives_the_data(name, prediction, parts):
    schedule = SCHEDULES[name]
    x = jnp.linspace(-1.5, 2.0, 8)
    for grid in (Grid(steps=12, ceiling=0.99), Grid(steps=6, start=0.6)):
        _, back = round_trip(exact_denoiser(parts, schedule, prediction), x, schedule, prediction, grid)
        np.testing.assert_allclose(back, x, atol=1e-4)


def test_one_iteration_drifts_and_more_do_not():
    schedule = SCHEDULES["flow"]
    denoise, x = exact_denoiser(MIXTURE, schedule, "velocity"), jnp.linspace(-1.5, 2.0, 8)
    error = [
        float(jnp.abs(round_trip(denoise, x, schedule, "velocity", Grid(steps=8), n)[1] - x).max()) for n in (1, 3, 9)
    ]
    assert error[0] > 1e-2
    assert error[0] > 4 * error[1] > 16 * error[2]


def test_it_nears_the_flow_itself():
    """With short steps it ends where the exact path through the data begins."""
    schedule = SCHEDULES["flow"]
    x = jnp.linspace(-1.0, 1.5, 6)
    far = []
    for steps in (20, 40):
        levels = np.linspace(0.95, 0.0, steps + 1)
        up = invert(
            exact_denoiser(MIXTURE, schedule, "velocity"), x, schedule=schedule, prediction="velocity", grid=levels
        )
        far.append(np.abs(exact_path_end(MIXTURE, schedule, up, 0.95, 0.0) - x).max())
    assert far[0] < 0.1
    assert far[1] < 0.6 * far[0]


def test_a_tiny_network_is_inverted():
    keys = jax.random.split(jax.random.key(0), 3)
    first, second = 0.5 * jax.random.normal(keys[0], (4, 16)), 0.5 * jax.random.normal(keys[1], (16, 4))
    network = lambda x, t: jnp.tanh(x @ first + t) @ second  # noqa: E731
    x = jax.random.normal(keys[2], (5, 4))
    up, back = jax.jit(lambda x: round_trip(network, x, SCHEDULES["flow"], "velocity", Grid(steps=12)))(x)
    np.testing.assert_allclose(back, x, atol=1e-4)
    assert np.abs(up - x).min(axis=-1).max() > 1e-2


def test_what_is_projected_stays():
    known = jnp.arange(6) < 2
    up = invert(
        lambda x, t: x + x.mean(), jnp.ones(6), schedule=SCHEDULES["flow"], prediction="velocity", grid=4,
        project=lambda x, t: jnp.where(known, 1.0, x),
    )  # fmt: skip
    np.testing.assert_array_equal(up[:2], 1.0)
    assert np.abs(up[2:] - 1).min() > 0.1


def test_no_iteration_is_refused():
    with pytest.raises(ConfigError, match=r"iterations=0 .*give 1 or more"):
        invert(lambda x, t: x, jnp.ones(3), schedule=SCHEDULES["flow"], prediction="velocity", grid=4, iterations=0)
