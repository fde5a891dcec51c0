"""Arrays of several hosts, read whole on each of them."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdit.types import Array

PIECE = 256 * 2**20  # bytes of an array that are whole on every device at a time


def to_host(x: Array) -> np.ndarray:
    """The whole array on this host.

    x: of any shape. Where other hosts hold parts of it, every host must call this; then it goes over the devices'
    network in pieces, so that an array may be larger than a device.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    out = np.empty(x.shape, x.dtype)
    lead = min(2, x.ndim)  # clips and their frames
    each = max(1, x.dtype.itemsize * int(np.prod(x.shape[lead:])))
    length = x.shape[lead - 1]
    count = min(length, max(1, PIECE // each))
    whole = NamedSharding(x.sharding.mesh, P())
    for row in np.ndindex(x.shape[: lead - 1]):
        for start in range(0, length, count):
            start = min(start, length - count)  # the last piece overlaps: one size, one program
            piece = _piece(count, whole)(x, np.asarray([*row, start], np.int32))
            out[(*row, slice(start, start + count))] = np.asarray(piece)
    return out


@functools.lru_cache(maxsize=8)
def _piece(count: int, whole: NamedSharding):
    def cut(x, place):
        for i in range(place.shape[0] - 1):
            x = jax.lax.dynamic_index_in_dim(x, place[i], axis=0, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(x, place[-1], count, axis=0)

    return jax.jit(cut, out_shardings=whole)
