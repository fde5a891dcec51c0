"""The programs of a run, traced with shapes alone: the training step, sampling, and the VAE's decode.

Nothing of the model is described here a second time: vdit plan compiles what vdit.train, vdit.sampling and
vdit.models.vae run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from vdit.dist.mesh import compiler_options, platform_of
from vdit.dist.rules import batch_shardings, num_batch_shards, num_shards, replicated
from vdit.errors import ConfigError
from vdit.experiment.experiment import Experiment
from vdit.models.backbone import token_values
from vdit.models.conditions import ClassCondition
from vdit.models.vae import split
from vdit.models.vae.model import VAE
from vdit.sampling.canvas import Prompts
from vdit.sampling.config import sampling_config
from vdit.sampling.programs import TextToVideo, compiled
from vdit.train.flops import count_flops, jaxpr_flops
from vdit.train.state import abstract_params, plan_state
from vdit.train.step import make_train_step
from vdit.types import PyTree, Row


def abstract_rows(experiment: Experiment, *, rows: int | None = None) -> Row:
    """A global batch of packed rows of the experiment's shape: Row of ShapeDtypeStructs [b ...].

    rows: b; that of `dit_train` if None. With accumulation a, [a b/a ...].
    """
    data, train = experiment.data, experiment.dit_train
    b = train.batch_size if rows is None else rows
    a = train.accumulation
    lead = (b,) if a == 1 or rows is not None else (a, b // a)
    ints = lambda *shape: jax.ShapeDtypeStruct((*lead, *shape), jnp.int32)  # noqa: E731
    floats = lambda *shape: jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)  # noqa: E731
    row = Row(
        values=floats(data.row_tokens, token_values(experiment.network.backbone)),
        position=ints(data.row_tokens, 3),
        segment_ids=ints(data.row_tokens),
        frame_index=ints(data.row_tokens),
        frame_segment_ids=ints(data.max_frames_per_row),
        text=ints(data.max_text_per_row),
        text_segment_ids=ints(data.max_text_per_row),
        text_position=ints(data.max_text_per_row),
    )
    counts = {"clip": data.max_clips_per_row, "sequence": data.max_clips_per_row, "frame": data.max_frames_per_row,
              "token": data.row_tokens}
    network = experiment.network
    conditions = {condition.name: condition for condition in (ClassCondition(), *network.spec.conditions)}
    for condition in conditions.values():
        shape = (*lead, counts[condition.axis], *condition.features(network.backbone.patch))
        row = row.with_cond(condition.name, jax.ShapeDtypeStruct(shape, condition.dtype), condition.axis)
    return row


def abstract_prompts(experiment: Experiment, count: int, mesh: Mesh) -> Prompts:
    """`count` tokenised prompts, shared out over the mesh as vdit.generate does."""
    length = experiment.text.max_length
    prompts = Prompts(
        ids=jax.ShapeDtypeStruct((count, length), jnp.int32), length=jax.ShapeDtypeStruct((count,), jnp.int32)
    )
    return with_shardings(prompts, batch_shardings(mesh, prompts))


def abstract_key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A typed random key, on every device."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))


def abstract_statistics(experiment: Experiment, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Mean and deviation of the latents, on every device."""
    channels = (experiment.vae.latent_channels,)
    return {name: jax.ShapeDtypeStruct(channels, jnp.float32, sharding=replicated(mesh)) for name in ("mean", "std")}


def with_shardings(tree: PyTree, shardings: PyTree) -> PyTree:
    """The tree with a sharding on each leaf."""
    struct = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(struct, tree, shardings)


def bytes_per_device(tree: PyTree) -> int:
    """Bytes of a tree of placed arrays, or of their shapes, on one device."""
    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf) -> int:
    """Bytes of one placed array on one device."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    count = 1
    for size in shape:
        count *= size
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        key = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), leaf.dtype))
        return count * key.size * key.dtype.itemsize
    return count * jnp.dtype(leaf.dtype).itemsize


DECODE_FRAMES = 4  # latent frames at a time, at the least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A traced program and what is known of it before it is compiled.

    name: "train", "sample" or "decode". traced: to be lowered and compiled under the mesh. arguments: bytes of its
    arguments on one device, by kind. flops: of all devices in one run of it, the hardware's. model_flops: those
    that are useful. tokens: of the DiT. seconds: of video. repeats: how often the program runs for all of these; its
    own FLOPs are that part of `flops`. differentiated: it has a backward pass. report: dimensions left whole against
    the table of vdit/dist/rules.py.
    """

    name: str
    traced: Any
    arguments: dict[str, int]
    flops: float
    model_flops: float
    tokens: int
    seconds: float
    repeats: int = 1
    differentiated: bool = False
    report: tuple[str, ...] = ()


def train_program(experiment: Experiment, mesh: Mesh) -> Program:
    """The training step of the DiT on a full batch of rows, each filled by one clip."""
    if experiment.start_from is not None:
        raise ConfigError(
            f"start_from={experiment.start_from!r}: what is trained on top of a base is not planned; plan the base: "
            "--cfg.start_from=none --cfg.lora=none --cfg.objective=denoising"
        )
    config, loss = experiment.dit_train, experiment.objective.make_loss(experiment.model)
    plan = plan_state(experiment.network.init, config, mesh=mesh)
    step = make_train_step(loss, plan, compiler_options=compiler_options(platform_of(mesh)))
    rows = abstract_rows(experiment)
    rows = with_shardings(rows, step.shardings(rows))
    with jax.set_mesh(mesh):
        traced = step.jitted.trace(plan.abstract, rows)
    state = plan.abstract
    kinds = {"parameters": state.params, "EMA": state.ema, "optimizer": state.opt_state, "batch": rows}
    tokens = math.prod(rows.values.shape[:-1])
    return Program(
        name="train",
        traced=traced,
        arguments={kind: bytes_per_device(tree) for kind, tree in kinds.items() if tree is not None},
        flops=jaxpr_flops(traced.jaxpr.jaxpr),
        model_flops=train_flops(experiment),
        tokens=tokens,
        seconds=tokens / tokens_per_second(experiment),
        differentiated=True,
        report=plan.report,
    )


def train_flops(experiment: Experiment) -> float:
    """Model FLOPs of a training step: three times those of the loss's own forward pass, as it is traced.

    With one noise level a row: to look up the levels of tokens is no arithmetic of the model, though it is done by
    products (vdit.models.dit.blocks.take_slots).
    """
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, max_frames_per_row=1))
    loss = experiment.objective.make_loss(experiment.model)
    params = jax.eval_shape(experiment.network.init, jax.random.key(0))
    one = abstract_rows(experiment, rows=1)
    forward = count_flops(loss, unboxed(params), one, jax.random.key(0), 0)
    return 3.0 * forward * experiment.dit_train.batch_size


def sample_program(experiment: Experiment, mesh: Mesh) -> Program:
    """Sampling as `experiment.sample` says, latents only: one video for each group of devices that share a batch."""
    sample, count = experiment.sample, num_batch_shards(mesh)
    task = TextToVideo(
        network=experiment.network,
        vae=experiment.vae,
        method=sampling_config(experiment),
        frames=sample.frames,
        size=sample.size,
        decode=False,
    )
    params = abstract_params(experiment.network.init, mesh)
    prompts = abstract_prompts(experiment, count, mesh)
    rest = (abstract_statistics(experiment, mesh), prompts, prompts, abstract_key(mesh))
    with jax.set_mesh(mesh):
        traced = compiled(task, None).trace(params, {}, *rest)
    flops = jaxpr_flops(traced.jaxpr.jaxpr)
    return Program(
        name="sample",
        traced=traced,
        arguments={"parameters": bytes_per_device(params), "prompts": bytes_per_device(rest)},
        flops=flops,
        model_flops=flops,
        tokens=count * math.prod(task.latent_shape[:3]) // math.prod(experiment.backbone.patch),
        seconds=count * sample.frames / sample.fps,
    )


def decode_program(experiment: Experiment, mesh: Mesh) -> Program:
    """The VAE's decode of one video of `experiment.sample` for each group of devices that share a batch.

    A long one is decoded some latent frames at a time, one or more for each device that shares frames: planned is a
    chunk in the middle, which finds the last frames of the one before it in its cache.
    """
    config, sample, count = experiment.vae, experiment.sample, num_batch_shards(mesh)
    t, h, w, c = config.latent_shape(sample.frames, *sample.size)
    with jax.set_mesh(mesh):
        shared = num_shards("time")
    frames = min(t, -(-DECODE_FRAMES // shared) * shared)
    latents = jax.ShapeDtypeStruct((count, frames, h, w, c), jnp.float32)
    init = lambda key: VAE(config).init(key, jnp.zeros((1, 1, *[config.spatial_stride] * 2, 3)))["params"]  # noqa: E731
    shapes = unboxed(jax.eval_shape(init, jax.random.key(0)))
    shapes = {name: part for name, part in shapes.items() if name != "encoder"}
    params = with_shardings(shapes, jax.tree.map(lambda _: replicated(mesh), shapes))
    decode = functools.partial(split.decode_chunk, config)
    with jax.set_mesh(mesh):
        cache = None
        if frames < t:
            cache = jax.eval_shape(decode, params, latents)[1]
            place = split.plan_split(count, frames, h, start=False).whole_frames()
            cache = with_shardings(cache, jax.tree.map(lambda _: NamedSharding(mesh, place), cache))
        latents = with_shardings(latents, batch_shardings(mesh, latents))
        traced = jax.jit(decode, compiler_options=compiler_options(platform_of(mesh))).trace(params, latents, cache)
    repeats = -(-t // frames)
    flops = jaxpr_flops(traced.jaxpr.jaxpr) * repeats
    return Program(
        name="decode",
        traced=traced,
        arguments={
            name: bytes_per_device(tree)
            for name, tree in (("parameters", params), ("latents", latents), ("cache", cache))
        },
        flops=flops,
        model_flops=flops,
        tokens=0,
        seconds=count * sample.frames / sample.fps,
        repeats=repeats,
    )


def tokens_per_second(experiment: Experiment) -> float:
    """Tokens that a second of video is, at the size and frame rate at which the experiment samples."""
    sample = experiment.sample
    shape = experiment.vae.latent_shape(sample.frames, *sample.size)[:3]
    return math.prod(shape) / math.prod(experiment.backbone.patch) * sample.fps / sample.frames


def unboxed(params):
    """Parameters without the boxes that carry their logical axes."""
    return jax.tree.map(lambda leaf: leaf.unbox() if hasattr(leaf, "unbox") else leaf, params,
                        is_leaf=lambda leaf: hasattr(leaf, "unbox"))  # fmt: skip
