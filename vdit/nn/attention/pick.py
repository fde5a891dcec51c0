"""Which kernel: by what the program is compiled for, and by size.

| target | few scores a head | otherwise |
| --- | --- | --- |
| CPU | dense | chunked, one head after the other |
| TPU | dense | splash (Pallas), blocks without a common clip left out |
| GPU | dense | triton (Pallas), the same; chunked where a head is too wide for it |

All of them know times as well: splash by putting keys in order first (vdit/nn/attention/splash.py).

cuDNN is never picked: it knows no clip ids, and would silently read across the clips of a packed row.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from vdit.errors import ShapeError

KERNELS = ("dense", "chunked", "splash", "triton")
WIDEST_TRITON_HEAD = 128
# From this many scores a head on: on a CPU they leave the cache, elsewhere they are worth a kernel of their own.
MANY_SCORES = 512 * 512


def pick(implementation: str | None, platform: str, n: int, m: int, head_dim: int) -> str:
    """The name of the kernel for n queries and m keys on one device; `implementation` where it is given."""
    if implementation is not None:
        if implementation not in KERNELS:
            raise ShapeError(f"attention implementation {implementation!r} is unknown: use one of {sorted(KERNELS)}")
        return implementation
    if n * m < MANY_SCORES:
        return "dense"
    if platform == "gpu" and head_dim > WIDEST_TRITON_HEAD:
        return "chunked"
    return {"tpu": "splash", "gpu": "triton"}.get(platform, "chunked")


def kernel(name: str) -> ModuleType:
    """The module of a kernel, imported when it is first used: Pallas takes a quarter of a second."""
    return importlib.import_module(f"vdit.nn.attention.{name}")
