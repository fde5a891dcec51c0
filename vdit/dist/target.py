"""What a program is compiled for: the mesh in context says it, which need not be the machine that compiles."""

from __future__ import annotations

import jax
from jax.sharding import Mesh


def platform() -> str:
    """"cpu", "gpu" or "tpu": that of the mesh in context (`jax.set_mesh`), without one that of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else _common(device.platform)


def platform_of(mesh: Mesh) -> str:
    """The platform of a mesh's devices; they may be a topology's, which are not there to be used."""
    return _common(mesh.devices.flat[0].platform)


def _common(platform: str) -> str:
    return "gpu" if platform in ("cuda", "rocm") else platform
