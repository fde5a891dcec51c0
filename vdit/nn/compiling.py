"""What XLA is told when a model is compiled."""

from __future__ import annotations

from vdit.dist.mesh import platform as target


def compiler_options(platform: str | None = None) -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=...)` of a model; None where none help.

    platform: "cpu", "gpu" or "tpu"; that of the mesh in context when None (vdit/dist/mesh.py). On CPU, XLA hands
    parts of a program to a library. Left to it are sums alone: convolutions are 2 to 3 times faster without it in
    their gradients, and matrix products 5 to 15% faster; but without it a bias's gradient takes longer than the
    convolution's.
    """
    if (platform or target()) != "cpu":
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
