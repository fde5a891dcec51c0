"""Grids: the ends, the spacings, and the published ones by number."""

import jax.numpy as jnp
import numpy as np
import pytest

from vdit.diffusion import DDPM, Flow
from vdit.samplers import Grid
from vdit.samplers.grid import Spacing, resolve

SPACINGS = Spacing.__args__


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [Flow(), Flow(shift=5.0), DDPM(), DDPM(beta_schedule="cosine")])
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("start", [1.0, 0.6])
def test_grids_fall_strictly_from_start_to_zero(spacing, schedule, steps, start):
    levels = Grid(steps=steps, spacing=spacing, start=start).levels(schedule)
    assert levels.dtype == np.float64
    assert levels.shape == (steps + 1,)
    assert (np.diff(levels) < 0).all()
    assert levels[-1] == 0
    assert levels[0] <= start + 1e-12
    if spacing != "leading" and not (steps == 1 and spacing == "log_snr"):
        assert abs(levels[0] - start) < 1.001e-3  # mirrored begins at 0.999


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_a_discrete_schedule_is_visited_at_its_own_times(spacing):
    schedule = DDPM(steps=400)
    time = schedule.time(Grid(steps=37, spacing=spacing).levels(schedule)[:-1])
    np.testing.assert_array_equal(time, np.round(time))


def test_all_steps_visit_all_levels():
    schedule = DDPM(steps=100)
    np.testing.assert_array_equal(schedule.time(resolve(100, schedule)[:-1]), np.arange(100)[::-1])


def test_respacing_as_in_dit():
    time = DDPM().time(Grid(steps=250, spacing="linspace").levels(DDPM())[:-1])
    np.testing.assert_array_equal(time[::-1], [round(i * 999 / 249) for i in range(250)])


def test_trailing_and_leading():
    def times(spacing):
        return DDPM().time(Grid(steps=10, spacing=spacing).levels(DDPM())[:-1]).tolist()

    assert times("trailing") == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert times("leading") == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]


def test_the_unipc_grid_of_wan():
    """50 steps at shift 3, in the whole times that the network was fed: 999, 993, 986, ..., 60."""
    schedule = Flow(shift=3.0, integer_timesteps=True)
    levels = Grid(steps=50, low=1e-3, ceiling=1.0 - 1e-6).levels(schedule)
    time = schedule.time(levels)
    assert time[:3].tolist() == [999, 993, 986]
    assert time[-2:].tolist() == [60, 0]
    assert levels[0] == 1.0 - 1e-6
    assert abs(levels[-2] - 0.0604) < 1e-4
    np.testing.assert_array_equal(schedule.time(jnp.asarray(levels, jnp.float32)), time)


def test_the_flow_euler_grid_that_is_shifted_twice():
    """The other published grid for shift 3: its low end is itself a shifted level, and is shifted again."""
    schedule = Flow(shift=3.0)
    levels = Grid(steps=50, spacing="linspace", low=float(schedule.shifted(1e-3))).levels(schedule)
    assert abs(levels[-2] - 0.0089) < 1e-4


def test_shift_moves_the_grid_and_start_names_the_level_itself():
    plain = Grid(steps=4).levels(Flow())
    shifted = Grid(steps=4).levels(Flow(shift=3.0))
    np.testing.assert_allclose(shifted, 3 * plain / (1 + 2 * plain))
    np.testing.assert_allclose(Grid(steps=4, shift=3.0).levels(Flow()), shifted)
    np.testing.assert_allclose(Grid(steps=4, start=0.5).levels(Flow(shift=3.0))[0], 0.5)
    # The rest of the way is the whole grid's own tail.
    tail = Grid(steps=2, start=shifted[2]).levels(Flow(shift=3.0))
    np.testing.assert_allclose(tail, shifted[2:], atol=1e-12)


@pytest.mark.parametrize("schedule", [Flow(), DDPM()])
def test_log_snr_spacing_is_even(schedule):
    levels = Grid(steps=20, spacing="log_snr", start=0.9, low=0.05).levels(schedule)[:-1]
    gaps = np.diff(schedule.log_snr(levels))
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-3)
    np.testing.assert_allclose(levels[[0, -1]], [0.9, 0.05], atol=1e-6)
