"""Predictions, training levels and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.diffusion import (
    DDPM,
    DiffusionConfig,
    Flow,
    add_noise,
    diffusion_loss,
    draw_levels,
    from_clean_and_noise,
    target,
    to_clean_and_noise,
)
from vdit.errors import ConfigError, ShapeError

KEY = jax.random.key(0)
UNIFORM = DiffusionConfig(timestep_sampling="uniform")


def some(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("prediction", ["noise", "velocity", "v", "sample"])
@pytest.mark.parametrize("schedule", [Flow(), DDPM(), DDPM(beta_schedule="cosine")])
def test_conversions_come_back(prediction, schedule):
    x0, noise = some((4, 5), 1), some((4, 5), 2)
    t = jnp.array([0.1, 0.4, 0.7, 0.9])
    x = add_noise(schedule, x0, noise, t)
    output = target(schedule, prediction, x0, noise, t)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    back_x0, back_noise = to_clean_and_noise(prediction, output, x, alpha, sigma)
    np.testing.assert_allclose(back_x0, x0, atol=1e-4)
    np.testing.assert_allclose(back_noise, noise, atol=1e-4)
    again = from_clean_and_noise(prediction, back_x0, back_noise, alpha, sigma)
    np.testing.assert_allclose(again, output, atol=1e-4)


def test_velocity_is_the_slope_of_the_flow():
    x0, noise = some((3,), 1), some((3,), 2)
    slope = jax.jacfwd(lambda t: add_noise(Flow(), x0, noise, t))(jnp.float32(0.3))
    np.testing.assert_allclose(slope, target(Flow(), "velocity", x0, noise, jnp.float32(0.3)), atol=1e-6)


def test_noise_levels_go_to_their_own_tokens():
    x0, noise, level = some((2, 3, 4), 1), some((2, 3, 4), 2), jnp.array([[0.0, 0.5, 1.0]] * 2)
    x = add_noise(Flow(), x0, noise, level)
    np.testing.assert_array_equal(x[:, 0], x0[:, 0])
    np.testing.assert_array_equal(x[:, 2], noise[:, 2])
    np.testing.assert_allclose(x[:, 1], 0.5 * (x0 + noise)[:, 1], atol=1e-6)


SLOTS = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]])


@pytest.mark.parametrize("stratified", [False, True])
def test_a_clip_has_one_level_and_unused_slots_are_clean(stratified):
    config = DiffusionConfig(stratified=stratified)
    levels = np.asarray(draw_levels(KEY, SLOTS, config))
    assert levels.shape == SLOTS.shape
    assert (levels[0, 6:] == 0).all()
    assert len(set(levels[0, :3])) == len(set(levels[0, 3:5])) == 1
    distinct = np.unique(levels[levels > 0])
    assert len(distinct) == 3 + 8


def test_per_frame_every_slot_has_its_own_level():
    levels = np.asarray(draw_levels(KEY, SLOTS, UNIFORM, per_frame=True))
    assert len(np.unique(levels[levels > 0])) == 6 + 8
    assert (levels[0, 6:] == 0).all()


def many_draws(config, slots, count=4000, **options):
    keys = jax.random.split(KEY, count)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw_levels(key, slots, config, **options)))(keys))


@pytest.mark.parametrize("per_frame", [False, True])
def test_clips_are_independent_and_each_is_uniform(per_frame):
    levels = many_draws(UNIFORM, SLOTS, per_frame=per_frame)
    used = levels[:, np.asarray(SLOTS) > 0]
    np.testing.assert_allclose(used.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(used.var(0), 1 / 12, atol=0.01)
    correlation = np.corrcoef(used.T)
    same = np.abs(correlation) > 0.999
    owners = np.arange(14) if per_frame else np.array([0, 0, 0, 1, 1, 2, *range(10, 18)])
    np.testing.assert_array_equal(same, owners[:, None] == owners[None])
    assert np.abs(correlation[~same]).max() < 0.07


@pytest.mark.parametrize("per_frame", [False, True])
def test_stratified_draws_are_even_in_a_batch_and_uniform_alone(per_frame):
    config = DiffusionConfig(timestep_sampling="uniform", stratified=True)
    levels = many_draws(config, SLOTS, per_frame=per_frame)
    owners = [0, 1, 2, 3, 4, 5] if per_frame else [0, 3, 5]
    clips = np.concatenate([levels[:, 0, owners], levels[:, 1]], axis=1)
    gaps = np.diff(np.sort(clips, axis=1), axis=1)
    np.testing.assert_allclose(gaps, 1 / clips.shape[1], atol=1e-5)
    for each in clips.T:
        np.testing.assert_allclose(np.quantile(each, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


@pytest.mark.parametrize("stratified", [False, True])
def test_logit_normal_draws_have_their_mean_and_spread(stratified):
    config = DiffusionConfig(logit_mean=-0.5, logit_std=0.8, stratified=stratified)
    levels = many_draws(config, jnp.array([[1], [1]]))
    logit = np.log(levels / (1 - levels))
    assert abs(logit.mean() + 0.5) < 0.03
    assert abs(logit.std() - 0.8) < 0.03


def test_shift_in_training_is_a_shift_of_the_draws():
    plain = draw_levels(KEY, SLOTS, DiffusionConfig())
    shifted = draw_levels(KEY, SLOTS, DiffusionConfig(shift=3.0))
    np.testing.assert_allclose(shifted, Flow(shift=3.0).shifted(plain), atol=1e-6)
    # For logit-normal draws a shift by s is a move of the mean by log s.
    moved = draw_levels(KEY, SLOTS, DiffusionConfig(logit_mean=float(np.log(3.0))))
    np.testing.assert_allclose(shifted, moved, atol=1e-5)


def test_ddpm_draws_are_the_trained_levels_all_alike():
    config = DiffusionConfig(kind="ddpm", timestep_sampling="uniform", beta_schedule="cosine", steps=20)
    levels = many_draws(config, SLOTS)[:, np.asarray(SLOTS) > 0]
    index, counts = np.unique(np.round(levels * 20), return_counts=True)
    np.testing.assert_allclose(levels * 20, np.round(levels * 20), atol=1e-4)
    np.testing.assert_array_equal(index, np.arange(1, 21))
    assert counts.min() > 0.85 * counts.max()


def loss_of(output, weight, config=UNIFORM, level=None):
    x0, noise = some((2, 3, 4), 1), some((2, 3, 4), 2)
    level = jnp.full((2, 3), 0.4) if level is None else level
    return diffusion_loss(config, output, x0=x0, noise=noise, level=level, weight=weight)[0]


def test_the_loss_is_the_mean_over_tokens_with_weight():
    wanted = some((2, 3, 4), 2) - some((2, 3, 4), 1)
    weight = jnp.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    output = wanted + jnp.array([1.0, 9.0, 9.0])[None, :, None]
    np.testing.assert_allclose(loss_of(output, weight), 1.0, rtol=1e-5)
    output = wanted.at[0, 0].add(3.0)
    np.testing.assert_allclose(loss_of(output, weight), 9.0 / 3.0, rtol=1e-5)


def test_tokens_without_weight_do_not_matter_at_all():
    weight = jnp.ones((2, 3)).at[:, 2].set(0)
    output = some((2, 3, 4), 5)
    loss, gradient = jax.value_and_grad(loss_of)(output, weight)
    assert (gradient[:, 2] == 0).all()
    assert np.abs(gradient[:, :2]).min() > 0
    assert loss_of(output.at[:, 2].set(jnp.nan), weight) == loss
    assert loss_of(output, jnp.zeros((2, 3))) == 0


def test_the_loss_of_clean_data_in_the_space_of_velocity_is_that_of_the_velocity_it_implies():
    x0, noise, output = (some((2, 3, 4), seed) for seed in range(3))
    level = jnp.array([[0.06, 0.5, 1.0], [0.2, 0.9, 0.3]])
    given = {"x0": x0, "noise": noise, "level": level, "weight": jnp.ones((2, 3))}
    sample = DiffusionConfig(prediction="sample", loss_space="velocity", shift=3.0)
    x = add_noise(Flow(), x0, noise, level)
    velocity = (x - output) / level[..., None]
    mine, _ = diffusion_loss(sample, output, **given)
    implied, _ = diffusion_loss(DiffusionConfig(prediction="velocity", shift=3.0), velocity, **given)
    np.testing.assert_allclose(mine, implied, rtol=1e-4)
    clean, _ = diffusion_loss(sample, x0, **(given | {"level": jnp.zeros((2, 3))}))
    assert clean == 0  # and no division by zero


@pytest.mark.parametrize("settings", [{"prediction": "v"}, {"kind": "ddpm", "prediction": "sample"}])
def test_the_space_of_velocity_is_refused_where_it_has_no_meaning(settings):
    with pytest.raises(ConfigError, match=settings["prediction"]):
        DiffusionConfig(loss_space="velocity", **settings)


def test_the_wrong_number_of_channels_is_named():
    with pytest.raises(ShapeError, match="learn_variance=False"):
        loss_of(some((2, 3, 8)), jnp.ones((2, 3)))
