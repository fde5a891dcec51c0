"""The cases of tools/bench/peers.py: what both sides compute, at which size.

A case has three ways to the same numbers, `ours()`, `eager()` and `compile()`: each gives a function that runs
once and returns when the result is there, as float32 numpy. Weights are drawn by torch and loaded by vdit
through the same weight maps that load public checkpoints.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

GPU = jax.default_backend() == "gpu"
DTYPE = "bfloat16" if GPU else "float32"
TOLERANCE = 5e-2 if GPU else 1e-3  # bfloat16 rounds at 4e-3, float32 sums in another order
Run = Callable[[], Any]


def machine() -> dict:
    """What the table names: device, dtype and versions."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "diffusers", "transformers")}
    device = jax.devices()[0]
    return {"device": device.device_kind if GPU else "CPU", "dtype": DTYPE, **versions}


def accelerator_peak(side: str) -> int | None:
    """Peak bytes on the accelerator of this process, None where there is none."""
    if not GPU:
        return None
    if side == "ours":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


def torch_module(make: Callable[[], Any]):
    """A reference module with every parameter drawn anew, on the device, in the dtype of the bench."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    module = make()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and parameter.ndim == 1:
                parameter.uniform_(0.8, 1.2)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    return module.to("cuda" if GPU else "cpu", getattr(torch, DTYPE)).eval()


def to_torch(x: np.ndarray):
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(x)).to("cuda" if GPU else "cpu")
    return tensor.to(getattr(torch, DTYPE)) if tensor.is_floating_point() else tensor


def numpy_of(x) -> np.ndarray:
    """The float32 numbers of a torch tensor or of a JAX array; waits for them."""
    return x.detach().float().cpu().numpy() if hasattr(x, "detach") else np.asarray(x, np.float32)


class StateDict:
    """A module's tensors in the form in which the loader reads files."""

    def __init__(self, module):
        self._tensors = {name: value.detach().float().cpu().numpy() for name, value in module.state_dict().items()}
        self.info = {name: (tensor.shape, tensor.dtype) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name]


@dataclasses.dataclass(kw_only=True)
class Case:
    """One row. what: its size in words. flops: of one run, 0 where it was not counted. error: filled by compare."""

    what: str
    flops: float = 0.0
    error: float = 0.0
    tolerance: float = TOLERANCE

    def ours(self) -> Run:
        raise NotImplementedError

    def eager(self) -> Run:
        raise NotImplementedError

    def compile(self) -> Run:
        raise NotImplementedError

    def compare(self, ours: Any, theirs: Any, side: str) -> None:
        """Raises unless both sides gave the same numbers: before anything is timed."""
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        scale = max(float(np.abs(theirs).max()), 1.0)
        gap = float(np.abs(ours - theirs).max()) / scale
        if ours.shape != theirs.shape or not gap <= self.tolerance:
            raise SystemExit(f"peers: {self.what}: {side} differs by {gap:.1e}, more than {self.tolerance:.0e}")
        self.error = max(self.error, gap)
