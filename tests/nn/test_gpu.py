"""The layers on a GPU give what they give on a CPU: pytest -m gpu."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.nn.attention import attention
from vdit.nn.conv import conv

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_products():
    """Products in full float32: a GPU rounds their inputs to TF32 by default."""
    if jax.default_backend() != "gpu":
        pytest.skip(f"jax's default backend is {jax.default_backend()!r}: no GPU here")
    with jax.default_matmul_precision("highest"):
        yield


def on_both(function, reference, *arguments):
    """Values and gradients of `function` on the GPU, and of `reference` on the CPU, where no GPU kernel runs."""
    results = []
    for call, device in ((function, jax.devices("gpu")[0]), (reference, jax.devices("cpu")[0])):
        run = jax.jit(jax.value_and_grad(lambda *x, call=call: jnp.sum(jnp.sin(call(*x))), argnums=(0, 1)))
        results.append(jax.device_get(run(*jax.device_put(arguments, device))))
    return results


@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("kernel", ["dense", "chunked", "triton"])
def test_attention(kernel, times):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 300, 4, 64)).astype(np.float32) for _ in range(3))
    clip = np.sort(rng.integers(0, 4, (2, 300)))
    more = {"q_time": rng.integers(0, 9, (2, 300)), "k_time": rng.integers(0, 9, (2, 300))} if times else {}
    by = lambda name: lambda q, k: attention(q, k, v, clip, clip, implementation=name, **more)  # noqa: E731
    gpu, cpu = on_both(by(kernel), by("dense"), q, k)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), gpu, cpu)


@pytest.mark.parametrize("formulation", ["native", "taps"])
def test_convolution(formulation):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 16, 16, 8)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 8, 8)).astype(np.float32) / 15
    by = lambda name: lambda x, k: conv(x, k, padding=((0, 0), (1, 1), (1, 1)), formulation=name)  # noqa: E731
    gpu, cpu = on_both(by(formulation), by("taps"), x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), gpu, cpu)
