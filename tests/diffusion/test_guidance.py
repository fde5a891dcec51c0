"""Guidance: identities at special scales, the interval, the rescale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.diffusion import Guidance, guide
from vdit.errors import ConfigError, ShapeError

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


def test_the_unconditional_network_rests_outside_the_interval():
    calls = []

    def count(name):
        jax.debug.callback(lambda: calls.append(name), ordered=True)

    def pair(x, t):
        count("pair")
        return CONDITIONAL, UNCONDITIONAL

    def single(x, t):
        count("single")
        return CONDITIONAL

    settings = Guidance(scale=4.0, interval=(0.25, 0.75))
    denoise, plain = jax.jit(guide(pair, settings, single)), guide(lambda x, t: (CONDITIONAL, UNCONDITIONAL), settings)
    levels = [0.1, 0.25, 0.5, 0.75, 0.8]
    for t in levels:
        np.testing.assert_allclose(denoise(X, jnp.float32(t)), plain(X, jnp.float32(t)), atol=1e-6)
    jax.effects_barrier()
    assert calls == ["single", "pair", "pair", "pair", "single"]


def test_the_whole_interval_needs_one_copy_of_the_network():
    traced = []
    denoise = guide(lambda x, t: (CONDITIONAL, UNCONDITIONAL), Guidance(scale=4.0), lambda x, t: traced.append(1))
    np.testing.assert_allclose(denoise(X, jnp.float32(0.5)), guided(scale=4.0), atol=1e-6)
    assert not traced


def test_guidance_of_some_channels_leaves_the_others_conditional():
    """Tokens of two pixels with two channels each, [p c] in their last axis."""
    some = guided(scale=4.0, channels=(1, 2))
    np.testing.assert_array_equal(some[..., ::2], guided(scale=4.0)[..., ::2])
    np.testing.assert_array_equal(some[..., 1::2], CONDITIONAL[..., 1::2])
    with pytest.raises(ShapeError, match="3 must divide"):
        guided(scale=4.0, channels=(1, 3))


def test_guidance_is_the_published_formula():
    wanted = UNCONDITIONAL + 6.0 * (CONDITIONAL - UNCONDITIONAL)
    np.testing.assert_allclose(guided(scale=6.0), wanted, atol=2e-6 * float(jnp.abs(wanted).max()))


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


@pytest.mark.parametrize(
    "fields", [{"interval": (0.6, 0.2)}, {"interval": (0.0, 1.5)}, {"rescale": 1.5}, {"channels": (4, 3)}]
)
def test_settings_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Guidance(**fields)
