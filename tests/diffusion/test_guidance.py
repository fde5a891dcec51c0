"""Guidance: identities at special scales, the interval, the rescale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.diffusion import Guidance, guide
from vdit.errors import ConfigError

X = jax.random.normal(jax.random.key(0), (2, 3, 4))
CONDITIONAL, UNCONDITIONAL = (jax.random.normal(jax.random.key(k), (2, 3, 4)) for k in (1, 2))


def guided(t=0.5, **fields):
    denoise = jax.jit(guide(lambda x, t: (CONDITIONAL, UNCONDITIONAL), Guidance(**fields)))
    return denoise(X, jnp.float32(t))


def test_special_scales():
    np.testing.assert_array_equal(guided(scale=1.0), CONDITIONAL)
    np.testing.assert_allclose(guided(scale=0.0), UNCONDITIONAL, atol=1e-6)
    wanted = UNCONDITIONAL + 4.0 * (CONDITIONAL - UNCONDITIONAL)
    np.testing.assert_allclose(guided(scale=4.0), wanted, atol=1e-5)


def test_guidance_acts_within_its_interval_only():
    for t, acts in ((0.1, False), (0.25, True), (0.5, True), (0.75, True), (0.8, False)):
        same = bool((guided(t, scale=4.0, interval=(0.25, 0.75)) == CONDITIONAL).all())
        assert same != acts


def test_rescale_brings_back_each_samples_standard_deviation():
    def spread(x):
        return np.asarray(x).std(axis=(1, 2))

    plain, full = guided(scale=5.0), guided(scale=5.0, rescale=1.0)
    np.testing.assert_allclose(spread(full), spread(CONDITIONAL), rtol=1e-5)
    half = guided(scale=5.0, rescale=0.5)
    np.testing.assert_allclose(half, 0.5 * (plain + full), atol=1e-5)
    np.testing.assert_array_equal(guided(scale=5.0, rescale=0.0), plain)


def test_a_learned_variance_is_the_conditionals_own():
    def pair(x, t):
        return (
            jnp.concatenate([CONDITIONAL, jnp.ones_like(x)], -1),
            jnp.concatenate([UNCONDITIONAL, jnp.zeros_like(x)], -1),
        )

    out = guide(pair, Guidance(scale=3.0, rescale=0.7))(X, jnp.float32(0.5))
    np.testing.assert_allclose(out[..., :4], guided(scale=3.0, rescale=0.7), atol=1e-5)
    np.testing.assert_array_equal(out[..., 4:], 1.0)


@pytest.mark.parametrize("fields", [{"interval": (0.6, 0.2)}, {"interval": (0.0, 1.5)}, {"rescale": 1.5}])
def test_settings_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Guidance(**fields)
