"""A TPU slice by name, "v5p:8x8x8", and what is known of its chips. jax is not imported here.

Sources of the figures, as read in 2026:
    peak, HBM bandwidth, ICI and DCN bandwidth of v5e, v5p, v6e, TPU7x: the pages of Cloud TPU's documentation,
        docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}, "Key specifications". ICI is given there for all links
        of a chip and both directions: v5p's 1200 GB/s are 6 links of 100 GB/s each way.
    v4: docs.cloud.google.com/tpu/docs/v4, and Jouppi et al. (2023), "TPU v4: an optically reconfigurable
        supercomputer", table 4: 6 links of 50 GB/s each way.
    which tori close, DCN of v4: "How to Scale Your Model" (Austin et al., 2025), part 2: v4, v5p and TPU7x close a
        dimension that is a multiple of 4 chips of a whole cube, v5e and v6e one of 16.
    usable memory: libtpu 0.0.42 refuses programs above it ("exceeds available HBM"); the rest is its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
import re

from vdit.errors import ConfigError, install_command

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of TPU chip; all figures are of a chip, not of a core.

    name: as in a topology's name ("v5p:2x2x2"). peak: bfloat16 FLOP/s. memory: bytes of HBM that programs may use.
    bandwidth: bytes/s of HBM. link: bytes/s of one ICI link in one direction. dimensions: of the torus; a chip has
    two links in each. closes: chips along a dimension that make it a ring: multiples of this.
    cores: devices that JAX sees on a chip (TPU7x: two, each with half of everything but the links).
    dcn: bytes/s between slices. compiler: options of the topology.
    """

    name: str
    peak: float
    memory: float
    bandwidth: float
    link: float
    dimensions: int
    closes: int
    dcn: float
    cores: int = 1
    compiler: tuple[tuple[str, str], ...] = ()


_ALL = (
    # JAX runs a v4 as one device, both cores together; the compiler is to be asked for that.
    Chip(name="v4", peak=275e12, memory=30.75 * GIB, bandwidth=1228e9, link=50e9, dimensions=3, closes=4, dcn=6.25e9,
         compiler=(("chip_config_name", "megacore"),)),
    Chip(name="v5e", peak=197e12, memory=15.75 * GIB, bandwidth=819e9, link=50e9, dimensions=2, closes=16, dcn=3.125e9),
    Chip(name="v5p", peak=459e12, memory=95.74 * GIB, bandwidth=2765e9, link=100e9, dimensions=3, closes=4,
         dcn=6.25e9),
    Chip(name="v6e", peak=918e12, memory=31.25 * GIB, bandwidth=1638e9, link=100e9, dimensions=2, closes=16,
         dcn=12.5e9),
    Chip(name="tpu7x", peak=2307e12, memory=2 * 94.75 * GIB, bandwidth=7380e9, link=100e9, dimensions=3, closes=4,
         dcn=12.5e9, cores=2),
)  # fmt: skip
CHIPS = {chip.name: chip for chip in _ALL}
ALIASES = {"7x": "tpu7x", "v7x": "tpu7x", "v5litepod": "v5e", "v5lite": "v5e", "ironwood": "tpu7x", "trillium": "v6e"}


# What the compiler asks of a machine without TPUs. The type is not that of the topology: any will do.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
CPU = "cpu"  # stands for simulated devices of this machine: "cpu:8"
_NAME = re.compile(r"(?:(\d+)\*)?([a-z0-9]+):(\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Chips in a torus of `shape`, `slices` times over. chip is None for simulated devices ("cpu:8")."""

    name: str
    chip: Chip | None
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """What JAX counts; a mesh has so many places."""
        return self.chips * (self.chip.cores if self.chip else 1)


def parse_topology(name: str) -> Topology:
    """ "v5p:8x8x8", "v5e:4x4", "2*v5p:4x4x4" (two slices) or "cpu:8"; ConfigError names what is wrong."""
    found = _NAME.fullmatch(name.strip().lower())
    if found is None:
        raise ConfigError(f"topology {name!r} cannot be read: write KIND:SHAPE, as in v5p:4x4x4, v6e:4x4 or {CPU}:8")
    slices, kind, shape = int(found[1] or 1), ALIASES.get(found[2], found[2]), tuple(map(int, found[3].split("x")))
    if kind == CPU:
        return Topology(name=name, chip=None, shape=shape)
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1)
        raise ConfigError(f"topology {name!r}: chip {kind!r} is unknown{f'; nearest: {near[0]}' if near else ''} "
                          f"(chips: {', '.join(CHIPS)})")  # fmt: skip
    chip = CHIPS[kind]
    _check_shape(name, chip, shape)
    if slices < 1:
        raise ConfigError(f"topology {name!r}: slices must be 1 or more")
    return Topology(name=name.strip().lower().replace(found[2], kind, 1), chip=chip, shape=shape, slices=slices)


def _check_shape(name: str, chip: Chip, shape: tuple[int, ...]) -> None:
    """Slices are made of hosts of 2x2 chips."""
    if len(shape) != chip.dimensions:
        example = "x".join(["4"] * chip.dimensions)
        raise ConfigError(f"topology {name!r}: {chip.name} is a torus of {chip.dimensions} dimensions, as in "
                          f"{chip.name}:{example}")  # fmt: skip
    if min(shape) < 1 or any(size % 2 for size in shape[:2]):
        near = [max(2, size + size % 2) if i < 2 else max(1, size) for i, size in enumerate(shape)]
        raise ConfigError(f"topology {name!r}: the first two sizes must be multiples of 2, hosts have 2x2 chips; "
                          f"nearest: {chip.name}:{'x'.join(map(str, near))}")  # fmt: skip


def child_environment(topology: Topology) -> dict[str, str]:
    """The environment of a process that plans for this topology: set before jax is imported."""
    if topology.chip is None:
        flags = os.environ.get("XLA_FLAGS", "")
        count = f"--xla_force_host_platform_device_count={topology.devices}"
        return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} {count}".strip()}
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"topology {topology.name} needs the TPU compiler, and libtpu is not installed: "
                          f"{install_command('tpu')} (it needs no TPU)")  # fmt: skip
    # A profiler's or launcher's own settings would send libtpu to look for real chips.
    rest = {key: value for key, value in os.environ.items() if not key.startswith(("TPU_", "MEGASCALE_"))}
    return rest | ENVIRONMENT


def devices_of(topology: Topology) -> list:
    """The devices to make a mesh of, in a process with `child_environment`."""
    import jax

    if topology.chip is None:
        return jax.devices()[: topology.devices]
    from jax.experimental import topologies

    options = dict(topology.chip.compiler) | ({"num_slices": topology.slices} if topology.slices > 1 else {})
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # libtpu's own: its shapes are not published as a list
        raise ConfigError(f"topology {topology.name} is not one that libtpu knows: {str(error)[:300]}") from error
