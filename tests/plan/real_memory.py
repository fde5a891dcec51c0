"""Run by test_real_memory.py on eight simulated devices: a plan's memory beside what the step really holds.

Prints JSON: held (planned and counted bytes of each kind on each device), arguments (the compiler's and counted),
temporaries (planned for all devices, and the rise of this process's resident memory while the step first runs).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from vdit.config import load_config
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.experiment.experiment import Experiment
from vdit.experiment.objectives import DenoisingLoss
from vdit.plan.memory import memory
from vdit.plan.programs import abstract_rows, train_program
from vdit.train.state import plan_state
from vdit.train.step import make_train_step

ROOT = Path(__file__).resolve().parents[2]


def shrunk() -> Experiment:
    """pod_tiny with a few narrow layers and no text, on rows long enough for temporaries that can be seen."""
    full = load_config(ROOT / "experiments" / "pod_tiny.py")
    return dataclasses.replace(
        full,
        mesh=MeshConfig(data=2, fsdp=2, sequence=2),
        data=dataclasses.replace(full.data, row_tokens=1024, max_text_per_row=64, max_frames_per_row=16),
        backbone=dataclasses.replace(
            full.backbone, width=128, depth=4, heads=4, dtype="float32", remat="none", text="none", text_pool=False
        ),
        dit_train=dataclasses.replace(full.dit_train, batch_size=4),
    )


def resident(field: str) -> int:
    """"VmRSS" or "VmHWM", the most since `forget_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def on_each_device(tree) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for leaf in jax.tree.leaves(tree):
        data = jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for shard in data.addressable_shards:
            sizes[shard.device.id] = sizes.get(shard.device.id, 0) + shard.data.nbytes
    return sizes


def main() -> None:
    experiment = shrunk()
    mesh = make_mesh(experiment.mesh)
    program = train_program(experiment, mesh)
    with jax.set_mesh(mesh):
        compiled = program.traced.lower().compile()
    planned = memory(program, compiled, compiled.as_text(), None)

    plan = plan_state(experiment.network.init, experiment.dit_train, mesh=mesh)
    step = make_train_step(DenoisingLoss().make_loss(experiment.model), plan)
    state = plan.create(jax.random.key(0))
    shapes = abstract_rows(experiment)
    rng = np.random.default_rng(0)
    rows = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    rows = dataclasses.replace(
        rows, values=rng.normal(size=rows.values.shape).astype(np.float32), position=np.zeros_like(rows.position),
        frame_index=np.zeros_like(rows.frame_index),
    )  # fmt: skip
    batch = jax.device_put(rows, step.shardings(shapes))
    kinds = {"parameters": state.params, "EMA": state.ema, "optimizer": state.opt_state, "batch": batch}
    counted = {kind: sorted(set(on_each_device(tree).values())) for kind, tree in kinds.items()}
    everything = sorted(set(on_each_device((state, batch)).values()))

    before = resident("VmRSS")
    forget_peak()
    with jax.set_mesh(mesh):
        jax.block_until_ready(compiled(state, batch))  # the first run: XLA keeps what it has asked for, for the next
    rise = resident("VmHWM") - before
    stats = compiled.memory_analysis()
    print(json.dumps({
        "held": {kind: [program.arguments[kind], counted[kind]] for kind in kinds},
        "arguments": [stats.argument_size_in_bytes, everything],
        "total": [planned.total, sum(planned.kinds.values())],
        "temporaries": [stats.temp_size_in_bytes * mesh.size, rise],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
