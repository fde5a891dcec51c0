"""Layers: gradients of the hand-written backward, rotations, fixed positions."""

import jax
import jax.numpy as jnp
import numpy as np

from vdit.nn.embedding import axis_dims, rotate, rotations, sincos_position, sinusoid
from vdit.nn.layers import layer_norm, matmul, rms_norm


def test_matmul_gradients_are_those_of_jax():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 5)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    got = jax.grad(lambda x, w: jnp.sum(jnp.sin(matmul(x, w))), argnums=(0, 1))(x, w)
    want = jax.grad(lambda x, w: jnp.sum(jnp.sin(x @ w)), argnums=(0, 1))(x, w)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_norms_keep_their_moments():
    x = 3 + 7 * np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    y = np.asarray(layer_norm(x))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)
    np.testing.assert_allclose((np.asarray(rms_norm(x, jnp.ones(256))) ** 2).mean(-1), 1, atol=1e-4)


def test_rotation_depends_on_differences_only():
    """q(a) . k(b) is unchanged when both tokens move by the same step in t, h and w."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 6, 2, 32)).astype(np.float32)
    position = rng.integers(0, 20, (1, 6, 3))

    def scores(shift):
        turn = rotations(position + np.array(shift), 32)
        return np.einsum("bnhd,bmhd->bhnm", rotate(q, *turn), rotate(k, *turn))

    np.testing.assert_allclose(scores((0, 0, 0)), scores((300, 7, 41)), atol=1e-4)
    assert np.abs(scores((0, 0, 0)) - np.einsum("bnhd,bmhd->bhnm", q, k)).max() > 0.1


def test_rotation_split_is_that_of_wan():
    assert axis_dims(128) == (44, 42, 42)


def test_an_image_has_the_positions_of_dit():
    """Frame 0 has no temporal part; rows and columns are told apart; later frames differ."""
    grid = np.stack(np.meshgrid(range(2), range(3), range(4), indexing="ij"), -1).reshape(1, -1, 3)
    table = np.asarray(sincos_position(grid, 64))[0].reshape(2, 3, 4, 64)
    column = np.asarray(sinusoid(np.arange(4), 32))
    np.testing.assert_allclose(table[0, 1, :, :16], column[:, 16:], atol=1e-6)
    np.testing.assert_allclose(table[0, 1, :, 16:32], column[:, :16], atol=1e-6)
    flat = table.reshape(-1, 64)
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + np.eye(len(flat))
    assert distance.min() > 0.1
