"""Attention that does not read later frames: the plain softmax's values and gradients, by every kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.test_attention import inputs, small_blocks, value_and_gradients
from vdit.errors import ShapeError
from vdit.nn.attention import attention, splash, triton
from vdit.nn.attention.kernel import KERNELS, load_kernel, merge, numbered

__all__ = ["small_blocks"]  # pytest applies it to these tests too


def timed(order="packed"):
    """As `inputs`, with times: queries in frames of 7, keys in frames of 5, so that clips end at other times."""
    q, k, v, q_ids, k_ids, weight = inputs()
    first = lambda clip: (clip[:, :, None] == clip[:, None]).argmax(2)  # noqa: E731
    q_time, k_time = ((np.arange(x.shape[1]) - first(x)) // size for x, size in ((q_ids, 7), (k_ids, 5)))
    marks = [q_ids, q_time, k_ids, k_time]
    if order == "mixed":
        rng = np.random.default_rng(1)
        for i, n in ((0, q_ids.shape[1]), (2, k_ids.shape[1])):
            places = rng.permuted(np.tile(np.arange(n), (2, 1)), axis=1)
            marks[i : i + 2] = (np.take_along_axis(x, places, 1) for x in marks[i : i + 2])
    q_ids, q_time, k_ids, k_time = (x.astype(np.int32) for x in marks)
    return q, k, v, q_ids, k_ids, q_time, k_time, weight


def plain(q, k, v, q_ids, k_ids, q_time, k_time):
    read = (q_ids[:, :, None] == k_ids[:, None]) & (q_time[:, :, None] >= k_time[:, None])
    scores = jnp.where(read[:, None], jnp.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1]), -1e9)
    weights = jnp.where(read.any(-1)[:, None, :, None], jax.nn.softmax(scores, -1), 0)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


@functools.cache
def run(kernel):
    """Output and gradients, compiled once for all tests of a kernel; queries may have times of their own."""

    def both(q, k, v, q_ids, k_ids, q_time, k_time, weight):
        function = plain if kernel is None else functools.partial(with_times, implementation=kernel)
        within = lambda q, k, v, q_ids, k_ids: function(q, k, v, q_ids, k_ids, q_time, k_time)  # noqa: E731
        return value_and_gradients(within, q, k, v, q_ids, k_ids, weight)

    return jax.jit(both)


def with_times(q, k, v, q_ids, k_ids, q_time, k_time, **options):
    return attention(q, k, v, q_ids, k_ids, q_time=q_time, k_time=k_time, **options)


@pytest.mark.parametrize("order", ["packed", "mixed"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_plain_softmax_over_what_is_not_later(kernel, order):
    given = timed(order)
    for got, want in zip(run(kernel)(*given), run(None)(*given)):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_frame_never_reads_a_later_one(kernel):
    """Gradients of what queries at one time read are exactly 0 for later keys, and not for those of their own time."""
    q, k, v, q_ids, k_ids, q_time, k_time, weight = timed("mixed")
    for time in (0, 3, 12):
        mine = (q_time == time)[..., None, None]
        _, dq, dk, dv = run(kernel)(q, k, v, q_ids, k_ids, q_time, k_time, np.where(mine, weight, 0))
        for gradient in (dk, dv):
            assert not np.any(np.asarray(gradient)[k_time > time])
            assert np.any(np.asarray(gradient)[k_time == time])
        assert not np.any(np.asarray(dq)[q_time != time])


@pytest.mark.parametrize("kernel", KERNELS)
def test_later_frames_do_not_change_a_bit(kernel):
    """Also where the later keys are of the same clip, and of the same block."""
    q, k, v, q_ids, k_ids, q_time, k_time, weight = timed("mixed")
    later = (k_time > 6)[..., None, None]
    first, second = (
        np.asarray(run(kernel)(q, x, y, q_ids, k_ids, q_time, k_time, weight)[0])
        for x, y in ((k, v), (k - later, v * 10.0**later))
    )
    np.testing.assert_array_equal(first[q_time <= 6], second[q_time <= 6])
    assert np.any(first[q_time > 6] != second[q_time > 6])


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_time_for_all_is_no_time_at_all(kernel):
    q, k, v, q_ids, k_ids, q_time, k_time, _ = timed()
    got = jax.jit(functools.partial(with_times, implementation=kernel))(
        q, k, v, q_ids, k_ids, 0 * q_time + 5, 0 * k_time + 5
    )
    want = attention(q, k, v, q_ids, k_ids, implementation="dense")
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_parts_of_the_keys_add_up(kernel):
    """What a ring does, where parts hold other times, and nothing at all for some queries."""
    q, k, v, q_ids, k_ids, q_time, k_time, weight = timed("mixed")
    q, k, v, weight = (np.swapaxes(x, 1, 2) for x in (q, k, v, weight))
    low, high, keys = numbered(q_ids, 0 * q_time), numbered(q_ids, q_time), numbered(k_ids, k_time)
    forward, backward = jax.jit(load_kernel(kernel).forward), jax.jit(load_kernel(kernel).backward)
    parts = [(k[:, :, s], v[:, :, s], high, keys[:, s]) for s in (slice(75), slice(75, None))]
    out, lse = merge(*forward(q, *parts[0], low), *forward(q, *parts[1], low))
    want, want_lse = load_kernel("dense").forward(q, k, v, high, keys, low)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(lse, want_lse, atol=1e-5)

    delta = jnp.sum(want * weight, -1)
    first, second = (backward(q, *part, want_lse, delta, weight, low) for part in parts)
    dq, dk, dv = load_kernel("dense").backward(q, k, v, high, keys, want_lse, delta, weight, low)
    np.testing.assert_allclose(first[0] + second[0], dq, atol=1e-5)
    for i, whole in ((1, dk), (2, dv)):
        np.testing.assert_allclose(np.concatenate([first[i], second[i]], 2), whole, atol=1e-5)


def test_blocks_of_later_frames_are_not_visited():
    """A clip of 8 frames of one block each: a little more than half of the pairs of blocks is left."""
    size, frames = splash.LANES, 8
    times = jnp.repeat(jnp.arange(frames, dtype=jnp.int32), size)[None]
    clips = jnp.ones_like(times)
    low, high = numbered(clips, 0 * times), numbered(clips, times)
    marks = jax.tree.map(lambda x: x[0], splash._marks(high, high, low))
    for next_query in (False, True):
        table = splash._blocks_to_visit(marks, size, size, next_query=next_query).block_mask
        np.testing.assert_array_equal(table[0], np.tri(frames, dtype=np.int8))
    first, end = triton._blocks_to_visit((high, low), (high,), size, size)
    np.testing.assert_array_equal(first[0], 0)
    np.testing.assert_array_equal(end[0], np.arange(frames) + 1)
    first, end = triton._blocks_to_visit((high,), (high, low), size, size)  # of queries, for each block of keys
    np.testing.assert_array_equal(first[0], np.arange(frames))
    np.testing.assert_array_equal(end[0], frames)


def test_times_of_queries_alone_are_an_error():
    q, k, v, q_ids, k_ids, q_time, *_ = timed()
    with pytest.raises(ShapeError, match="go together"):
        attention(q, k, v, q_ids, k_ids, q_time=q_time)
    with pytest.raises(ShapeError, match=r"k_time \(2, 200\) does not go with"):
        with_times(q, k, v, q_ids, k_ids, q_time, q_time)
