"""The attention function: on which devices, by which kernel, and its derivative."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vdit.dist.mesh import platform
from vdit.dist.rules import partition_spec
from vdit.errors import ShapeError
from vdit.nn.attention import sequence
from vdit.nn.attention.kernel import choose_kernel, delta_of, load_kernel, numbered
from vdit.nn.attention.sequence import Split, make_split
from vdit.types import Array

SAVED = "attention"  # jax.checkpoint_policies.save_only_these_names(SAVED): the kernel does not run again


def attention(
    q: Array,
    k: Array,
    v: Array,
    q_ids: Array,
    k_ids: Array,
    *,
    axes: tuple[str | None, str | None] = ("tokens", "tokens"),
    implementation: str | None = None,
    sequence_parallel: str = "auto",
    q_time: Array | None = None,
    k_time: Array | None = None,
) -> Array:
    """Scaled dot-product attention within clips. Scores and softmax are float32.

    A token reads the tokens of its own clip; padding, clip 0, reads padding.

    Args:
        q: queries [b n h d].
        k: keys [b m h d].
        v: values [b m h d].
        q_ids: int [b n], the clip of each query.
        k_ids: int [b m], the clip of each key.
        axes: logical names of n and m in vdit/dist/rules.py. Under a mesh (`jax.set_mesh`) each device takes its shard
            of rows, heads and queries. If keys are sharded as queries are, devices exchange heads for tokens or pass
            keys round a ring (vdit/nn/attention/sequence.py); whole keys stay where they are. A dimension that the mesh
            does not divide stays whole.
        implementation: "dense", "chunked", "splash" or "triton" (the last two: interpreted, and slow, on a CPU); None
            lets vdit/nn/attention/kernel.py choose.
        sequence_parallel: "auto" exchanges heads as far as they go, and uses a ring for the rest; "ulysses", "ring".
        q_time: int [b n], from 0 to 65535; given, a token reads what of its clip is not later than itself (clips up to
            32767). What no query of a block reads is left out, so a long clip costs about half.
        k_time: int [b m], given with q_time.

    Returns:
        [b n h d] in q's type. A query whose clip has no key gets zeros, and passes on no gradient.
    """
    _check(q, k, v, q_ids, k_ids, q_time, k_time)
    q_from = None
    if q_time is not None:
        zero = jnp.zeros_like(q_time)
        q_from, q_ids, k_ids = numbered(q_ids, zero), numbered(q_ids, q_time), numbered(k_ids, k_time)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # the faster layout for every kernel
    plan = _plan(q.shape, k.shape, axes, implementation, sequence_parallel)
    return jnp.swapaxes(_attend(plan, q, k, v, q_ids, k_ids, q_from), 1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """kernel: its name. q, k: how queries and keys [b h n d] lie on the mesh's axes, which are `manual`.

    split: how keys and queries meet that lie on different devices. sum: the axes on which queries are shared out and
    keys are not, so that the gradients of keys are summed there.
    """

    kernel: str
    q: P = P(None, None, None, None)
    k: P = P(None, None, None, None)
    manual: frozenset[str] = frozenset()
    split: Split | None = None
    sum: tuple[str, ...] = ()


def _plan(q_shape, k_shape, axes, implementation, way) -> _Plan:
    (_, h, n, d), m = q_shape, k_shape[2]
    kernel = functools.partial(choose_kernel, implementation, platform(), head_dim=d)
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    sizes = {name: size for name, size, kind in kinds if kind == AxisType.Auto}
    if all(size == 1 for size in sizes.values()):
        return _Plan(kernel=kernel(n=n, m=m))
    q, _ = partition_spec(("batch", "heads", axes[0], None), q_shape, sizes)
    k, _ = partition_spec(("batch", "heads", axes[1], None), k_shape, sizes)
    over = _names(q[2])
    if k[2] != q[2]:
        k = P(k[0], k[1], None, None)
    num_shards, head_shards = (math.prod(sizes[name] for name in names) for names in (over, _names(q[1])))
    common = {"q": q, "k": k, "manual": frozenset(sizes)}
    if not over or not k[2]:
        return _Plan(kernel=kernel(n=n // num_shards, m=m), sum=over, **common)
    split = make_split(way, over, num_shards, h // head_shards)
    return _Plan(kernel=kernel(n=n // split.ring, m=m // split.ring), split=split, **common)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of a dimension in a PartitionSpec, which writes a single one without its tuple."""
    return (entry,) if isinstance(entry, str) else entry or ()


def _check(q: Array, *others: Array | None) -> None:
    (b, n, h, d), m = q.shape, others[0].shape[1]
    if (others[4] is None) != (others[5] is None):
        raise ShapeError("attention: q_time and k_time go together: give both, or neither")
    names = ("k", "v", "q_ids", "k_ids", "q_time", "k_time")
    shapes = ((b, m, h, d), (b, m, h, d), (b, n), (b, m), (b, n), (b, m))
    for name, shape, x in zip(names, shapes, others):
        if x is not None and x.shape != shape:
            raise ShapeError(f"attention: {name} {x.shape} does not go with q {q.shape}: make it {shape}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    plan: _Plan, q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array, q_from: Array | None
) -> Array:
    """Heads first: q [b h n d], k, v [b h m d] -> [b h n d].

    The derivative is written around `shard_map`, not through it: so what is saved and what is sent stand here, and
    nothing else is.
    """
    return _forward(plan, q, k, v, q_ids, k_ids, q_from)[0]


def _forward(plan: _Plan, *inputs: Array):
    run = functools.partial(_local_forward, load_kernel(plan.kernel), plan.split)
    specs = plan.q, plan.k, plan.k, _ids(plan.q), _ids(plan.k), _ids(plan.q)
    # What is saved after an exchange has more tokens of fewer heads; as it is read with these specs again, it may be
    # called an array of such a shape.
    saved_specs = *specs, P(*plan.q[:3])
    out, (*saved, lse) = _on_devices(plan, run, specs, (plan.q, saved_specs))(*inputs)
    out, lse = (checkpoint_name(x, SAVED) for x in (out, lse))
    return out, (*saved, lse, out)


def _backward(plan: _Plan, residuals, do: Array):
    *saved, out = residuals
    run = functools.partial(_local_backward, load_kernel(plan.kernel), plan.split, plan.sum)
    clips = _ids(plan.q), _ids(plan.k), _ids(plan.q)
    specs = (plan.q, plan.k, plan.k, *clips, P(*plan.q[:3])), plan.q, plan.q
    dq, dk, dv = _on_devices(plan, run, specs, (plan.q, plan.k, plan.k))(tuple(saved), out, do)
    return dq, dk, dv, None, None, None


_attend.defvjp(_forward, _backward)


def _local_forward(kernel, split, q, k, v, q_ids, k_ids, q_from):
    if split is not None:
        return sequence.forward(kernel, split, q, k, v, q_ids, k_ids, q_from)
    out, lse = kernel.forward(q, k, v, q_ids, k_ids, q_from)
    return out.astype(q.dtype), (q, k, v, q_ids, k_ids, q_from, lse)


def _local_backward(kernel, split, sum_over, saved, out, do):
    delta = delta_of(out, do)
    if split is not None:
        return sequence.backward(kernel, split, saved, delta, do)
    q, k, v, q_ids, k_ids, q_from, lse = saved
    dq, dk, dv = kernel.backward(q, k, v, q_ids, k_ids, lse, delta, do, q_from)
    if sum_over:
        dk, dv = jax.lax.psum((dk, dv), sum_over)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _on_devices(plan: _Plan, function, in_specs, out_specs):
    if not plan.manual:
        return function
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=plan.manual, check_vma=False
    )


def _ids(spec: P) -> P:
    """Of clip ids [b n], beside queries or keys [b h n d]."""
    return P(spec[0], spec[2])
