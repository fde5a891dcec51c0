"""The device mesh: four named axes, of any sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vdit.dist.target import available_devices
from vdit.errors import ConfigError

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
