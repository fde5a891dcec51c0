"""Schedules: identities, the published formulas, and one meaning in numpy float64 and JAX float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.config import from_json, to_json
from vdit.diffusion import DDPM, DiffusionConfig, Flow, make_schedule
from vdit.errors import ConfigError

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = [Flow(), Flow(shift=3.0), DDPM(), DDPM(beta_schedule="cosine"), DDPM(steps=100), DDPM(**STABLE)]
SCHEDULES += [DDPM(interpolation="sigma")]
T = np.linspace(0.0, 1.0, 1501)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_level_zero_is_clean_and_log_snr_falls(schedule):
    assert schedule.alpha(0.0) == 1
    assert schedule.sigma(0.0) == 0
    assert schedule.log_snr(0.0) == np.inf
    assert (np.diff(schedule.log_snr(T[1:])) < 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_jax_float32_agrees_with_numpy_float64(schedule):
    for name in ("alpha", "sigma", "time", "shifted"):
        wide = getattr(schedule, name)(T)
        narrow = jax.jit(getattr(schedule, name))(jnp.asarray(T, jnp.float32))
        assert wide.dtype == np.float64
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, wide, atol=2e-3 if name == "time" else 3e-6)


def test_flow_is_a_straight_path_at_every_shift():
    for schedule in (Flow(), Flow(shift=7.0)):
        np.testing.assert_allclose(schedule.alpha(T), 1 - T)
        np.testing.assert_allclose(schedule.sigma(T), T)
        np.testing.assert_allclose(schedule.time(T), 1000 * T)


def test_shift_fixes_the_ends_and_multiplies_the_noise_to_data_ratio():
    inside = T[1:-1]
    moved = Flow(shift=3.0).shifted(T)
    assert moved[0] == 0
    assert moved[-1] == 1
    np.testing.assert_allclose(moved[1:-1] / (1 - moved[1:-1]), 3 * inside / (1 - inside))
    np.testing.assert_allclose(Flow(shift=1 / 3).shifted(moved), T, atol=1e-12)


@pytest.mark.parametrize("beta_schedule", ["linear", "cosine"])
def test_ddpm_preserves_variance_everywhere(beta_schedule):
    schedule = DDPM(beta_schedule=beta_schedule)
    np.testing.assert_allclose(schedule.alpha(T) ** 2 + schedule.sigma(T) ** 2, 1.0, rtol=1e-12)


def test_linear_betas_are_the_published_ones():
    grid = np.arange(1, 1001) / 1000
    wanted = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(DDPM().alpha(grid) ** 2, wanted, rtol=1e-12)
    np.testing.assert_allclose(DDPM().sigma(grid) ** 2, 1 - wanted, rtol=1e-9)


def test_scaled_linear_betas_are_the_published_ones():
    grid = np.arange(1, 1001) / 1000
    wanted = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    np.testing.assert_allclose(DDPM(**STABLE).alpha(grid) ** 2, wanted, rtol=1e-12)


def test_interpolations_agree_on_the_levels_and_are_straight_between_them():
    a, b = DDPM(), DDPM(interpolation="sigma")
    whole = np.arange(0, 1001) / 1000
    np.testing.assert_allclose(a.alpha(whole), b.alpha(whole), rtol=1e-10)
    ratio = b.sigma(T) / b.alpha(T)
    np.testing.assert_allclose(ratio, np.interp(T, whole, b.sigma(whole) / b.alpha(whole)), rtol=1e-9)


def test_whole_times_survive_float32():
    """Also for levels a hair above or below a whole time, once they are made safe to round."""
    whole = np.arange(1, 1000) / 1000
    schedule = Flow(integer_timesteps=True)
    for offset in (-1e-4, -1e-7, -1e-9, -1e-12, 0.0, 1e-9, 1e-7):
        levels = whole + offset
        told = schedule.rounding(levels)
        assert np.abs(told - levels).max() < 4e-7
        narrow = jax.jit(schedule.time)(jnp.asarray(told, jnp.float32))
        np.testing.assert_array_equal(narrow, np.floor(1000 * levels))


def test_cosine_formula_up_to_the_clipped_last_beta():
    grid = np.arange(1, 1001) / 1000
    wanted = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    alpha_bar = DDPM(beta_schedule="cosine").alpha(grid) ** 2
    np.testing.assert_allclose(alpha_bar[:-1], wanted[:-1], rtol=1e-10)
    np.testing.assert_allclose(alpha_bar[-1] / alpha_bar[-2], 1e-3, rtol=1e-9)


def test_ddpm_times_are_whole_in_float32_at_every_level():
    levels = jnp.asarray(np.arange(1, 1001) / 1000, jnp.float32)
    np.testing.assert_array_equal(DDPM().time(levels), np.arange(1000))
    assert DDPM().time(0.0) == 0


def test_float32_sigma_keeps_its_digits_at_the_first_level():
    # 1 - alpha^2 in float32 would be off by 0.1% here.
    np.testing.assert_allclose(DDPM().sigma(jnp.float32(0.001)), 0.01, rtol=1e-6)


def test_configuration_picks_the_schedule():
    assert make_schedule(DiffusionConfig(shift=5.0)) == Flow(shift=5.0)
    config = DiffusionConfig(kind="ddpm", prediction="noise", beta_schedule="cosine", steps=50)
    assert make_schedule(config) == DDPM(beta_schedule="cosine", steps=50)
    assert make_schedule(DiffusionConfig(integer_timesteps=True)) == Flow(integer_timesteps=True)
    config = DiffusionConfig(kind="ddpm", prediction="noise", interpolation="sigma", **STABLE)
    assert make_schedule(config) == DDPM(interpolation="sigma", **STABLE)
    assert from_json(DiffusionConfig, to_json(config)) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "edm"},
        {"prediction": "x0"},
        {"shift": 0.0},
        {"logit_std": -1.0},
        {"steps": 1},
        {"steps": 20, "kind": "ddpm"},
        {"learn_variance": True},
        {"kind": "ddpm", "shift": 2.0},
        {"prediction": "noise"},
        {"beta_schedule": "quadratic"},
        {"beta_start": 0.0},
        {"interpolation": "cubic"},
        {"integer_timesteps": True, "kind": "ddpm"},
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        DiffusionConfig(**fields)


def test_a_process_too_short_for_its_betas_is_refused():
    with pytest.raises(ConfigError, match="betas reach 1"):
        DDPM(steps=10)
