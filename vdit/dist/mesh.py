"""The device mesh: four named axes of any sizes, the platform it is of, and which rows of a batch each host reads.

A batch is split over the mesh's batch axes into groups of devices. Hosts whose devices hold the same groups (two hosts
that share the tokens of a row, for instance) read the same rows; others read different ones. A HostShare fixes what
each reads, so that a global batch is the same batch whatever the number of hosts: share `index` of `count` gives rows
[index * B / count, (index + 1) * B / count) of it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Sequence
from importlib import metadata

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vdit.dist.rules import RULES
from vdit.errors import ConfigError, reason


def platform() -> str:
    """"cpu", "gpu" or "tpu": that of the mesh in context (`jax.set_mesh`), without one that of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else _common(device.platform)


def platform_of(mesh: Mesh) -> str:
    """The platform of a mesh's devices; they may be a topology's, which are not there to be used."""
    return _common(mesh.devices.flat[0].platform)


def compiler_options(target: str | None = None) -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=...)` of a model; None where none help.

    platform: "cpu", "gpu" or "tpu"; that of the mesh in context when None (vdit/dist/mesh.py). On CPU, XLA hands
    parts of a program to a library. Left to it are sums alone: convolutions are 2 to 3 times faster without it in
    their gradients, and matrix products 5 to 15% faster; but without it a bias's gradient takes longer than the
    convolution's.
    """
    if (target or platform()) != "cpu":
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def available_devices() -> list[jax.Device]:
    """jax's devices, of all hosts; ConfigError where the platform that JAX_PLATFORMS asks for is not there."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax asserts where it leaves out a platform for good
        plugins = {plugin.name for plugin in metadata.entry_points(group="jax_plugins")}
        plugins |= {"tpu"} if importlib.util.find_spec("libtpu") else set()
        why = f" ({reason(error)})" if error.args else ""
        raise ConfigError(
            f"JAX_PLATFORMS={jax.config.jax_platforms or ''}: there is no such device here{why}; jax is installed here "
            f"for {', '.join(sorted({'cpu'} | plugins))}: unset JAX_PLATFORMS to take what is there, or install jax for "
            "the device, as jax[cuda13] or jax[tpu]"
        ) from None


def _common(platform: str) -> str:
    return "gpu" if platform in ("cuda", "rocm") else platform


AXES = ("data", "fsdp", "sequence", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices stand along each mesh axis; at most one axis may be -1: all that are left.

    data: copies of the model, each with its share of the batch.
    fsdp: the batch is shared out here too, and so are the parameters.
    sequence: the tokens of a row are shared out.
    tensor: heads and MLP columns are shared out.
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = {axis: getattr(self, axis) for axis in AXES}
        for axis, size in sizes.items():
            if size != -1 and size < 1:
                raise ConfigError(f"mesh.{axis}={size}: must be 1 or more, or -1 for all that are left")
        if list(sizes.values()).count(-1) > 1:
            free = [axis for axis, size in sizes.items() if size == -1]
            raise ConfigError(f"mesh axes {free} are all -1: give all but one of them a size")

    def shape(self, devices: int) -> tuple[int, ...]:
        """The sizes of the four axes on so many devices."""
        sizes = [getattr(self, axis) for axis in AXES]
        fixed = math.prod(size for size in sizes if size != -1)
        if -1 in sizes:
            sizes[sizes.index(-1)] = devices // fixed
        if math.prod(sizes) != devices or devices < fixed:
            asked = ", ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)
            raise ConfigError(f"mesh of {asked} does not fit {devices} devices: sizes must multiply to that")
        return tuple(sizes)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all of them if None) with the axes of `AXES`.

    On TPUs the axes lie along the torus of chips as well as they can, where need be with a part of one of its
    dimensions each. Slices, which only the data center's network connects, lie along `data`. Axis types are Auto:
    XLA places what lies between the named shardings. (`jax.make_mesh` defaults to Explicit, which refuses patchify's
    reshapes and table look-ups.)
    """
    config = config or MeshConfig()
    devices = available_devices() if devices is None else devices
    shape = config.shape(len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    elif shape[0] % slices:
        raise ConfigError(f"mesh.data={shape[0]} must be a multiple of the {slices} slices: they lie along it")
    else:
        inside, outside = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inside, outside, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@dataclasses.dataclass(frozen=True)
class HostShare:
    """One share of `count` equal shares of every batch.

    blocks: the batch groups of the mesh that this host's devices hold, of count * len(blocks) in all; None: the
    index-th block. A TPU's mesh follows the wires, so a host's blocks need not be neighbours in the global array
    (a 2x2 host of a 4x4 slice holds groups 0, 1, 4, 5): its rows go to its own blocks all the same, and the global
    array is then a permutation of the batch in the order of the data.
    """

    index: int = 0
    count: int = 1
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"share {self.index} of {self.count}: the index must be 0 to {self.count - 1}")

    def rows(self, size: int) -> tuple[int, int]:
        """[first, last): the rows that the share gives of a batch of `size` rows, in the order of the data."""
        if size % self.count:
            raise ConfigError(f"a batch of {size} rows cannot be shared by {self.count} groups of hosts: "
                              f"make it a multiple of {self.count}")
        each = size // self.count
        return self.index * each, (self.index + 1) * each

    def local(self, rows: slice, size: int) -> slice:
        """Where rows of a global array [size ...], as one device asks for them, lie in this host's [size / count ...].

        rows: within the blocks of this host, as `jax.make_array_from_callback` asks.
        """
        first, last, _ = rows.indices(size)
        blocks = self.blocks or (self.index,)
        own = size // (self.count * len(blocks))
        at = {block: place for place, block in enumerate(blocks)}
        places = [at.get(block) for block in range(first // own, -(-last // own))]
        if None in places or any(b - a != 1 for a, b in itertools.pairwise(places)):
            raise ConfigError(f"rows {first} to {last} of {size} are not those of share {self.index} of {self.count} "
                              f"(blocks {blocks} of {own} rows): split the batch over {RULES['batch']}")
        start = places[0] * own + first % own
        return slice(start, start + last - first)


def host_share(mesh: Mesh, process: int | None = None) -> HostShare:
    """The share of one host (this one if `process` is None) of batches over `mesh`.

    mesh: its devices need only a `process_index`, so that a topology's mesh will do. Refused are meshes where hosts
    hold batch groups in part the same, or in different numbers: no equal shares exist then.
    """
    process = jax.process_index() if process is None else process
    order = [mesh.axis_names.index(axis) for axis in RULES["batch"] if axis in mesh.axis_names]
    grid = np.moveaxis(mesh.devices, order, range(len(order)))
    groups = grid.reshape(int(np.prod(grid.shape[: len(order)])), -1)
    held: dict[int, set[int]] = {}
    for group, devices in enumerate(groups):
        for device in devices:
            held.setdefault(device.process_index, set()).add(group)
    if process not in held:
        raise ConfigError(f"host {process} holds no device of the mesh {dict(mesh.shape)}: give the mesh all devices")
    blocks = sorted({tuple(sorted(groups)) for groups in held.values()})
    if sum(map(len, blocks)) != len(groups) or len({len(block) for block in blocks}) > 1:
        raise ConfigError(f"mesh {dict(mesh.shape)}: its hosts hold the batch groups {_shown(blocks)}; each group must "
                          "be held by the same hosts as its neighbours on them: choose data * fsdp so that hosts hold "
                          "whole groups, or groups whole hosts")
    own = tuple(sorted(held[process]))
    return HostShare(blocks.index(own), len(blocks), own)


def _shown(blocks: list[tuple[int, ...]]) -> str:
    """The first two that differ in length or share a group only in part."""
    for a in blocks:
        for b in blocks:
            if a != b and (len(a) != len(b) or set(a) & set(b)):
                return f"{list(a)} and {list(b)}"
    return str([list(block) for block in blocks])
