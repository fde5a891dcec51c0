"""Compiles small programs whose collectives are known by hand, for 8 devices; prints what is read of them as JSON.

`python known_collectives.py cpu` or `tpu`: for simulated devices of this machine, or for a TPU that is not there.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdit.dist.collectives import collectives


def devices():
    if sys.argv[1] == "cpu":
        return jax.devices()
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices


MESH = Mesh(np.array(devices()).reshape(2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def mapped(function, before, after):
    return jax.shard_map(function, mesh=MESH, in_specs=before, out_specs=after, check_vma=False)


def loops(x):
    """3 times: 5 sums over y, and a shift along x."""

    def outer(x, _):
        x = jax.lax.fori_loop(0, 5, lambda i, x: jax.lax.psum(x, "y") * 0.5, x)
        return jax.lax.ppermute(x, "x", [(0, 1), (1, 0)]), None

    return jax.lax.scan(outer, x, None, length=3)[0]


def layers(x, weights):
    """Six layers with weights over x (fsdp) and y (tensor)."""

    def layer(x, w):
        h = jax.lax.with_sharding_constraint(jnp.tanh(x @ w), NamedSharding(MESH, P("x", "y")))
        return jax.lax.with_sharding_constraint(h @ w.T, NamedSharding(MESH, P("x", None))), None

    return (jax.lax.scan(layer, x, weights)[0] ** 2).sum()


ROWS, RING = P("x", "y"), [(0, 1), (1, 2), (2, 3), (3, 0)]
PROGRAMS = {
    "gather": (mapped(lambda x: jax.lax.all_gather(x, "y", tiled=True), ROWS, P("x")), jnp.bfloat16, ROWS),
    "sum x": (mapped(lambda x: jax.lax.psum(x, "x"), ROWS, P(None, "y")), jnp.float32, ROWS),
    "sum xy": (mapped(lambda x: jax.lax.psum(x, ("x", "y")), ROWS, P()), jnp.float32, ROWS),
    "scatter": (mapped(lambda x: jax.lax.psum_scatter(x, "y", tiled=True), P(), P("y")), jnp.float32, P()),
    "exchange": (mapped(lambda x: jax.lax.all_to_all(x, "y", 0, 1, tiled=True), ROWS, ROWS), jnp.float32, ROWS),
    "shift": (mapped(lambda x: jax.lax.ppermute(x, "y", RING), ROWS, ROWS), jnp.float32, ROWS),
    "loops": (mapped(loops, ROWS, ROWS), jnp.float32, ROWS),
}  # fmt: skip


def struct(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, spec))


def main():
    found = {}
    whole = (256, 512)
    texts = {
        name: jax.jit(program).lower(struct(whole, dtype, spec)) for name, (program, dtype, spec) in PROGRAMS.items()
    }
    x, w = struct((1024, 512), jnp.float32, P("x")), struct((6, 512, 2048), jnp.float32, P(None, "x", "y"))
    texts["layers"] = jax.jit(jax.grad(layers, (0, 1)), out_shardings=(x.sharding, w.sharding)).lower(x, w)
    for name, lowered in texts.items():
        lines = collectives(lowered.compile().as_text(), MESH)
        found[name] = [[line.kind, list(line.axes), line.count, line.bytes, line.payload] for line in lines]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
