"""Trains a LoRA on one device and on a mesh of 8 simulated ones and prints what it found as JSON.

Run in its own process: the number of devices is fixed when jax starts.
"""

import json
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from tests.tiny import lora_experiment, make_latents
from vdit.data.latents import LatentStore
from vdit.data.pipeline import TokenSpec, row_iterator
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.experiment.objectives import DenoisingLoss
from vdit.nn.lora import attach, detach, join
from vdit.train.pretrained import split_trainable, starting_params
from vdit.train.stages import with_tokenizer
from vdit.train.state import plan_state
from vdit.train.step import make_train_step
from vdit.train.workspace import Workspace

jax.config.update("jax_disable_most_optimizations", True)  # compiling is nearly all the time here


def run(base, batches, experiment, mesh):
    start = split_trainable(experiment, mesh)
    plan = plan_state(start.init, experiment.dit_train, mesh=mesh)
    step = make_train_step(DenoisingLoss().make_loss(experiment.model), plan, frozen=start.frozen)
    state = plan.create(jax.random.key(0))
    placed = [jax.device_put(batch, step.shardings(batch)) for batch in batches]
    with jax.set_mesh(mesh):
        compiled = step.jitted.lower(state, placed[0], start.frozen).compile()
        losses = []
        for batch in placed:
            state, metrics = compiled(state, batch, start.frozen)
            losses.append(float(metrics["loss"]))
    (_, _, frozen_places), _ = compiled.input_shardings
    out, _ = compiled.output_shardings
    held = lambda leaf: list(leaf.addressable_shards[0].data.shape)  # noqa: E731
    layer = lambda tree: tree["dit"]["blocks"]["attention"]["q"]  # noqa: E731
    frozen, trained, mu = layer(start.frozen), layer(state.params), layer(state.opt_state[1].mu)
    whole = join(starting_params(experiment, mesh)["dit"])
    attached = attach(whole, detach(join(state.params["dit"], {"blocks": scales_of(start.frozen)})))
    places = {
        "kernel": (layer(frozen_places)["kernel"], frozen["kernel"]),
        "lora_a": (layer(out.params)["lora_a"], trained["lora_a"]),
        "lora_b": (layer(out.params)["lora_b"], trained["lora_b"]),
        "mu": (layer(out.opt_state[1].mu)["lora_b"], mu["lora_b"]),
    }
    return {
        "losses": losses,
        "b": np.asarray(trained["lora_b"]).tolist(),
        "held": {
            "kernel": held(frozen["kernel"]),
            "lora_a": held(trained["lora_a"]),
            "lora_b": held(trained["lora_b"]),
            "mu": held(mu["lora_b"]),
        },
        "compiled": {name: list(place.shard_shape(leaf.shape)) for name, (place, leaf) in places.items()},
        "attached": held(attached["blocks"]["attention"]["q"]["lora_b"]),
    }


def scales_of(frozen):
    """The lora_scale leaves of the blocks."""
    keep = lambda tree: {  # noqa: E731
        key: keep(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if isinstance(value, dict) or key == "lora_scale"
    }
    return keep(frozen["dit"]["blocks"])


def main(base, root):
    space = Workspace(root)
    make_latents(Path(root))
    tokenizer_space = Workspace(base)
    experiment = with_tokenizer(lora_experiment(Path(base)), tokenizer_space)
    tokenizer = tokenizer_space.open_tokenizer(experiment)
    store = LatentStore(space.latents)
    tokens = TokenSpec(patch=experiment.backbone.patch)
    data = row_iterator(experiment.data, store, tokenizer, tokens, seed=0, batch_rows=8)
    batches = [next(data) for _ in range(2)]
    meshes = {
        "mixed": make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)),
        "one": make_mesh(MeshConfig(), devices=jax.devices()[:1]),
    }
    print(json.dumps({name: run(base, batches, experiment, mesh) for name, mesh in meshes.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
