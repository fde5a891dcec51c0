"""How long Muon takes to make a matrix orthogonal: vdit's iterations beside optax's, in turn.

    python -m tools.bench.muon [--repeats 50]

Prints, for shapes of the shipped experiments, milliseconds of both (medians), their ratio, and how far apart the
results are over the largest value.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import scale_by_muon

from vdit.experiment.optimizer import orthogonalize

SHAPES = {
    "3x3 kernel, 64 to 64": (576, 64),
    "3x3 kernel, 128 to 128": (1152, 128),
    "3x3 kernel, 192 to 192": (1728, 192),
    "MLP, 96 to 384": (96, 384),
    "attention, 96 to 96": (96, 96),
}


def optaxs(x: jax.Array) -> jax.Array:
    """optax's Muon without momentum."""
    muon: optax.GradientTransformation = scale_by_muon(ns_steps=5, beta=0.0, nesterov=False)
    return muon.update(x, muon.init(x))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="of each, in turn; default: %(default)s")
    options = parser.parse_args()
    sides = {"vdit": jax.jit(lambda x: orthogonalize(x, 5)), "optax": jax.jit(optaxs)}
    print(f"{'':24}{'vdit':>10}{'optax':>10}{'ratio':>8}{'apart':>10}")
    for name, shape in SHAPES.items():
        x = jax.random.normal(jax.random.key(0), shape)
        results = {side: jax.block_until_ready(call(x)) for side, call in sides.items()}
        seconds = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, call in sides.items():
                began = time.perf_counter()
                jax.block_until_ready(call(x))
                seconds[side].append(time.perf_counter() - began)
        ours, theirs = (1e3 * float(np.median(seconds[side])) for side in ("vdit", "optax"))
        apart = float(jnp.abs(results["vdit"] - results["optax"]).max() / jnp.abs(results["optax"]).max())
        print(f"{name:24}{ours:7.2f} ms{theirs:7.2f} ms{ours / theirs:8.2f}{apart:10.1e}")


if __name__ == "__main__":
    main()
