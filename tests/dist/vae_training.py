"""A step of a VAE's training on 8 simulated devices in several layouts; prints what it found as JSON.

Run in its own process: the number of devices is fixed when jax starts.
"""

import json
import os

# Programs are many and small: their time goes into compiling them.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from vdit.dist.collectives import collectives
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.train.state import plan_state
from vdit.train.step import make_train_step
from vdit.models.vae import DiscriminatorConfig, VAEConfig, VAELossConfig, make_loss

LAYOUTS = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=8, data=1),
    "data 2 fsdp 2 sequence 2": MeshConfig(data=2, fsdp=2, sequence=2),
    "sequence 4 tensor 2": MeshConfig(data=1, sequence=4, tensor=2),
    "fsdp 2 sequence 2 tensor 2": MeshConfig(data=1, fsdp=2, sequence=2, tensor=2),
}
VAE = VAEConfig(
    latent_channels=4, base_channels=8, channel_mults=(1, 1), spatial_down=(True,), temporal_down=(True,), patch=2,
    blocks_per_level=1, decoder_extra_blocks=0, middle="none", conv="native",
)  # fmt: skip
DISCRIMINATOR = DiscriminatorConfig(base_channels=8, channel_mults=(1, 1), temporal_down=(False, True), conv="native")
LOSS = VAELossConfig(reconstruction="mse", kl_weight=0.1, adversarial_weight=0.5)
TRAIN = TrainConfig(steps=1, batch_size=8, optimizer=OptimizerConfig(clip_norm=None))
ADAM_B1 = TRAIN.optimizer.b1


VIDEO = (9, 24, 8, 3)


def run(mesh):
    """The metrics of a step, its gradients, which parameters are split, and what the devices send."""
    loss = make_loss(VAE, LOSS, DISCRIMINATOR)
    plan = plan_state(lambda key: loss.init(key, np.zeros((1, *VIDEO), np.uint8), boxed=True), TRAIN, mesh=mesh)
    step = make_train_step(loss, plan)
    batch = {"video": np.random.default_rng(0).integers(0, 256, (8, *VIDEO), dtype=np.uint8)}
    compiled = step.lower(batch).compile()
    state, metrics = compiled(plan.create(jax.random.key(0)), jax.device_put(batch, step.shardings(batch)))
    params = jax.tree.leaves(state.params)
    is_split = lambda leaf, place: place.shard_shape(leaf.shape) != leaf.shape  # noqa: E731
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        # the first moment of Adam is a part of them
        "gradients": jax.tree.map(lambda m: np.asarray(m) / (1 - TRAIN.optimizer.b1), moments(state.opt_state)),
        "split": [is_split(leaf, leaf.sharding) for leaf in params],
        "table": [is_split(leaf, place) for leaf, place in zip(params, jax.tree.leaves(plan.shardings.params))],
        "sent": [(c.kind, c.axes, c.payload / c.count) for c in collectives(compiled.as_text(), mesh)],
    }


def moments(opt_state):
    """The first moments of Adam, wherever in the optimizer's state they lie."""
    found = [part for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")]
    return found[0].mu


def error(a, b, largest):
    """The largest error, relative to the largest value of the array; of a single number, to that of all arrays.

    (The bias of the discriminator's last layer: its gradient is a sum of +1s and -1s that nearly cancel.)
    """
    return float(np.abs(a - b).max() / (largest if b.size == 1 else np.abs(b).max()))


def main():
    one = run(make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one["gradients"]))
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(one["gradients"])]
    results = {"one": {"metrics": one["metrics"]}, "largest parameter": max(sizes), "parameters": sum(sizes)}
    for name, layout in LAYOUTS.items():
        eight = run(make_mesh(layout))
        errors = jax.tree.map(lambda *pair: error(*pair, largest), eight.pop("gradients"), one["gradients"])
        flat = jax.tree_util.tree_leaves_with_path(errors)
        results[name] = eight | {"errors": {jax.tree_util.keystr(path): value for path, value in flat}}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
