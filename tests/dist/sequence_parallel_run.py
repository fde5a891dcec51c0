"""Attention over rows shared out over 8 simulated devices, against one device; prints what it found as JSON.

Run in its own process: the number of devices is fixed when jax starts.
"""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdit.dist.collectives import collectives, totals
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.dist.rules import constrain, partition_spec
from vdit.models.dit import DiT, DiTConfig
from tests.models.dit.inputs import as_row, model_of
from vdit.models.cache import KEYS, concat_tokens
from vdit.nn.attention import attention, chunked
from vdit.nn.layers import matmul
from vdit.nn.embedding import rotate, rotations

MESHES = {
    "sequence 8": MeshConfig(data=1, sequence=8),
    "sequence 4, tensor 2": MeshConfig(data=1, sequence=4, tensor=2),
    "data 2, sequence 4": MeshConfig(data=2, sequence=4),
    "fsdp 2, sequence 2, tensor 2": MeshConfig(data=1, fsdp=2, sequence=2, tensor=2),
}
# What each mesh is tried with.
TRIED = (
    ("heads exchanged", "ring", "heads run out", "cross", "nothing divides", "times", "times round a ring"),
    ("heads exchanged", "heads run out"),
    ("ring", "heads run out", "times and a past"),
    ("heads exchanged", "an odd number of heads", "cross", "nothing divides", "times and a past"),
)
# heads, how devices meet, and what else differs from 4 rows of 64 tokens that attend to themselves
CASES = {
    "heads exchanged": (8, "ulysses", {}),
    "ring": (8, "ring", {}),
    "heads run out": (6, "auto", {}),
    "an odd number of heads": (3, "auto", {}),
    "cross": (8, "auto", {"m": 24, "axes": ("tokens", "text_tokens")}),
    "nothing divides": (3, "auto", {"n": 63, "rows": 3}),
    "times": (8, "ulysses", {"frame": 3}),
    "times round a ring": (8, "ring", {"frame": 3}),
    "times and a past": (6, "auto", {"frame": 3, "m": 128}),
}
NAMES = ("batch", "tokens", "heads", None)


def inputs(heads, n=64, m=None, rows=4, frame=None):
    """Packed rows: clips that span several devices' shares, short ones inside of one, padding, a clip without keys.

    frame: tokens of a frame where queries read no later keys; None: no times.
    """
    rng = np.random.default_rng(heads)
    m = m or n
    q, weight = (rng.normal(size=(rows, n, heads, 8)).astype(np.float32) for _ in range(2))
    k, v = (rng.normal(size=(rows, m, heads, 8)).astype(np.float32) for _ in range(2))
    ends = np.sort(rng.integers(0, n, (rows, 4)), 1)
    q_ids = (np.arange(n) >= ends[:, :, None]).sum(1) + 1
    q_ids[:, -5:] = 0
    k_ids = q_ids if m == n else np.sort(rng.integers(0, 4, (rows, m)), 1)
    times = None if frame is None else tuple(np.tile(np.arange(x, dtype=np.int32) // frame, (rows, 1)) for x in (n, m))
    return q, k, v, q_ids.astype(np.int32), k_ids.astype(np.int32), weight, times


def gradients(**options):
    """Output and gradients, compiled anew for each mesh."""

    def run(q, k, v, q_ids, k_ids, weight, times=None):
        more = options if times is None else options | {"q_time": times[0], "k_time": times[1]}
        out, back = jax.vjp(lambda q, k, v: attention(q, k, v, q_ids, k_ids, **more), q, k, v)
        return out, *back(weight)

    return jax.jit(run)


ON_ONE_DEVICE = gradients(implementation="dense")


def error(mesh, heads, way, shape, axes=("tokens", "tokens"), **options):
    """Largest error against one device, relative to the largest number, of the output and each gradient."""
    given = inputs(heads, **shape)
    wanted = ON_ONE_DEVICE(*given)
    with jax.set_mesh(mesh):
        got = gradients(axes=axes, sequence_parallel=way, **options)(*given)
    worst = lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max())  # noqa: E731
    return max(worst(a, b) for a, b in zip(got, wanted))


def in_a_mapped_function(mesh):
    """Inside of `shard_map` over all axes attention is what it is on one device."""
    given = inputs(8, rows=8)
    with jax.set_mesh(mesh):
        spec = P(("data", "sequence"))
        got = jax.jit(jax.shard_map(gradients(), in_specs=spec, out_specs=spec))(*given)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(got, ON_ONE_DEVICE(*given)))


def traffic(mesh, heads, way, n=2048):
    """What a gradient sends and holds, where q, k and v lie as the table says, and where they lie on one device."""
    sizes = dict(mesh.shape)
    shape = (2, n, heads, 16)
    tokens = jax.ShapeDtypeStruct(shape, jnp.float32)
    tokens = tokens.update(sharding=NamedSharding(mesh, partition_spec(NAMES, shape, sizes)[0]))
    clips = jax.ShapeDtypeStruct(shape[:2], jnp.int32)
    clips = clips.update(sharding=NamedSharding(mesh, partition_spec(NAMES[:2], shape[:2], sizes)[0]))
    with jax.set_mesh(mesh):
        function = gradients(sequence_parallel=way, implementation="chunked")
        lowered = function.lower(tokens, tokens, tokens, clips, clips, tokens)
        compiled = lowered.compile()
    lines = totals(collectives(compiled.as_text(), mesh)) if mesh.size > 1 else []
    return {
        "bytes": {line.kind: line.bytes for line in lines},
        "axes": sorted({axis for line in lines for axis in line.axes}),
        "share": int(np.prod(shape)) * 4 // mesh.size,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }


def linear_traffic(mesh, product):
    """What the gradient of two linear layers sends, where parameters lie as the table says."""
    sizes = dict(mesh.shape)

    def place(names, *shape):
        sharding = NamedSharding(mesh, partition_spec(names, shape, sizes)[0])
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def loss(up, down, x):
        y = product(jnp.tanh(product(x, up)), down)
        return jnp.sum(constrain(y, ("batch", "tokens", "embed")) ** 2)

    given = place(("embed", "mlp"), 64, 256), place(("mlp", "embed"), 256, 64), place(NAMES[:2] + ("embed",), 8, 64, 64)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=tuple(x.sharding for x in given))
        text = gradient.lower(*given).compile().as_text()
    return {line.kind: line.bytes for line in totals(collectives(text, mesh))}


def rotation_traffic(mesh):
    """What turning the heads of tokens sends, where tokens are shared out."""
    sharding = NamedSharding(mesh, P(None, "sequence"))
    x = jax.ShapeDtypeStruct((2, 64, 4, 16), jnp.float32, sharding=sharding)
    position = jax.ShapeDtypeStruct((2, 64, 3), jnp.int32, sharding=sharding)
    with jax.set_mesh(mesh):
        turn = jax.jit(lambda x, position: rotate(x, *rotations(position, 16)), out_shardings=sharding)
        return len(collectives(turn.lower(x, position).compile().as_text(), mesh))


def past_error(mesh):
    """A causal DiT with a past, its tokens shared out, against one device; and what laying both side by side sends."""
    config = DiTConfig(in_channels=2, width=32, depth=1, heads=4, text="none", classes=1, causal=True)
    rng = np.random.default_rng(0)
    model, (b, n, f) = model_of(config), (2, 32, 8)  # frames of 8 tokens
    ones, frame = np.ones((b, n), np.int32), np.tile(np.arange(n, dtype=np.int32) // f, (b, 1))
    row = {
        "values": rng.normal(size=(b, n, 8)).astype(np.float32), "time": np.zeros((b, n // f), np.float32),
        "segment_ids": ones, "frame_index": frame, "frame_segment_ids": ones[:, : n // f], "label": ones[:, :1],
    }  # fmt: skip
    at = lambda first: np.stack([frame + first, 0 * frame, 0 * frame], -1)  # noqa: E731
    shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *as_row(row | {"position": at(0)}))))
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) * 0.3), shapes)

    def both(row):
        cache = model.apply(params, *as_row(row | {"position": at(0)}), return_cache=True).cache
        return model.apply(params, *as_row(row | {"position": at(n // f)}), cache=cache).prediction

    want = jax.jit(both)(row)
    with jax.set_mesh(mesh):
        got = jax.jit(lambda row: both(row))(row)
        sharding = NamedSharding(mesh, partition_spec(KEYS, (b, n, 4, 8), dict(mesh.shape))[0])
        keys = jax.ShapeDtypeStruct((b, n, 4, 8), jnp.float32, sharding=sharding)
        joined = jax.jit(lambda x, y: concat_tokens(x, y, KEYS)).lower(keys, keys).compile().as_text()
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max()), len(collectives(joined, mesh))


def main():
    meshes = {name: make_mesh(config) for name, config in MESHES.items()}
    results = {"errors": {}, "traffic": {}}
    chunked.Q_CHUNK = chunked.K_CHUNK = 16  # parts of a row hold several chunks
    for (mesh_name, mesh), cases in zip(meshes.items(), TRIED):
        for case in cases:
            heads, way, shape = CASES[case]
            shape = dict(shape)
            axes = shape.pop("axes", ("tokens", "tokens"))
            found = error(mesh, heads, way, shape, axes, implementation="chunked")
            results["errors"][f"{mesh_name}: {case}"] = found
    for kernel in ("splash", "triton"):
        found = error(meshes["data 2, sequence 4"], 2, "auto", {"rows": 2, "frame": 5}, implementation=kernel)
        results["errors"][f"data 2, sequence 4: {kernel}"] = found
    results["errors"]["in a mapped function"] = in_a_mapped_function(meshes["data 2, sequence 4"])
    chunked.Q_CHUNK = chunked.K_CHUNK = 128
    one = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    results["traffic"]["one device"] = traffic(one, 8, "auto")
    for name, mesh, heads, way in (
        ("ulysses", "sequence 8", 8, "ulysses"),
        ("ring", "sequence 8", 8, "ring"),
        ("both", "sequence 8", 4, "auto"),
        ("mixed", "fsdp 2, sequence 2, tensor 2", 8, "auto"),
    ):
        results["traffic"][name] = traffic(meshes[mesh], heads, way)
    mixed = meshes["fsdp 2, sequence 2, tensor 2"]
    results["linear"] = {name: linear_traffic(mixed, f) for name, f in (("ours", matmul), ("plain", jnp.matmul))}
    results["past"] = [past_error(meshes[name]) for name in ("sequence 8", "fsdp 2, sequence 2, tensor 2")]
    results["rotations"] = rotation_traffic(meshes["sequence 8"])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
