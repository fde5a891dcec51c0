"""Trains the toy on 8 simulated devices in several layouts and prints what it found as JSON.

Run in its own process: the number of devices is fixed when jax starts.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from tests import tiny
from vdit.checkpoint import load_params, load_trees
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.dist.rules import constrain
from vdit.train.loop import PrefetchToDevice
from vdit.train.state import TrainState, plan_state
from vdit.train.step import make_train_step

LAYOUTS = {
    "fsdp": MeshConfig(fsdp=8),
    "mixed": MeshConfig(data=2, fsdp=2, tensor=2),
    "sequence": MeshConfig(fsdp=2, sequence=4),
}
TOKENS = 4


def batches(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = rng.standard_normal((8, TOKENS, tiny.WIDTH)).astype(np.float32)
        mask = (rng.random((8, TOKENS)) < 0.7).astype(np.float32)
        yield {"x": x, "y": np.roll(x, 1, axis=-1) ** 2, "mask": mask}


def run(mesh, *, accumulation=1):
    """Three steps on a mesh: losses, parameters, and the shardings that XLA compiled."""
    seen = {}

    def loss_fn(params, batch, key, step):
        batch = dict(batch)
        batch["x"] = constrain(batch["x"], ("batch", "tokens", "embed"))
        jax.debug.inspect_array_sharding(batch["x"], callback=lambda s: seen.update(x=s))
        return tiny.quiet_loss_fn(params, batch, key, step)

    plan = plan_state(tiny.init_params, tiny.train_config(accumulation=accumulation), mesh=mesh)
    step = make_train_step(loss_fn, plan)
    state = plan.create(jax.random.key(0))
    feed = PrefetchToDevice(batches(3), step, remaining=3)
    on_device = [feed.take()[0] for _ in range(3)]
    with jax.set_mesh(mesh):
        compiled = step.jitted.lower(state, on_device[0]).compile()
    losses = []
    for batch in on_device:
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss"]))
    out_state, _ = compiled.output_shardings
    shapes = jax.tree.map(lambda leaf, place: place.shard_shape(leaf.shape), plan.abstract, out_state)
    held = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, state)
    shape = (8 // accumulation, TOKENS, tiny.WIDTH)
    return {
        "losses": losses,
        "up": np.asarray(state.params["up"]["kernel"]).tolist(),
        "compiled": local_shapes(shapes),
        "held": local_shapes(held),
        "activation": list(seen["x"].shard_shape(shape)) if "x" in seen else None,
        "report": list(plan.report),
    }


def local_shapes(shapes):
    """Parameter copy -> the part of it that one device holds."""
    adam = shapes.opt_state[1]
    trees = {"params": shapes.params, "ema": shapes.ema, "mu": adam.mu, "nu": adam.nu}
    return {
        f"{name}/{layer}/{leaf}": list(tree[layer][leaf])
        for name, tree in trees.items()
        for layer in ("up", "down")
        for leaf in ("kernel", "bias")
    }


def restored(directory):
    """A checkpoint of one device, restored onto 8: its parameters, and where they lie."""
    plan = plan_state(tiny.init_params, tiny.train_config(), mesh=make_mesh(MeshConfig(fsdp=8)))
    state = TrainState.from_trees(load_trees(directory, plan.abstract.trees()))
    ema = load_params(directory, abstract=plan.abstract.ema)
    return {
        "held": local_shapes(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, state)),
        "up": np.asarray(state.params["up"]["kernel"]).tolist(),
        "ema": np.asarray(ema["up"]["kernel"]).tolist(),
        "key": np.asarray(jax.random.key_data(state.key)).tolist(),
    }


def main(directory):
    results = {name: run(make_mesh(layout)) for name, layout in LAYOUTS.items()}
    results["one"] = run(make_mesh(MeshConfig(), devices=jax.devices()[:1]))
    results["pieces"] = run(make_mesh(MeshConfig(data=2, fsdp=2), devices=jax.devices()[:4]), accumulation=2)
    three = make_mesh(MeshConfig(tensor=3), devices=jax.devices()[:3])
    uneven = plan_state(tiny.init_params, tiny.train_config(), mesh=three)
    spec = uneven.shardings.params["up"]["kernel"].spec
    results["uneven"] = {"report": list(uneven.report), "split": any(axes is not None for axes in spec)}
    results["restored"] = restored(directory)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
