"""Compiles vdit's programs for a Hopper GPU on a machine without one: do they compile, do they fit, what do they call?

    pip install 'jax[cuda13]'                      # the plugin and ptxas; no driver is needed
    python tools/bench/compile_gpu.py              # attention kernels and training steps, for an H200
    python tools/bench/compile_gpu.py --only 8192 --chip H100 --json gpu.json

Training steps fail with jax 0.10.2, which asks the executable for devices that are not there.

Nothing runs: speed and the results are for tools/bench/accelerator.py to measure. The compiler tunes nothing without
the device (which tiles, which of cuBLAS's products), so temporaries are near what the device gets, not equal to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What XLA asks of the device; from NVIDIA's data sheets and the CUDA programming guide's table of capability 9.0.
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  clock_rate_ghz: 1.98 l2_cache_size: 52428800 memory_bandwidth: {bandwidth} device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a" device_address_bits: 64
  name: "NVIDIA {name}" driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {name}"
"""
CHIPS = {"H100": (80 * 10**9, 3_350_000_000_000), "H200": (141 * 10**9, 4_800_000_000_000)}
ATTENTION = (  # tokens, keys, heads, width of a head, type, frames do not read later ones
    (8192, 8192, 12, 128, "bfloat16", False), (8192, 512, 12, 128, "bfloat16", False),
    (8192, 8192, 16, 72, "bfloat16", False), (8192, 8192, 6, 64, "bfloat16", True),
    (2048, 2048, 4, 128, "float32", False), (75_600, 75_600, 12, 128, "bfloat16", False),
)  # fmt: skip


def mesh_of(name: str):
    """A mesh of one device that is not there."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    tools = importlib.util.find_spec("nvidia.cu13")
    if tools is None:
        sys.exit("compile_gpu: the CUDA compiler is missing: pip install 'jax[cuda13]'")
    (folder, *_) = tools.submodule_search_locations
    os.environ["PATH"] = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
    flags = f"--xla_gpu_cuda_data_dir={folder} --xla_gpu_autotune_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    import jax
    from jax.experimental import topologies

    from vdit.dist.mesh import make_mesh

    memory, bandwidth = CHIPS[name]
    config = TARGET.format(name=name, memory=memory, bandwidth=bandwidth)
    topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x1")
    jax.config.update("jax_enable_compilation_cache", False)
    return make_mesh(devices=topology.devices)


def attention_program(mesh, n: int, m: int, heads: int, head_dim: int, dtype: str, times: bool):
    """Forward and gradients of the Triton kernel, lowered."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from vdit.nn.attention import attention

    def struct(shape, kind):
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, PartitionSpec()))

    def run(q, k, v, q_ids, k_ids, weight):
        more = {"q_time": q_ids, "k_time": k_ids} if times else {}
        call = lambda q, k, v: attention(q, k, v, q_ids, k_ids, implementation="triton", **more)  # noqa: E731
        out, back = jax.vjp(call, q, k, v)
        return out, *back(weight)

    q, k = (struct((1, tokens, heads, head_dim), dtype) for tokens in (n, m))
    q_ids, k_ids = (struct((1, tokens), "int32") for tokens in (n, m))
    return jax.jit(run).lower(q, k, k, q_ids, k_ids, q)


def programs(mesh) -> dict:
    """Name -> function that lowers a program."""
    from accel import entry
    from accel.training import CASES

    found = {}
    for case in ATTENTION:
        n, m, heads, head_dim, dtype, times = case
        name = f"attention {n} x {m}, {heads} x {head_dim}, {dtype}{', times' if times else ''}"
        found[name] = lambda case=case: attention_program(mesh, *case)
    for size, row, clips, remat in CASES:
        config = entry.dit(size, dry=False, remat=remat)
        found[f"train {size} {row // 1024}k {remat}"] = lambda config=config, row=row, clips=clips: (
            entry.training_program(config, row=row, clips=clips, mesh=mesh).traced.lower()
        )
    return found


def measure(mesh, lower) -> dict:
    """Compiles; GiB, and what the program calls by name."""
    import jax

    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = lower().compile()
    text, held = compiled.as_text(), compiled.memory_analysis()
    calls: dict[str, int] = {}
    for target in re.findall(r'custom_call_target="([^"]+)"', text):
        calls[target] = calls.get(target, 0) + 1
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "arguments_gib": held.argument_size_in_bytes / 2**30,
        "donated_gib": held.alias_size_in_bytes / 2**30,
        "temporaries_gib": held.temp_size_in_bytes / 2**30,
        "calls": calls,
        "triton_products": len(re.findall(r'"kind":"__triton', text)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=CHIPS, default="H200")
    parser.add_argument("--only", default="", metavar="TEXT", help="programs whose name holds this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    mesh = mesh_of(options.chip)
    figures, failed = {}, 0
    print(f"{'program':48} {'compiled':>9} {'arguments':>10} {'donated':>9} {'temporaries':>12}  calls")
    for name, lower in programs(mesh).items():
        if options.only not in name:
            continue
        try:
            one = measure(mesh, lower)
        except Exception as error:  # a program that does not compile is what is looked for
            failed += 1
            one = {"error": f"{type(error).__name__}: {error}"}
            print(f"{name:48} FAILED: {one['error'][:300]}", flush=True)
        else:
            calls = ", ".join(f"{count} {target}" for target, count in one["calls"].items())
            print(f"{name:48} {one['seconds']:7.1f} s {one['arguments_gib']:6.2f} GiB {one['donated_gib']:5.2f} GiB "
                  f"{one['temporaries_gib']:8.2f} GiB  {calls}", flush=True)  # fmt: skip
        figures[name] = one
        if options.json is not None:
            options.json.write_text(json.dumps({"chip": options.chip, "programs": figures}, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
