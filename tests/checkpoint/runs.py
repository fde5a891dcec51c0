"""A small run of three steps, of which two are kept; each step holds its own numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from vdit.checkpoint import Checkpointer


class Source:
    """An iterator whose place is a dict or bytes."""

    def __init__(self, place=None):
        self.place = place

    def get_state(self):
        return self.place

    def set_state(self, place):
        self.place = place


def trees(scale=1.0):
    params = {"layer": {"kernel": scale * jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4, jnp.bfloat16)}}
    moments = (jnp.zeros((), jnp.int32), {"mu": jax.tree.map(lambda leaf: leaf * 2, params)})
    progress = {"step": jnp.asarray(3), "key": jax.random.key(7)}
    average = jax.tree.map(lambda leaf: -leaf, params)
    return {"params": params, "optimizer": moments, "progress": progress, "ema": average}


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        x, y = (jax.random.key_data(k) if jnp.issubdtype(k.dtype, jax.dtypes.prng_key) else k for k in (x, y))
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def make_run(directory):
    with Checkpointer(directory, keep=2, meta={"config": {"dit": {"depth": 4}}}) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, trees(step), iterator_state={"next_index": 10 * step})
    return directory
