"""Samples videos on 8 simulated devices in several layouts and on one device; prints what it found as JSON.

Run in a process of its own: the number of devices is fixed when jax starts. With the word `hosts` it is one of two
processes (VDIT_* say which), of a device each, that sample together.
"""

import functools
import json
import os
import sys

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={1 if sys.argv[1:] == ['hosts'] else 8}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from tests.dist.programs import buffers
from vdit import samplers
from vdit.diffusion import DiffusionConfig, Guidance, make_schedule
from vdit.dist import rules
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.dist.multihost import initialize
from vdit.dist.rules import named_shardings
from vdit.models.dit.config import DiTConfig
from vdit.samplers.grid import Grid
from vdit.sampling.canvas import Prompts
from vdit.sampling.config import SamplingConfig
from vdit.models.network import Network
from vdit.sampling.programs import Parameters, TextToVideo, compiled, sample
from vdit.models.text import TextConfig
from vdit.train.state import logical_axes
from vdit.models.vae.config import preset
from vdit.models.vae.model import VAE

jax.config.update("jax_disable_most_optimizations", True)  # compiling is nearly all the time here

# 3 latent frames of 5 x 7 tokens: 105 tokens, which no layout divides.
FRAMES, SIZE, TOKENS = 9, (80, 112), 105
# (layout, number of prompts, whether to decode): one video alone too, on a mesh that shares out batches.
CASES = {
    "sequence=4 x fsdp=2": (MeshConfig(data=1, fsdp=2, sequence=4), 1, False),
    "sequence=2 x tensor=2 x fsdp=2": (MeshConfig(data=1, sequence=2, tensor=2, fsdp=2), 3, True),
    "data=2 x fsdp=4": (MeshConfig(data=2, fsdp=4), 3, True),
}
VAE_CONFIG = preset("tiny", latent_channels=5)
NETWORK = Network(
    text=TextConfig(vocab_size=136, max_length=12, width=40, depth=1, heads=4),
    backbone=DiTConfig(in_channels=5, width=72, depth=2, heads=4, mlp_width=104, patch=(1, 2, 2), time_features=36),
)
SCHEDULE = make_schedule(DiffusionConfig())
METHOD = SamplingConfig(
    schedule=SCHEDULE,
    prediction=DiffusionConfig().prediction,
    sampler=samplers.make("ddim", eta=1.0),  # draws noise on the way
    grid=Grid(steps=3, ceiling=0.999),
    guidance=Guidance(scale=3.0, interval=(0.0, 0.8)),
)


def filled(tree):
    """Values for an abstract tree: nothing is zero, as gates and heads are at first."""

    def value(path, leaf):
        rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
        return np.asarray(0.1 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale"), np.float32)

    return jax.tree_util.tree_map_with_path(value, tree)


def prompts(count, seed):
    rng = np.random.default_rng(seed)
    return Prompts(ids=rng.integers(1, 136, (count, 12)).astype(np.int32), length=np.arange(count, dtype=np.int32) + 3)


def unboxed(tree):
    return jax.tree.map(lambda box: box.value, tree, is_leaf=lambda leaf: hasattr(leaf, "names"))


def arguments(task, mesh):
    boxed = jax.eval_shape(NETWORK.init, jax.random.key(0))
    params = filled(unboxed(boxed))
    params = jax.device_put(params, named_shardings(mesh, params, logical_axes(boxed))[0])
    latents = jax.ShapeDtypeStruct((1, *task.latent_shape), np.float32)
    init = functools.partial(VAE(VAE_CONFIG).init, method="decode")
    vae = filled(unboxed(jax.eval_shape(init, jax.random.key(0), latents))["params"])
    return params, vae, {"mean": np.zeros(5, np.float32), "std": np.ones(5, np.float32)}


def run(mesh, count, decode):
    task = TextToVideo(network=NETWORK, vae=VAE_CONFIG, method=METHOD, frames=FRAMES, size=SIZE, decode=decode)
    words = prompts(count, 1), prompts(count, 2)
    return sample(task, mesh, Parameters(*arguments(task, mesh)), words, jax.random.key(5))


def whole_rows(mesh):
    """Arrays of floats that the sampler's program puts in memory with all tokens of a row, padding included."""
    task = TextToVideo(network=NETWORK, vae=VAE_CONFIG, method=METHOD, frames=FRAMES, size=SIZE, decode=False)
    with jax.set_mesh(mesh):
        words = prompts(1, 1)
        program = compiled(task).lower(*arguments(task, mesh), words, words, jax.random.key(5)).compile()
    padded = -(-TOKENS // mesh.shape["sequence"]) * mesh.shape["sequence"]
    return sorted({
        f"{dtype}{list(shape)} {where}" for dtype, shape, where in buffers(program.as_text())
        if dtype[0] not in "sup" and padded in shape and not set(shape) <= {1, 2, padded, 18}
    })  # fmt: skip


def together():
    """On two hosts: what this one gets, against what it makes by itself."""
    initialize()
    fetch.PIECE = 1000  # bytes: a frame at a time
    ours = run(make_mesh(MeshConfig(data=1, sequence=2)), 2, False)
    alone = run(make_mesh(MeshConfig(), devices=jax.local_devices()), 2, False)
    error = np.abs(ours - alone).max() / np.abs(alone).max()
    print("ANSWER", json.dumps({"error": float(error), "hosts": jax.process_count(), "shape": list(ours.shape)}))


def main():
    one = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    reference = {decode: np.asarray(run(one, 3, decode)) for decode in (False, True)}
    found = {}
    for name, (layout, count, decode) in CASES.items():
        out = run(make_mesh(layout), count, decode)
        whole = reference[decode][:count]
        error = np.abs(np.asarray(out) - whole).max() / np.abs(whole).max()
        found[name] = {"error": float(error), "shape": list(out.shape)}
    found["whole rows"] = whole_rows(make_mesh(CASES["sequence=4 x fsdp=2"][0]))
    print(json.dumps(found))


if __name__ == "__main__":
    together() if sys.argv[1:] == ["hosts"] else main()
