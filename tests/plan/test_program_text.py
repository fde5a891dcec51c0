"""What is read from a compiled program's text, against programs whose bytes are known."""

import jax
import jax.numpy as jnp
import pytest

from vdit.plan.memory import hbm_bytes, saved_by_loops, stored_bytes

DEPTH, N, D = 5, 64, 32


def layers(weights, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


ARGUMENTS = jax.ShapeDtypeStruct((DEPTH, D, D), jnp.float32), jax.ShapeDtypeStruct((N, D), jnp.float32)


def test_a_forward_pass_alone_keeps_nothing():
    kept = saved_by_loops(text_of(layers, *ARGUMENTS))
    assert (kept.saved, kept.gradients) == (0, 0)


def test_a_loop_over_layers_keeps_one_residual_a_layer_and_stacks_gradients():
    """Of tanh(x w): x, tanh's value and its slope at most, and the weights' gradient; the weights are only read."""
    kept = saved_by_loops(text_of(jax.grad(layers, argnums=(0, 1)), *ARGUMENTS))
    stream = DEPTH * N * D * 4
    assert stream <= kept.saved <= 3 * stream
    assert kept.gradients == DEPTH * D * D * 4


def test_remat_keeps_the_residual_stream_alone():
    def rematted(weights, x):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(jnp.tanh(x @ w) @ w), None), prevent_cse=False)
        return jax.lax.scan(body, x, weights)[0].sum()

    kept = saved_by_loops(text_of(jax.grad(rematted), *ARGUMENTS))
    assert kept.saved == DEPTH * N * D * 4


def test_a_product_moves_its_operands_and_its_result():
    text = text_of(lambda w, x: x @ w[0], *ARGUMENTS)
    # the slice of the stack is read and written, then the product reads both sides and writes its result
    assert hbm_bytes(text) == 4 * (2 * D * D + D * D + 2 * N * D)


def test_a_loop_is_counted_as_often_as_it_runs():
    times = lambda count: hbm_bytes(  # noqa: E731
        text_of(lambda x: jax.lax.fori_loop(0, count, lambda _, x: jnp.sin(x[::-1] * x), x), ARGUMENTS[1])
    )
    assert times(40) - times(20) == pytest.approx(times(60) - times(40), rel=1e-6)
    assert times(40) - times(20) >= 20 * 2 * N * D * 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[3,72]{1,0:T(8,128)}", 8 * 128 * 4),
        ("bf16[16,72]{1,0:T(8,128)(2,1)}", 16 * 128 * 2),
        ("bf16[72,16]{0,1:T(8,128)(2,1)}", 16 * 128 * 2),
        ("f32[3,72]{1,0}", 3 * 72 * 4),
        ("f32[]{:T(128)}", 4),
        ("s32[1000]{0:T(1024)}", 4096),
    ],
)
def test_arrays_are_stored_in_tiles(text, size):
    assert stored_bytes(text) == size
