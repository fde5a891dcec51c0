"""What a case of tools/bench/peers.py is: the same work three ways, on the same weights and inputs."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdit.dist.mesh import compiler_options
from vdit.pretrained.model import one_device
from vdit.pretrained.tensors import TensorFiles, TensorInfo
from vdit.pretrained.weights import Rule, load
from vdit.train.state import abstract_params
from vdit.types import PyTree

GPU = jax.default_backend() == "gpu"
DTYPE = "bfloat16" if GPU else "float32"
# On a CPU programs are short: layers one after the other save the copies of weights that a scan makes.
SCAN = GPU
TOLERANCE = 5e-2 if GPU else 1e-3  # bfloat16 rounds at 4e-3, float32 sums in another order
Run = Callable[[], Any]


def machine() -> dict:
    """What the table names: device, dtype and versions."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "diffusers", "transformers")}
    device = jax.devices()[0]
    return {"device": device.device_kind if GPU else "CPU", "dtype": DTYPE, "matrix_flops": matrix_flops(), **versions}


def matrix_flops(runs: int = 10) -> dict[str, float]:
    """FLOP/s of a square matrix product in the dtype of the bench, of both sides: what can be had here at best."""
    import torch

    side = 8192 if GPU else 1536
    a = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    ours, theirs = jnp.asarray(a, DTYPE), to_torch(a)
    product = jax.jit(jnp.matmul, compiler_options=compiler_options())

    def by_torch():
        out = theirs @ theirs
        if GPU:
            torch.cuda.synchronize()
        return out

    sides = {"vdit": lambda: jax.block_until_ready(product(ours, ours)), "torch": by_torch}
    return {name: 2.0 * side**3 / _fastest(run, runs) for name, run in sides.items()}


def _fastest(run: Run, runs: int) -> float:
    run()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def accelerator_peak(side: str) -> int | None:
    """Peak bytes on the accelerator of this process, None where there is none."""
    if not GPU:
        return None
    if side == "ours":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


def torch_module(make: Callable[[], Any]):
    """A reference module with every parameter sampled again, on the device, in the dtype of the bench."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    with torch.device("cuda" if GPU else "cpu"):  # billions of numbers are drawn much faster on a GPU
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


def load_module(module, rules: list[Rule], init: Callable) -> PyTree:
    """A torch module's weights as our parameters, in the dtype of the bench."""
    tensors = {name: numpy_of(value) for name, value in module.state_dict().items()}
    info = {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    files = TensorFiles(path=Path("module"), info=info, largest_file=0, reader=tensors.__getitem__)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), abstract_params(init, one_device())
    )
    return load(rules, files, abstract, dtype=DTYPE)


def random_params(init: Callable) -> PyTree:
    """Parameters of the same shapes, where only memory is measured."""
    shapes = abstract_params(init, one_device())
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, DTYPE), shapes)


class Case:
    """One row: the same work three ways.

    what: its size in words. flops: of one run. only: one of the sides, where its memory alone is measured.
    """

    what: str
    flops: float = 0.0
    tolerance = TOLERANCE

    def __init__(self, only: str | None = None):
        self.error = 0.0
        self.only = only
        self.random = np.random.default_rng(0)
        self.module = None if only == "ours" else torch_module(self.make)

    def make(self):
        """The torch module."""
        raise NotImplementedError

    def params(self, rules: list[Rule], init: Callable) -> PyTree:
        return random_params(init) if self.module is None else load_module(self.module, rules, init)

    def normal(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def ours(self) -> Run:
        raise NotImplementedError

    def eager(self) -> Run:
        return self.theirs(self.module)

    def compile(self) -> Run:
        import torch

        return self.theirs(torch.compile(self.module))

    def theirs(self, module) -> Run:
        raise NotImplementedError

    def compare(self, ours: Any, theirs: Any, side: str) -> None:
        """Stops the bench unless both sides gave the same numbers: before anything is timed."""
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        scale = max(float(np.abs(theirs).max()), 1.0)
        if ours.shape != theirs.shape:
            raise SystemExit(f"peers: {self.what}: vdit gives {ours.shape}, {side} {theirs.shape}")
        gap = float(np.abs(ours - theirs).max()) / scale
        if not gap <= self.tolerance:
            raise SystemExit(f"peers: {self.what}: {side} differs by {gap:.1e}, more than {self.tolerance:.0e}")
        self.error = max(self.error, gap)


class OnDevice:
    """Runs once and gives the result as numpy; `launch` leaves it on the device and waits until it is there."""

    def __init__(self, launch: Run):
        self.launch = launch

    def __call__(self) -> np.ndarray:
        return numpy_of(self.launch())


def run_jax(function: Callable, *arguments) -> Run:
    """A jitted function of arguments that lie on the device."""
    jitted = jax.jit(function, compiler_options=compiler_options())
    arguments = jax.device_put(arguments)
    return OnDevice(lambda: jax.block_until_ready(jitted(*arguments)))


def no_grad(function: Callable) -> Run:
    """A function of torch, without gradients."""

    def launch():
        import torch

        with torch.no_grad():
            out = function()
        if GPU:
            torch.cuda.synchronize()
        return out

    return OnDevice(launch)
