"""What a program is compiled for: the mesh in context says it, which need not be the machine that compiles."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import jax
from jax.sharding import Mesh

from vdit.errors import ConfigError, reason


def platform() -> str:
    """"cpu", "gpu" or "tpu": that of the mesh in context (`jax.set_mesh`), without one that of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else _common(device.platform)


def platform_of(mesh: Mesh) -> str:
    """The platform of a mesh's devices; they may be a topology's, which are not there to be used."""
    return _common(mesh.devices.flat[0].platform)


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
            "the device, as jax[cuda12] or jax[tpu]"
        ) from None


def _common(platform: str) -> str:
    return "gpu" if platform in ("cuda", "rocm") else platform
