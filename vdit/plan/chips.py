"""What is known of TPU chips: figures as Google publishes them, and the memory that the compiler grants.

Sources, as read in 2026:
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
