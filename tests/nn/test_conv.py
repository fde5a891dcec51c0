"""Convolutions: all formulations agree, and a causal one sees only the past."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.dist.mesh import compiler_options
from vdit.errors import ConfigError
from vdit.nn.conv import CausalConv, Conv, conv, matrices, upsample_conv, upsample_nearest


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        ((3, 3, 3), (1, 1, 1), ((0, 0), (1, 1), (1, 1))),
        ((3, 3, 3), (1, 1, 1), ((2, 0), (1, 1), (1, 1))),
        ((3, 3, 3), (1, 1, 1), ((1, 1), (0, 1), (1, 1))),
        ((3, 1, 1), (1, 1, 1), ((2, 0), (0, 0), (0, 0))),
        ((3, 1, 1), (2, 1, 1), ((0, 0), (0, 0), (0, 0))),
        ((1, 3, 3), (1, 2, 2), ((0, 0), (0, 1), (0, 1))),
        ((3, 3, 3), (2, 2, 2), ((2, 1), (1, 1), (1, 1))),
        ((1, 1, 1), (1, 1, 1), ((0, 0), (0, 0), (0, 0))),
        ((1, 1, 1), (1, 2, 2), ((0, 0), (0, 0), (0, 0))),
    ],
)
def test_formulations_agree_in_values_and_gradients(kernel, strides, padding):
    x, k = normal(0, (2, 7, 6, 8, 5)), normal(1, (*kernel, 5, 4))

    def run(formulation):
        def loss(x, k):
            y = conv(x, k, strides=strides, padding=padding, formulation=formulation)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, k)

    (_, native), native_grads = run("native")
    (_, taps), taps_grads = run("taps")
    np.testing.assert_allclose(native, taps, atol=2e-5)
    for a, b in zip(native_grads, taps_grads):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 4, 7])
@pytest.mark.parametrize("history", [0, 2])
def test_shared_products_give_the_plain_sum(frames, history):
    """Zeros before the clip, or frames of it; in fours, pairs and alone."""
    x, k = normal(0, (1, frames + 2 - history, 16, 17, 16)), normal(1, (3, 3, 3, 16, 18)) / 20
    padding = ((history, 0), (1, 1), (1, 1))
    native, shared = (conv(x, k, padding=padding, formulation=name) for name in ("native", "winograd"))
    assert shared.shape == native.shape == (1, frames, 16, 17, 18)
    np.testing.assert_allclose(shared, native, atol=2e-5)


def test_gradients_where_products_would_be_shared():
    x, k = normal(0, (1, 7, 8, 12, 16)), normal(1, (3, 3, 3, 16, 16)) / 20  # wide and many enough for it

    def grad(formulation):
        padding = ((2, 0), (1, 1), (1, 1))
        run = lambda x, k: jnp.sum(jnp.sin(conv(x, k, padding=padding, formulation=formulation)))  # noqa: E731
        return jax.jit(jax.grad(run, argnums=(0, 1)))(x, k)

    for shared, native in zip(grad("winograd"), grad("native")):
        np.testing.assert_allclose(shared, native, atol=1e-4)


@pytest.mark.parametrize("outputs", [2, 4])
def test_matrices_are_those_of_a_convolution(outputs):
    a, g, b = matrices(outputs)
    x, kernel = np.random.default_rng(0).normal(size=(2, outputs + 2))
    expected = [kernel[:3] @ x[i : i + 3] for i in range(outputs)]
    np.testing.assert_allclose(a @ ((g @ kernel[:3]) * (b @ x)), expected, atol=1e-12)


def test_upsampling_convolution_is_that_of_repeated_places():
    x, k = normal(0, (2, 3, 4, 5, 6)), normal(1, (1, 3, 3, 6, 7)) / 6

    def run(formulation):
        loss = lambda x, k: jnp.sum(jnp.sin(upsample_conv(x, k, formulation)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, k)

    plain = conv(upsample_nearest(x), k, padding=((0, 0), (1, 1), (1, 1)), formulation="native")
    np.testing.assert_allclose(upsample_conv(x, k, "winograd"), plain, atol=2e-5)
    for folded, native in zip(jax.tree.leaves(run("winograd")), jax.tree.leaves(run("native"))):
        np.testing.assert_allclose(folded, native, rtol=1e-5, atol=1e-4)


def test_compiler_options_leave_the_numbers_alone():
    x, k = normal(0, (1, 4, 6, 6, 3)), normal(1, (3, 3, 3, 3, 4))
    grad = jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), argnums=(0, 1))
    plain = jax.jit(grad)(x, k)
    fast = jax.jit(grad, compiler_options=compiler_options())(x, k)
    for a, b in zip(plain, fast):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert compiler_options("tpu") is None
    assert compiler_options("gpu") is None


def test_causal_convolution_in_chunks_is_that_of_the_whole():
    module = CausalConv(4)
    x = normal(0, (2, 7, 5, 5, 3))
    params = module.init(jax.random.key(1), x)
    whole, _ = module.apply(params, x)
    parts, cache = [], None
    for start, stop in ((0, 1), (1, 2), (2, 6), (6, 7)):  # also shorter than the kernel
        y, cache = module.apply(params, x[:, start:stop], cache)
        assert cache.shape == (2, 2, 5, 5, 3)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


def test_causal_convolution_sees_three_frames_and_none_to_come():
    module = CausalConv(2)
    x = normal(0, (1, 6, 3, 3, 2))
    params = module.init(jax.random.key(1), x)
    jacobian = jax.jacrev(lambda x: jnp.sum(module.apply(params, x)[0], axis=(0, 2, 3, 4)))(x)
    seen = jnp.abs(jacobian).sum(axis=(1, 3, 4, 5)) > 0  # [output frame, input frame]
    expected = np.array([[i - 2 <= j <= i for j in range(6)] for i in range(6)])
    np.testing.assert_array_equal(seen, expected)


def test_frame_kernel_is_the_same_on_each_frame():
    module = Conv(4, (1, 3, 3), (1, 2, 2))
    x = normal(0, (1, 3, 8, 6, 2))
    params = module.init(jax.random.key(1), x)
    whole = module.apply(params, x)
    assert whole.shape == (1, 3, 4, 3, 4)
    np.testing.assert_allclose(module.apply(params, x[:, 1:2]), whole[:, 1:2], atol=1e-6)


def test_parameters_stay_float32_and_work_in_bfloat16():
    module = Conv(4, dtype=jnp.bfloat16)
    x = normal(0, (1, 3, 4, 4, 2))
    params = module.init(jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert module.apply(params, x).dtype == jnp.bfloat16


def test_upsample_repeats():
    x = jnp.arange(4.0).reshape(1, 1, 2, 2, 1)
    y = upsample_nearest(x)[0, 0, :, :, 0]
    np.testing.assert_array_equal(y, np.kron(np.arange(4.0).reshape(2, 2), np.ones((2, 2))))


def test_unknown_formulation_is_refused():
    with pytest.raises(ConfigError, match="im2col"):
        conv(normal(0, (1, 3, 4, 4, 2)), normal(1, (3, 3, 3, 2, 2)), formulation="im2col")
