"""Runs a small language model on 8 simulated devices in several layouts and prints what it found as JSON.

Run in its own process: the number of devices is fixed when jax starts.
"""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.models.lm.config import LMConfig
from vdit.models.lm.generate import Decoding, generate, pad_prompts
from vdit.models.lm.model import LanguageModel
from vdit.train.state import abstract_params

jax.config.update("jax_disable_most_optimizations", True)  # compiling is nearly all the time here

CONFIG = LMConfig(vocab_size=64, width=32, layers=2, heads=8, kv_heads=2, head_dim=8, mlp=64, context=64, tied=False)
LAYOUTS = {
    "one": MeshConfig(),
    "mixed": MeshConfig(data=2, fsdp=2, tensor=2),
    "tensor": MeshConfig(fsdp=2, tensor=4),  # splits 8 heads of queries, and not the 2 of keys
}
ROWS = 8


def run(name: str, layout: MeshConfig) -> dict:
    mesh = make_mesh(layout, jax.devices()[:1]) if name == "one" else make_mesh(layout)
    model, one = LanguageModel(CONFIG), np.ones((1, 1), np.int32)
    init = lambda key: model.init(key, one, one, one)["params"]  # noqa: E731
    abstract = abstract_params(init, mesh)
    rng = np.random.default_rng(0)
    whole = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 4, abstract)
    whole["embed"]["embedding"] *= 3
    params = jax.tree.map(lambda x, place: jax.device_put(x, place.sharding), whole, abstract)
    ids = rng.integers(0, 64, (ROWS, 16)).astype(np.int32)
    position = np.tile(np.concatenate([np.arange(10), np.arange(6)]), (ROWS, 1)).astype(np.int32)
    segment_ids = np.tile([1] * 10 + [2] * 6, (ROWS, 1)).astype(np.int32)

    def loss(params):
        hidden = model.apply({"params": params}, ids, position, segment_ids).hidden
        logits = jax.nn.log_softmax(model.apply({"params": params}, hidden, method="logits"))
        return -jnp.mean(jnp.take_along_axis(logits[:, :-1], jnp.asarray(ids[:, 1:, None]), -1)), logits

    with jax.set_mesh(mesh):
        (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        prompts = pad_prompts([row[: 3 + i].tolist() for i, row in enumerate(ids)])
        made = generate(model, params, prompts, Decoding.make(ROWS, max_tokens=12), max_tokens=12)
    held = {"/".join(str(k.key) for k in path): list(x.sharding.shard_shape(x.shape))
            for path, x in jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip
    return {
        "loss": float(value), "logits": np.asarray(logits)[:, ::5].tolist(), "tokens": np.asarray(made.tokens).tolist(),
        "gradient": np.asarray(gradients["blocks"]["attention"]["k"]["kernel"])[0, :4].tolist(), "held": held,
        "cache": list(made.cache.keys.sharding.shard_shape(made.cache.keys.shape)),
    }  # fmt: skip


print(json.dumps({name: run(name, layout) for name, layout in LAYOUTS.items()}))
