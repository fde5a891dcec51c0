"""Stage 1: what is there, what it does at best, and whether the kernels are right and fast."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accel import entry
from accel.expected import reached
from accel.record import Probe
from accel.timing import gap, healthy, memory, seconds

__all__ = ["healthy", "probes", "reached"]

PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu13",
    "flax",
    "optax",
    "orbax-checkpoint",
    "torch",
    "diffusers",
    "triton",
    "numpy",
)


def probes(dry: bool, out: Path, until: float) -> list[Probe]:
    del out, until
    side = 256 if dry else 8192
    product = dict(flops=2.0 * side**3, share=0.8)
    found = [
        Probe(name="device", what="device, driver, versions", run=device),
        Probe(name="matmul-bf16", what=f"{side}^3 product, bf16", run=lambda: matmul(side, "bfloat16"), **product),
        Probe(
            name="copy",
            what="x + 1 of 2 GiB",
            run=lambda: copy(2**16 if dry else 2**29),
            kind="f32",
            share=0.85,
            bytes=8.0 * (2**16 if dry else 2**29),
        ),
    ]
    found += [
        _attention_right(dry, *case)
        for case in (
            (128, "bfloat16", False),
            (72, "bfloat16", False),
            (64, "bfloat16", True),
            (64, "float32", True),
        )
    ]
    found += [
        Probe(
            name=f"leakage-{kernel}",
            what=f"{kernel}: gradients across clips, exactly 0",
            bound=0.0,
            run=functools.partial(leakage, kernel, dry),
        )
        for kernel in (("triton", "chunked") if entry.GPU else ("chunked", "triton"))
    ]
    tokens = 256 if dry else 8192
    packed = functools.partial(_attention_speed, tokens, heads=2 if dry else 12, head_dim=16 if dry else 128)
    found += [
        packed("triton", clips=1),
        packed("triton", clips=1, gradient=True),
        packed("triton", clips=4),
        packed("chunked", clips=1),
        packed("dense", clips=1),
        *(_cudnn(dry, mask) for mask in ("none", "lengths", "bias")),
    ]
    shape, features = ((1, 3, 8, 8, 16), 16) if dry else ((1, 21, 120, 208, 192), 192)
    found += [_convolution(way, shape, features, gradient) for gradient in (False, True) for way in ("native", "taps")]
    found += [_linear(kind, dry) for kind in (None, "int8", "fp8")]
    found += [
        Probe(
            name="matmul-fp8",
            what=f"{side}^3 product, fp8 e4m3",
            run=lambda: matmul(side, "float8_e4m3fn"),
            kind="fp8",
            **product | {"share": 0.7},
        ),
        Probe(
            name="matmul-tf32",
            what=f"{side}^3 product, float32",
            run=lambda: matmul(side, "float32"),
            kind="tf32",
            **product | {"share": 0.7},
        ),
    ]
    return found


def device() -> dict[str, Any]:
    """Names and versions; what nvidia-smi says."""
    one = jax.devices()[0]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    smi = ""
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"
        done = subprocess.run(["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, timeout=20)
        smi = done.stdout + done.stderr
    return {
        "kind": one.device_kind,
        "platform": one.platform,
        "count": jax.device_count(),
        "versions": versions,
        "platform_version": getattr(one.client, "platform_version", ""),
        "nvidia_smi": smi,
        "capability": str(getattr(one, "compute_capability", "")),
        "note": one.device_kind,
    }


def matmul(side: int, dtype: str) -> dict[str, Any]:
    """Both operands contracted along their last axis, as float8 units want it."""
    a, b = (_normal(i, (side, side), "float32").astype(dtype) for i in range(2))
    out = jnp.float32 if dtype == "float32" else jnp.bfloat16
    product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=out))
    text = product.lower(a, b).compile().as_text()
    found = seconds(lambda: product(a, b), repeats=20)
    error = gap(product(a, b)[:64], jnp.dot(a[:64].astype(jnp.float32), b.astype(jnp.float32).T, precision="highest"))
    in_fp8 = "f8e4m3" in text and ("cublas" in text or "triton" in text)
    return found | {
        "error": error,
        "library": "cublas" if "cublas" in text else "triton" if "triton" in text else "XLA",
        **({"taken_in_fp8": in_fp8} if "float8" in dtype else {}),
    }


def copy(count: int) -> dict[str, Any]:
    x = _normal(0, (count,), "float32")
    return seconds(lambda: _plus_one(x), repeats=10)


@jax.jit
def _plus_one(x: jax.Array) -> jax.Array:
    return x + 1


def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.jit(lambda: jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype))()


def _clips(tokens: int, clips: int) -> jax.Array:
    """Clips of uneven lengths, and some padding where there are several: int32 [1 n]."""
    if clips == 1:
        return jnp.ones((1, tokens), jnp.int32)
    ends = np.linspace(0, tokens * 0.95, clips + 1).astype(int)[1:] - 3
    ids = 1 + np.searchsorted(ends, np.arange(tokens), side="right")
    return jnp.asarray(np.where(ids > clips, 0, ids)[None], jnp.int32)


def _given(tokens: int, heads: int, head_dim: int, dtype: str) -> list[jax.Array]:
    return [_normal(i, (1, tokens, heads, head_dim), dtype) for i in range(4)]


def _with_gradient(kernel: str, ids: jax.Array, times: jax.Array | None = None):
    more = {} if times is None else {"q_time": times, "k_time": times}

    def run(q, k, v, weight):
        call = lambda q, k, v: entry.attention(q, k, v, ids, ids, implementation=kernel, **more)  # noqa: E731
        out, back = jax.vjp(call, q, k, v)
        return out, *back(weight.astype(out.dtype))

    return run


def _attention_right(dry: bool, head_dim: int, dtype: str, times: bool) -> Probe:
    tokens, heads = (96, 2) if dry else (1000, 4)

    def run() -> dict[str, Any]:
        given, ids = _given(tokens, heads, head_dim, dtype), _clips(tokens, 3)
        time = (jnp.arange(tokens)[None] // 37 % 9).astype(jnp.int32) if times else None
        ours = jax.jit(_with_gradient("triton", ids, time))(*given)
        with jax.default_matmul_precision("highest"):
            want = jax.jit(_with_gradient("dense", ids, time))(*(x.astype(jnp.float32) for x in given))
        gaps = {name: gap(a, b) for name, a, b in zip(("out", "dq", "dk", "dv"), ours, want)}
        return {"error": max(gaps.values()), **gaps, **memory()}

    name = f"triton-{head_dim}-{dtype}" + ("-times" if times else "")
    return Probe(
        name=name,
        what="Triton attention, forward and gradients, against dense in float32",
        run=run,
        bound=2e-2 if dtype == "bfloat16" else 2e-3,
    )


def leakage(kernel: str, dry: bool) -> dict[str, Any]:
    """The largest gradient of one clip's output by what another clip, or padding, holds."""
    tokens = 96 if dry else 1000
    q, k, v, weight = _given(tokens, 2, 64, "float32" if dry else "bfloat16")
    ids = _clips(tokens, 3)
    run, worst = jax.jit(_with_gradient(kernel, ids)), 0.0
    for clip in (0, 1, 2, 3):
        mine = (ids == clip)[..., None, None]
        _, *gradients = run(q, k, v, jnp.where(mine, weight, 0))
        worst = max(worst, *(float(jnp.max(jnp.where(mine, 0, jnp.abs(x)).astype(jnp.float32))) for x in gradients))
    return {"error": worst}


def _attention_speed(tokens, kernel, *, heads, head_dim, clips: int, gradient: bool = False) -> Probe:
    def run() -> dict[str, Any]:
        ids = _clips(tokens, clips)
        given = _given(tokens, heads, head_dim, "bfloat16")
        function = _with_gradient(kernel, ids)
        function = (
            function if gradient else (lambda q, k, v, w: entry.attention(q, k, v, ids, ids, implementation=kernel))
        )
        jitted = jax.jit(function)
        return seconds(lambda: jitted(*given)) | memory()

    name = f"attention-{kernel}-{tokens}" + (f"-{clips}-clips" if clips > 1 else "") + ("-gradient" if gradient else "")
    scores = 4.0 * heads * head_dim * tokens * tokens / clips
    return Probe(
        name=name,
        what=f"{kernel}, {tokens:,} tokens, {clips} clips, {heads} heads of {head_dim}",
        run=run,
        flops=scores * (3.5 if gradient else 1),
        bytes=8.0 * tokens * heads * head_dim,
        share={"triton": 0.4, "chunked": 0.1, "dense": 0.1}[kernel],
    )


def _cudnn(dry: bool, mask: str) -> Probe:
    """vdit does not use it: it has no clips. Whether it takes lengths or a bias, and is right and how fast then."""
    tokens, heads, head_dim = (64, 2, 16) if dry else (8192, 12, 128)

    def run() -> dict[str, Any]:
        q, k, v, _ = _given(tokens, heads, head_dim, "bfloat16")
        more: dict[str, Any] = {}
        if mask == "lengths":
            more = {
                name: jnp.full((1,), tokens - 5, jnp.int32) for name in ("query_seq_lengths", "key_value_seq_lengths")
            }
        if mask == "bias":
            ids = _clips(tokens, 3)
            same = ids[:, None, :, None] == ids[:, None, None, :]
            more = {"bias": jnp.where(same, 0, -1e9).astype(jnp.bfloat16)}
        call = lambda way: lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation=way, **more)  # noqa: E731
        ours = jax.jit(call("cudnn" if entry.GPU else "xla"))
        found = seconds(lambda: ours(q, k, v))
        short = slice(0, min(tokens, 512)) if mask == "none" else slice(0, tokens - 5)
        error = gap(ours(q, k, v)[:, short], jax.jit(call("xla"))(q, k, v)[:, short])
        gradient = jax.jit(jax.grad(lambda q: jnp.sum(ours(q, k, v).astype(jnp.float32) ** 2)))
        return found | {"error": error, "gradient_finite": bool(jnp.all(jnp.isfinite(gradient(q))))}

    return Probe(
        name=f"cudnn-{mask}",
        what=f"cuDNN attention, {tokens:,} tokens, mask: {mask}",
        run=run,
        bound=2e-2,
        flops=4.0 * heads * head_dim * tokens**2,
        bytes=8.0 * tokens * heads * head_dim,
        share=0.6,
    )


def _convolution(way: str, shape: tuple[int, ...], features: int, gradient: bool) -> Probe:
    def run() -> dict[str, Any]:
        x = _normal(0, shape, "bfloat16")
        kernel = _normal(1, (3, 3, 3, shape[-1], features), "bfloat16") * 0.02
        call = lambda way: lambda x, k: entry.conv(x, k, padding=((2, 0), (1, 1), (1, 1)), formulation=way)  # noqa: E731
        if gradient:
            function = lambda way: jax.grad(lambda x, k: jnp.sum(call(way)(x, k).astype(jnp.float32) ** 2), (0, 1))  # noqa: E731
        else:
            function = call
        ours, other = (jax.jit(function(name)) for name in (way, "taps" if way == "native" else "native"))
        found = seconds(lambda: ours(x, kernel))
        pairs = zip(jax.tree.leaves(ours(x, kernel)), jax.tree.leaves(other(x, kernel)))
        return found | {"error": max(gap(a, b) for a, b in pairs)} | memory()

    values = float(np.prod(shape))
    return Probe(
        name=f"conv3d-{way}" + ("-gradient" if gradient else ""),
        run=run,
        bound=3e-2,
        share=0.5,
        what=f"3x3x3 convolution of {'x'.join(map(str, shape))}, {way}" + (", gradients" if gradient else ""),
        flops=2.0 * 27 * values * features * (3 if gradient else 1),
        bytes=2.0 * (values + values / shape[-1] * features) * (3 if gradient else 1),
    )


def _linear(kind: str | None, dry: bool) -> Probe:
    tokens, width, features = (64, 64, 96) if dry else (4096, 1536, 8960)

    def run() -> dict[str, Any]:
        x = _normal(0, (tokens, width), "bfloat16")
        apply, params = entry.linear(kind, features, x)
        plain, whole = entry.linear(None, features, x)
        jitted = jax.jit(apply)
        return seconds(lambda: jitted(params, x), repeats=20) | {"error": gap(jitted(params, x), plain(whole, x))}

    return Probe(
        name=f"linear-{kind or 'bf16'}",
        what=f"dense layer {width} to {features}, {tokens} tokens, kernel as {kind or 'bf16'}",
        run=run,
        bound=0.06,
        flops=2.0 * tokens * width * features,
        share=0.5,
        bytes=2.0 * tokens * (width + features) + width * features * (1 if kind else 2),
    )
