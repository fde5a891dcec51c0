"""FLOPs counted from the program are those of the formula."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from vdit.nn.layers import matmul
from vdit.train.flops import count_flops

X, W = jnp.ones((3, 5, 8)), jnp.ones((8, 16))
PRODUCT = 2 * 3 * 5 * 8 * 16


def scanned(x, w):
    return jax.lax.scan(lambda c, _: (c + (x @ w).sum(), None), 0.0, length=7)[0]


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x, w: x @ w, PRODUCT),
        (jax.jit(lambda x, w: jnp.tanh(x @ w)), PRODUCT),
        (matmul, PRODUCT),
        (jax.checkpoint(lambda x, w: x @ w), PRODUCT),
        (scanned, 7 * PRODUCT),
        (lambda x, w: jax.lax.cond(x[0, 0, 0] > 0, lambda: x @ w, lambda: jnp.zeros((3, 5, 16))), PRODUCT),
        (lambda x, w: jnp.einsum("bnd,bmd->bnm", x, x), 2 * 3 * 5 * 5 * 8),
        (lambda x, w: x + 1, 0),
    ],
)
def test_products_are_counted_through_every_kind_of_call(function, flops):
    assert count_flops(function, X, W) == flops


def test_convolutions_are_counted_with_their_groups():
    x, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 2, 8))
    dims = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=2
    )
    assert count_flops(conv, x, kernel) == 2 * (2 * 6 * 6 * 8) * (3 * 3 * 2)


def test_training_is_three_times_the_forward_pass():
    assert count_flops(jax.value_and_grad(lambda xw: matmul(*xw).sum()), (X, W)) == 3 * PRODUCT


def test_what_remat_computes_again_counts_for_the_hardware():
    """Two products forward, four backward, and the first again: what follows the last tanh is not needed twice."""
    w = jnp.ones((8, 8))
    layer = lambda x, w: (jnp.tanh(x @ w) @ w).sum()  # noqa: E731
    one = 2 * 3 * 5 * 8 * 8
    assert count_flops(jax.grad(layer, argnums=(0, 1)), X, w) == 6 * one
    assert count_flops(jax.grad(jax.checkpoint(layer), argnums=(0, 1)), X, w) == 7 * one


def test_a_part_on_each_device_counts_for_all_of_them():
    mesh = AbstractMesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    product = lambda x, w: x @ w  # noqa: E731
    rows = jnp.ones((16, 8))
    with jax.sharding.use_abstract_mesh(mesh):
        shared = jax.shard_map(product, in_specs=(P(("a", "b")), P()), out_specs=P(("a", "b")))
        assert count_flops(shared, rows, W) == 2 * 16 * 8 * 16
        twice = jax.shard_map(product, in_specs=(P("a"), P()), out_specs=P("a"))  # each pair does the same
        assert count_flops(twice, rows, W) == 4 * 2 * 16 * 8 * 16
