"""Latent statistics in batches are those of all latents at once."""

import numpy as np
import pytest

from vdit.errors import DataError, ShapeError
from vdit.models.vae import add_latents, denormalise, empty_moments, latent_statistics, normalise

LATENTS = np.random.default_rng(0).normal(5.0, [0.5, 1.0, 3.0], (10, 2, 4, 4, 3)).astype(np.float32)


def test_in_batches_is_of_the_whole():
    moments = empty_moments(3)
    for part in (LATENTS[:1], LATENTS[1:1], LATENTS[1:4, :1], LATENTS[1:4, 1:], LATENTS[4:]):
        moments = add_latents(moments, part)
    statistics = latent_statistics(moments)
    values = LATENTS.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(statistics["mean"], values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics["std"], values.std(0), rtol=1e-6)


def test_a_large_offset_does_not_swallow_the_spread():
    moments = empty_moments(1)
    for part in np.split(1e6 + np.arange(100.0)[:, None], 5):
        moments = add_latents(moments, part)
    np.testing.assert_allclose(latent_statistics(moments)["std"], np.arange(100.0).std(), rtol=1e-6)


def test_normalised_latents_have_unit_moments_and_come_back():
    statistics = latent_statistics(add_latents(empty_moments(3), LATENTS))
    unit = normalise(LATENTS, statistics)
    np.testing.assert_allclose(unit.mean((0, 1, 2, 3)), 0.0, atol=1e-4)
    np.testing.assert_allclose(unit.std((0, 1, 2, 3)), 1.0, atol=1e-4)
    np.testing.assert_allclose(denormalise(unit, statistics), LATENTS, atol=1e-5)


def test_an_unused_channel_stays_finite():
    statistics = latent_statistics(add_latents(empty_moments(1), np.full((4, 1), 2.0)))
    assert np.all(np.isfinite(normalise(np.full((4, 1), 2.0), statistics)))


def test_nothing_or_the_wrong_thing_is_refused():
    with pytest.raises(DataError, match="at least one clip"):
        latent_statistics(empty_moments(3))
    with pytest.raises(ShapeError, match="3 channels"):
        add_latents(empty_moments(3), np.zeros((2, 4)))
