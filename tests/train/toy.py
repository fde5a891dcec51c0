"""A toy problem for the trainer: a two-layer network, a noisy target, a shuffled Grain source."""

import grain
import jax
import jax.numpy as jnp
import numpy as np

from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.nn.linear import Linear

WIDTH, HIDDEN = 8, 16


def init(key):
    """Boxed parameters: {"up": {"kernel", "bias"}, "down": {...}}."""
    x = jnp.zeros((1, WIDTH))
    up = Linear(features=HIDDEN, kernel_axes=("embed", "mlp")).init(key, x)["params"]
    down = Linear(features=WIDTH, kernel_axes=("mlp", "embed"))
    return {"up": up, "down": down.init(jax.random.fold_in(key, 1), jnp.zeros((1, HIDDEN)))["params"]}


def predict(params, x):
    hidden = jax.nn.gelu(x @ params["up"]["kernel"] + params["up"]["bias"])
    return hidden @ params["down"]["kernel"] + params["down"]["bias"]


def loss_fn(params, batch, key, step):
    """Mean square error over the items that `mask` keeps; its weight is their number."""
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    error = jnp.mean((predict(params, batch["x"] + noise) - batch["y"]) ** 2, axis=-1)
    weight = batch["mask"].sum()
    return (error * batch["mask"]).sum() / weight, {"weight": weight, "tokens": weight}


def quiet_loss_fn(params, batch, key, step):
    """The same without noise, so that a batch and its pieces agree."""
    error = jnp.mean((predict(params, batch["x"]) - batch["y"]) ** 2, axis=-1)
    weight = batch["mask"].sum()
    return (error * batch["mask"]).sum() / weight, {"weight": weight, "tokens": weight}


def item(index):
    rng = np.random.default_rng(int(index))
    x = rng.standard_normal(WIDTH).astype(np.float32)
    return {"x": x, "y": np.roll(x, 1) ** 2, "mask": np.float32(rng.random() < 0.7), "index": np.int32(index)}


def source(batch_size=8, items=40, seed=0):
    """An endless iterator of batches {"x" [b 8], "y" [b 8], "mask" [b], "index" [b]}."""
    items = grain.MapDataset.range(items).seed(seed).shuffle().repeat().map(item)
    return iter(items.to_iter_dataset().batch(batch_size, drop_remainder=True))


def batch_of(batch_size=8, start=0):
    items = [item(i) for i in range(start, start + batch_size)]
    return {key: np.stack([one[key] for one in items]) for key in items[0]}


def config(**changes):
    optimizer = changes.pop("optimizer", OptimizerConfig(learning_rate=1e-2))
    defaults = {"steps": 12, "batch_size": 8, "save_every": 4, "log_every": 1, "optimizer": optimizer}
    return TrainConfig(**(defaults | changes))
