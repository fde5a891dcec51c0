"""Seconds of a function whose results lie on the device, and whether the device still answers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def seconds(run: Callable[[], Any], *, repeats: int = 7, budget: float = 3.0) -> dict[str, float]:
    """Median, fastest and first of some runs; the first compiles. budget: seconds after which no more are timed."""
    began = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - began
    jax.block_until_ready(run())
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < repeats and (not taken or time.perf_counter() - start < budget):
        began = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - began)
    return {"seconds": statistics.median(taken), "fastest": min(taken), "first": first, "runs": len(taken)}


def healthy() -> bool:
    """Whether the device still computes: after an illegal access nothing does, in this process."""
    try:
        return float(jnp.sum(jnp.arange(8.0))) == 28.0
    except Exception:  # whatever it raises, this process is of no more use
        return False


def gap(ours: Any, want: Any) -> float:
    """|ours - want| / |want|, in float32."""
    ours, want = (jnp.asarray(x, jnp.float32) for x in (ours, want))
    return float(jnp.linalg.norm(ours - want) / jnp.maximum(jnp.linalg.norm(want), 1e-30))


def memory() -> dict[str, float]:
    """Peak GiB of the device in this process; {} where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_gib": round(stats["peak_bytes_in_use"] / 2**30, 2)} if "peak_bytes_in_use" in stats else {}
