"""Loads the made-up weights of argv[1] onto 8 simulated devices and prints what lies where as JSON.

Run in its own process: the number of devices is fixed when jax starts.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tests.pretrained import toy_weights
from tests.pretrained.load import fill
from vdit.checkpoint import Checkpointer, load_params
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.pretrained.open import open_tensors
from vdit.pretrained.weights import check, load

# Axes of the mesh for each parameter: the stack's own axis too, chunks across devices, both ends of a matrix
SPECS = {
    "embed/table": ("fsdp", "tensor"),
    "blocks/q/kernel": (None, "fsdp", "tensor"),
    "blocks/q/bias": (None, "tensor"),
    "blocks/kv/kernel": (None, None, ("fsdp", "tensor")),
    "head/kernel": (("data", "fsdp"),),
    "gate/kernel": ("fsdp",),
}


def main() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))

    def place(path, struct):
        spec = PartitionSpec(*SPECS.get("/".join(step.key for step in path), ()))
        return jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=NamedSharding(mesh, spec))

    abstract = jax.tree_util.tree_map_with_path(place, toy_weights.abstract())
    tensors = open_tensors(sys.argv[1])
    rules = toy_weights.rules()
    check(rules, tensors, abstract)
    compiled.clear()
    params = load(rules, tensors, abstract)
    compilations = sum(name.endswith("backend_compile_duration") for name in compiled)
    wanted = fill(toy_weights.rules(), toy_weights.state())
    same = lambda tree: jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), tree, wanted))  # noqa: E731
    placed = jax.tree.map(lambda array, struct: array.sharding == struct.sharding, params, abstract)
    with Checkpointer(sys.argv[2]) as checkpointer:
        checkpointer.save(0, {"params": params})
    results = {
        "devices": jax.device_count(),
        "same": same(params),
        "placed": jax.tree.all(placed),
        "shard": params["blocks"]["q"]["kernel"].addressable_shards[0].data.shape,
        "saved": same(load_params(sys.argv[2])),
        "compiled": compilations,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
