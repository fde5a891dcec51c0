"""The VAE on a device mesh: a clip shared out over devices, by frames and by rows, with the numbers of one device.

What is shared out how follows the mesh in context (`jax.set_mesh`) and the sizes (`plan_split`): the batch over its
axes, then frames and rows over the axes that vdit/dist/rules.py allows them. All runs in one `jax.shard_map`; devices
exchange what lies at the edges of their parts (vdit/nn/halo.py). Without a mesh it is the plain VAE.

Frames of a video, 1 + stride * k of them, never divide by the devices. So videos come and go with rows (or columns)
over all the devices that share a clip, and are turned to parts of frames and back inside.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import meta
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vdit.dist.rules import RULES, partition_spec
from vdit.models.vae.config import DiscriminatorConfig, VAEConfig
from vdit.models.vae.model import VAE, Discriminator, Gaussian, check_latents, check_video
from vdit.nn.halo import Axes, Split
from vdit.types import Array, PyTree


def decode(config: VAEConfig, params: PyTree, latents: Array) -> Array:
    """Latents to videos: `[b t' h' w' c] -> [b t h w 3]`, float32, as VAE.decode; on the mesh in context."""
    check_latents(config, latents.shape)
    return _run(config, "decode_chunk", params, latents, None)[0]


def encode(config: VAEConfig, params: PyTree, video: Array) -> Gaussian:
    """Videos to the distribution of latents: `[b t h w 3] -> [b t' h' w' c]`, as VAE.encode; on the mesh in context."""
    check_video(config, video.shape)
    return _run(config, "encode_chunk", params, video, None)[0]


def decode_chunk(config: VAEConfig, params: PyTree, latents: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
    """VAE.decode_chunk on the mesh in context.

    The cache has the shapes that it has on one device. After the first chunk, frames are shared out if they divide.
    """
    check_latents(config, latents.shape)
    return _run(config, "decode_chunk", params, latents, cache, keep_cache=True)


def encode_chunk(config: VAEConfig, params: PyTree, video: Array, cache: PyTree = None) -> tuple[Gaussian, PyTree]:
    """VAE.encode_chunk on the mesh in context; see `decode_chunk`."""
    check_video(config, video.shape, start=cache is None)
    return _run(config, "encode_chunk", params, video, cache, keep_cache=True)


def score(config: DiscriminatorConfig, params: PyTree, video: Array) -> Array:
    """Scores of videos `[b t h w 3] -> [b t' h' w']`, as Discriminator; clips and rows shared out, frames whole."""
    stride = config.patch * 2 ** len(config.channel_mults)
    b, _, height = video.shape[:3]
    plan = plan_split(b, 1, 1 if height % stride else height // stride)
    if not plan.axes:
        return Discriminator(config).apply({"params": params}, video)
    specs, gather = _parameters(Discriminator(config), stride, params, plan)

    def part(params: PyTree, video: Array) -> Array:
        return Discriminator(config, plan.split).apply({"params": gather(params)}, video)

    rows = plan.whole_frames()
    return jax.shard_map(part, in_specs=(specs, rows), out_specs=rows)(params, video)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """batch: the mesh axes that share the batch. split: those that share a clip. front: latent frames of padding."""

    batch: Axes
    split: Split
    front: int = 0

    @property
    def axes(self) -> Axes:
        """All of them."""
        return self.batch + self.split.height + self.split.time

    def at_rest(self, shape: tuple[int, ...]) -> tuple[P, int | None]:
        """How videos or latents of this shape come and go: their PartitionSpec, and the dimension that stands in for
        frames: rows or columns. None: neither divides, and they come whole in time and go in parts of it."""
        height, width, num_shards = shape[2] // self.split.height_shards, shape[3], self.split.time_shards
        if height % num_shards == 0:
            return self._spec(None, self.split.height + self.split.time), 2
        if width % num_shards == 0:
            return self._spec(None, self.split.height, self.split.time), 3
        return self._spec(None, self.split.height), None

    def parts(self) -> P:
        """Of arrays whose frames are shared out."""
        return self._spec(self.split.time, self.split.height)

    def whole_frames(self) -> P:
        """Of arrays that lack no frame."""
        return self._spec(None, self.split.height)

    def _spec(self, *axes: Axes | None) -> P:
        return P(*(names or None for names in (self.batch, *axes)))


def plan_split(
    batch: int, latent_frames: int, rows: int, *, start: bool = True, sizes: dict[str, int] | None = None
) -> Plan:
    """How devices share clips, with as little work for each device as possible.

    Each mesh axis that the batch leaves free serves frames or rows, as the table of vdit/dist/rules.py allows, or
    neither. Rows must divide; a clip that starts is padded with frames. Of equal plans the first in the table's order
    is taken, with the fewest devices.

    Args:
        batch: clips.
        latent_frames: latent frames of each clip.
        rows: rows of the latents.
        start: the first frame of the clip is among the frames.
        sizes: mesh axis -> devices; None takes the mesh in context.

    Returns:
        The plan.
    """
    sizes = mesh_axes() if sizes is None else sizes
    spec, _ = partition_spec(("batch",), (batch,), sizes)
    taken = _axes(spec[0])
    free = [axis for axis in RULES["height"] if axis in sizes and axis not in taken]
    choices = [[name for name in ("time", "height") if axis in RULES[name]] + [None] for axis in free]
    plans = [_plan(taken, dict(zip(free, choice)), latent_frames, sizes) for choice in itertools.product(*choices)]

    def work(plan: Plan) -> tuple[int, int]:
        split = plan.split
        parts = split.time_shards * split.height_shards
        return (latent_frames + plan.front) * rows // parts, parts

    fit = [plan for plan in plans if rows % plan.split.height_shards == 0 and (start or plan.front == 0)]
    best = min(fit, key=work)
    if start and best.split.time:
        best = dataclasses.replace(best, split=dataclasses.replace(best.split, first=best.front))
    return best


def _plan(batch: Axes, serves: dict[str, str | None], latent_frames: int, sizes: dict[str, int]) -> Plan:
    """The plan in which each mesh axis serves "time", "height" or nothing."""
    time, height = (tuple(axis for axis in RULES[name] if serves.get(axis) == name) for name in ("time", "height"))
    time_shards, height_shards = (math.prod(sizes[axis] for axis in axes) for axes in (time, height))
    split = Split(time=time, time_shards=time_shards, height=height, height_shards=height_shards)
    return Plan(batch=batch, split=split, front=-latent_frames % time_shards)


def _axes(entry: str | Axes | None) -> Axes:
    """The mesh axes of one entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def mesh_axes() -> dict[str, int]:
    """Axes of more than one device of the mesh in context, with their sizes; {} without one."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    return {name: size for name, size, kind in kinds if kind == AxisType.Auto and size > 1}


def _run(
    config: VAEConfig, method: str, params: PyTree, x: Array, cache: PyTree, *, keep_cache: bool = False
) -> tuple[PyTree, PyTree]:
    """`encode_chunk` or `decode_chunk` on the mesh in context: (what it gives, the next cache, or None)."""
    encodes, start = method == "encode_chunk", cache is None
    b, frames, rows = x.shape[:3]
    if encodes:
        frames = -(-frames // config.temporal_stride)
        rows = rows // config.spatial_stride
    plan = plan_split(b, frames, rows, start=start)
    if not plan.axes:
        y, cache = VAE(config).apply({"params": params}, x, cache, method=method)
        return y, cache if keep_cache else None
    stride_in, stride_out = (config.temporal_stride, 1) if encodes else (1, config.temporal_stride)
    out_shape = _out_shape(config, x.shape, encodes)
    (in_spec, in_dim), (out_spec, out_dim) = plan.at_rest(x.shape), plan.at_rest(out_shape)
    half = "encoder" if encodes else "decoder"
    params = {half: params[half]}
    specs, gather = _parameters(VAE(config), config.spatial_stride, params, plan)

    def part(params: PyTree, x: Array, cache: PyTree) -> tuple[PyTree, PyTree]:
        x = _to_parts(plan, x, in_dim, stride_in)
        y, cache = VAE(config, plan.split).apply({"params": gather(params)}, x, cache, method=method)
        y = jax.tree.map(lambda y: _from_parts(plan, y, out_dim, stride_out), y)
        return y, cache if keep_cache else None

    in_specs = (specs, in_spec, plan.whole_frames())
    out_specs = (plan.parts() if out_dim is None else out_spec, plan.whole_frames())
    y, cache = jax.shard_map(part, in_specs=in_specs, out_specs=out_specs)(params, x, cache)
    if out_dim is None and plan.split.time:
        y = jax.tree.map(lambda y: _crop(plan, jax.lax.with_sharding_constraint(y, out_spec), stride_out), y)
    return y, cache


def _out_shape(config: VAEConfig, shape: tuple[int, ...], encodes: bool) -> tuple[int, ...]:
    """What `shape` becomes, but for frames and channels, which nothing depends on."""
    b, t, h, w, c = shape
    s = config.spatial_stride
    return (b, t, h // s, w // s, c) if encodes else (b, t, h * s, w * s, c)


def _to_parts(plan: Plan, x: Array, dim: int | None, stride: int) -> Array:
    """A device's frames, of what came with all frames and a part of dimension `dim`."""
    split = plan.split
    if not split.time:
        return x
    if split.first is not None:
        front = dataclasses.replace(split, first=plan.front).finer(stride).first
        x = jnp.concatenate([jnp.repeat(x[:, :1], front, axis=1), x], axis=1)
    if dim is not None:
        return jax.lax.all_to_all(x, split.time, split_axis=1, concat_axis=dim, tiled=True)
    frames = x.shape[1] // split.time_shards
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(split.time) * frames, frames, axis=1)


def _from_parts(plan: Plan, y: Array, dim: int | None, stride: int) -> Array:
    """The inverse; with no `dim` the parts stay as they are."""
    if not plan.split.time or dim is None:
        return y
    return _crop(plan, jax.lax.all_to_all(y, plan.split.time, split_axis=dim, concat_axis=1, tiled=True), stride)


def _crop(plan: Plan, y: Array, stride: int) -> Array:
    return y[:, plan.split.finer(stride).first or 0 :]


def _parameters(
    model: nn.Module, side: int, params: PyTree, plan: Plan
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """How each device holds a model's parameters (a tree of PartitionSpec), and what makes them whole inside.

    They lie as the table says. Made whole by an all-gather in the forward, their gradients are reduced and scattered
    to where they lie in the backward.
    """
    sizes = {axis: size for axis, size in mesh_axes().items() if axis in plan.axes}
    names = _names(model, side)

    def spec(path, leaf):
        axes = names.get(jax.tree_util.keystr(path))
        return P() if axes is None else partition_spec(axes, leaf.shape, sizes)[0]

    specs = jax.tree_util.tree_map_with_path(spec, params)

    def whole(leaf: Array, spec: P) -> Array:
        missing = set(plan.axes)
        for dim, entry in enumerate(spec):
            if entry:
                leaf = jax.lax.all_gather(leaf, _axes(entry), axis=dim, tiled=True)
                missing -= set(_axes(entry))
        return jax.lax.pcast(leaf, tuple(axis for axis in plan.axes if axis in missing), to="varying")

    return specs, lambda params: jax.tree.map(whole, params, specs)


@functools.cache
def _names(model: nn.Module, side: int) -> dict[str, tuple[str | None, ...]]:
    """Path of a parameter -> its logical axes, of a model of videos; side: of a video that it takes."""
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, side, side, 3)))["params"]
    is_box = lambda leaf: isinstance(leaf, meta.AxisMetadata)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)
    return {jax.tree_util.keystr(path): leaf.names for path, leaf in leaves if is_box(leaf)}
