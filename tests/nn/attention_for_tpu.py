"""Compiles attention and its gradient for TPUs, on a machine without one; prints what it found as JSON.

Run in its own process: libtpu reads the environment when jax starts.
"""

import json
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding

from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.dist.rules import partition_spec
from vdit.nn.attention import attention

CASES = {
    "one chip": (MeshConfig(), 2048, 2048, 2, 64, "auto"),
    "cross": (MeshConfig(), 2000, 300, 2, 72, "auto"),
    "ulysses": (MeshConfig(sequence=2, data=1), 2048, 2048, 2, 128, "auto"),
    "ring": (MeshConfig(sequence=4, data=1), 4096, 4096, 1, 128, "ring"),
    "times": (MeshConfig(), 1024, 2048, 2, 64, "auto"),
}


def compile_case(devices, config, n, m, heads, head_dim, way, times=False):
    wanted = config.sequence
    mesh = make_mesh(config, devices=devices[:wanted])

    def place(names, shape, dtype):
        spec, _ = partition_spec(names, shape, dict(mesh.shape))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def tokens(n):
        values = place(("batch", "tokens", "heads", None), (1, n, heads, head_dim), jnp.bfloat16)
        return values, place(("batch", "tokens"), (1, n), jnp.int32)

    def run(q, k, v, q_ids, k_ids, weight):
        more = {"q_time": q_ids, "k_time": k_ids} if times else {}
        out, back = jax.vjp(lambda q, k, v: attention(q, k, v, q_ids, k_ids, sequence_parallel=way, **more), q, k, v)
        return out, *back(weight)

    (q, q_ids), (k, k_ids) = tokens(n), tokens(m)
    with jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(q, k, k, q_ids, k_ids, q).compile()
    text = compiled.as_text()
    return {
        "kernels": sorted(set(re.findall(r"splash_mha_(\w+?)_segmented", text))),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "scores": 4 * heads * n * m // wanted,
        "overlap": bool(re.search(r"collective-permute-start(?:(?!-done\().)*splash_mha_fwd.*?-done\(", text, re.S)),
    }


def main():
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    print(json.dumps({name: compile_case(devices, *case, name == "times") for name, case in CASES.items()}))


if __name__ == "__main__":
    main()
