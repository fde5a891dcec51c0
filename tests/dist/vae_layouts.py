"""Runs small VAEs on 8 simulated devices in several layouts and prints how far they are from one device, as JSON.

Run in its own process: the number of devices is fixed when jax starts.
"""

import json
import os
import re

# Programs are many and small: their time goes into compiling them.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import meta

from vdit.dist.collectives import collectives
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.models.vae import VAE, VAEConfig, split
from vdit.models.vae.video import VideoVAE

SMALL = {"latent_channels": 2, "base_channels": 4, "blocks_per_level": 1, "decoder_extra_blocks": 0}
CONFIGS = {
    "wan21": VAEConfig(
        **SMALL, channel_mults=(1, 2, 2), spatial_down=(True, False), temporal_down=(True, True), conv="native"
    ),
    "wan22": VAEConfig(
        **SMALL, patch=2, up_channels="keep", level_shortcut=True, decoder_base_channels=8, channel_mults=(1, 2, 2),
        spatial_down=(True, True), temporal_down=(False, True), norm_eps=1e-24, middle="none",
        conv="native",
    ),
    "sd": VAEConfig(
        **SMALL, channel_mults=(1, 2), spatial_down=(True,), temporal_down=(False,), up_channels="keep",
        block_kernel=(1, 3, 3), edge_kernel=(1, 3, 3), norm="group", norm_groups=2, conv="native",
    ),
    "base": VAEConfig(
        **SMALL, patch=2, channel_mults=(1, 2), spatial_down=(True,), temporal_down=(True,), middle="none"
    ),
    "tiny": VAEConfig(
        **SMALL, patch=2, patch_frames=4, block_kernel=(1, 3, 3), edge_kernel=(1, 1, 1), norm_out=False,
        channel_mults=(1, 2), spatial_down=(True,), temporal_down=(False,), middle="none", linear_path=True,
    ),
}  # fmt: skip
# name: (config, latent frames, rows of latents, batch, mesh, with gradients)
CASES = {
    "wan21 4x2": ("wan21", 9, 2, 1, MeshConfig(data=1, sequence=4, tensor=2), True),
    "wan21 8x1": ("wan21", 2, 1, 1, MeshConfig(data=1, sequence=8), False),
    "wan21 1x4": ("wan21", 1, 4, 1, MeshConfig(data=1, sequence=2, tensor=2), False),
    "wan22 2x2": ("wan22", 5, 2, 1, MeshConfig(data=1, sequence=2, tensor=2), True),
    "sd 1x4": ("sd", 2, 4, 1, MeshConfig(data=1, tensor=4), True),
    "base 2x1": ("base", 4, 1, 4, MeshConfig(data=2, fsdp=2, sequence=2), True),
    "tiny 4x1": ("tiny", 5, 1, 1, MeshConfig(data=1, sequence=4), True),
}
CAUSAL = "wan21 8x1"
STREAMS = {"base": MeshConfig(data=1, sequence=2, tensor=2), "tiny": MeshConfig(data=1, sequence=2, tensor=2)}


def mesh_of(config):
    return make_mesh(config, devices=jax.devices()[: config.data * config.fsdp * config.sequence * config.tensor])


def drawn(config, frames, rows, batch):
    """Every parameter at random, so that no branch is idle; a video and latents that do not belong together."""
    draw, side = np.random.default_rng(0), config.spatial_stride
    shapes = jax.eval_shape(VAE(config).init, jax.random.key(0), jnp.zeros((1, 1, side, side, 3)))["params"]
    normal = lambda x: jnp.float32(draw.normal(0.0, np.prod(x.shape[:-1]) ** -0.5, x.shape))  # noqa: E731
    video = draw.uniform(-1, 1, (batch, 1 + (frames - 1) * config.temporal_stride, rows * side, 2 * side, 3))
    latents = draw.normal(size=(batch, frames, rows, 2, config.latent_channels))
    return jax.tree.map(normal, meta.unbox(shapes)), jnp.float32(video), jnp.float32(latents)


def both(config, gradients):
    """Jitted (params, video, latents) -> latents and video, with the gradients of a loss of them."""

    def loss(params, video, latents):
        gaussian = split.encode(config, params, video)
        decoded = split.decode(config, params, latents)
        outputs = {"mean": gaussian.mean, "logvar": gaussian.logvar, "decoded": decoded}
        return sum(jnp.mean(jnp.sin(2 * x)) for x in outputs.values()), outputs

    if not gradients:
        return jax.jit(lambda *arrays: (loss(*arrays)[1], ()))

    def run(*arrays):
        (_, outputs), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)
        return outputs, dict(zip(("params", "video", "latents"), grads))

    return jax.jit(run)


def errors(trees, wanted):
    """The largest error of each array, relative to its largest value."""

    def error(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (a.shape, b.shape)
        return float(np.abs(a - b).max() / np.abs(b).max())

    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(error, trees, wanted))
    return {jax.tree_util.keystr(path): value for path, value in leaves}


def case(name):
    config_name, frames, rows, batch, mesh, gradients = CASES[name]
    config = CONFIGS[config_name]
    arrays = drawn(config, frames, rows, batch)
    wanted = both(config, gradients)(*arrays)
    run = both(config, gradients)
    with jax.set_mesh(mesh_of(mesh)):
        plan = split.plan_split(batch, frames, rows)
        got = run(*arrays)
    found = {
        "ways": [plan.split.time_shards, plan.split.height_shards],
        "batch": list(plan.batch),
        "errors": errors(got, wanted),
    }
    if name == CAUSAL:
        params, video, latents = arrays
        later = jnp.zeros_like(video).at[:, -1].set(1.0), jnp.zeros_like(latents).at[:, -1].set(1.0)
        with jax.set_mesh(mesh_of(mesh)):
            changed = run(params, video + later[0], latents + later[1])
        moved = lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max((0, 2, 3, 4)).tolist()  # noqa: E731
        found["moved"] = jax.tree.map(moved, got[0], changed[0])
    return found


def streamed(name, mesh):
    """Five latent frames, two at a time, against all of them on one device; the first is left over."""
    config = CONFIGS[name]
    params, video, latents = drawn(config, 5, 2, 1)
    plain = {"mean": np.zeros(2, np.float32), "std": np.ones(2, np.float32)}
    vae = VideoVAE(config=config, params=params, statistics=plain)
    wanted = {"mean": vae.encode(video), "decoded": vae.decode(latents)}
    with jax.set_mesh(mesh_of(mesh)):
        got = {"mean": vae.encode(video, latent_frames=2), "decoded": vae.decode(latents, latent_frames=2)}
    rows = got["decoded"].addressable_shards[0].data.shape[2]
    return {"errors": errors(got, wanted), "rows": [rows, video.shape[2]]}


def compiled():
    """Decoding of something larger by one device and by 4 x 2: what is sent, and the memory of it."""
    config, shape = CONFIGS["wan21"], (1, 16, 32, 8, 2)
    params = drawn(config, 1, 1, 1)[0]
    decode = jax.jit(lambda params, latents: split.decode(config, params, latents))
    latents = jax.ShapeDtypeStruct(shape, jnp.float32)
    one = decode.lower(params, latents).compile()
    mesh = make_mesh(MeshConfig(data=1, sequence=4, tensor=2))
    with jax.set_mesh(mesh):
        eight = jax.jit(lambda *arrays: decode(*arrays)).lower(params, latents).compile()
    text = eight.as_text()
    frames, rows = 1 + 15 * config.temporal_stride, 32 * config.spatial_stride
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", text)}
    return {
        "memory": [program.memory_analysis().temp_size_in_bytes for program in (one, eight)],
        "sent": sorted({(c.kind, c.axes, "attention" in c.where) for c in collectives(text, mesh)}),
        "largest": max(int(np.prod(shape)) for shape in shapes),
        "part of the widest": frames * rows**2 * config.widths[0] // 8,
    }


def main():
    results = {"cases": {name: case(name) for name in CASES}}
    results["streamed"] = {name: streamed(name, mesh) for name, mesh in STREAMS.items()}
    results["compiled"] = compiled()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
