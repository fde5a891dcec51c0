"""Linear with more than a kernel: quantised weights and low-rank additions; new factors for training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vdit.errors import ConfigError
from vdit.nn.layers import Linear
from vdit.nn.lora import dense_layers, init_lora, join, scales
from vdit.nn.quantise import DTYPES, cast, is_quantisable, quantise


@pytest.fixture(scope="module")
def layer():
    """(the module, its parameters, an input)."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(96, 80)) * np.linspace(0.01, 1, 80), "bias": rng.normal(size=80)}
    x = jnp.asarray(rng.normal(size=(2, 5, 96)), jnp.float32)
    return Linear(80), jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params), x


def apply(module, params, x):
    return module.apply({"params": params}, x)


def test_plain_parameters_compile_to_one_product(layer):
    module, params, x = layer
    text = jax.jit(lambda p, x: apply(module, p, x)).lower(params, x).as_text()
    assert text.count("dot_general") == 1
    assert "multiply" not in text


def test_the_low_rank_addition_is_its_formula_and_has_its_gradient(layer):
    module, params, x = layer
    rng = np.random.default_rng(1)
    low = {"lora_a": rng.normal(size=(96, 3)), "lora_b": rng.normal(size=(3, 80)), "lora_scale": np.array(0.7)}
    low = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), low)

    def by_formula(low, x):
        return x @ (params["kernel"] + low["lora_scale"] * low["lora_a"] @ low["lora_b"]) + params["bias"]

    got, want = apply(module, params | low, x), by_formula(low, x)
    np.testing.assert_allclose(got, want, atol=1e-4)
    value = lambda f: jax.grad(lambda low: jnp.sum(f(low) ** 2))(low)  # noqa: E731
    got, want = value(lambda low: apply(module, params | low, x)), value(lambda low: by_formula(low, x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-2), got, want)


def dequantise(params, dtype="float32"):
    """The inverse, up to rounding: plain kernels in `dtype`, without factors."""
    flat = flatten_dict(params)
    for path in [path for path in flat if path[-1] == "kernel_scale"]:
        kernel, scale = flat[*path[:-1], "kernel"], flat.pop(path)
        flat[*path[:-1], "kernel"] = (kernel.astype(jnp.float32) * scale[..., None, :]).astype(dtype)
    return unflatten_dict(flat)


def sqnr(params, quantised) -> dict[str, float]:
    """Signal to quantisation noise in dB, 10 log10(|W|^2 / |W - Wq|^2), of each kernel that was quantised."""
    before, after = flatten_dict(params), flatten_dict(dequantise(quantised))
    changed = [path[:-1] for path in flatten_dict(quantised) if path[-1] == "kernel_scale"]
    ratios = {}
    for path in changed:
        w, q = (np.asarray(flat[*path, "kernel"], np.float64) for flat in (before, after))
        ratios["/".join(path)] = float(10 * np.log10((w**2).sum() / max(((w - q) ** 2).sum(), 1e-300)))
    return ratios


@pytest.mark.parametrize(("kind", "ratio"), [("int8", 40.0), ("fp8", 30.0)])
def test_quantised_weights(layer, kind, ratio):
    module, params, x = layer
    small = quantise(params, kind)
    assert small["kernel"].dtype == DTYPES[kind]
    assert small["kernel_scale"].shape == (80,)
    assert sqnr({"one": params}, {"one": small})["one"] > ratio
    back = dequantise(small)
    assert set(back) == set(params)
    np.testing.assert_allclose(apply(module, small, x), apply(module, back, x), atol=1e-4)
    # each channel is rounded by its own size: small columns are as exact as large ones
    error = np.linalg.norm(np.asarray(back["kernel"] - params["kernel"]), axis=0)
    relative = error / np.linalg.norm(np.asarray(params["kernel"]), axis=0)
    assert relative.max() < 2.5 * relative.min()
    again = quantise(back, kind)
    np.testing.assert_array_equal(np.asarray(again["kernel"], np.float32), np.asarray(small["kernel"], np.float32))
    half = apply(Linear(80, dtype=jnp.bfloat16), small, x)
    assert half.dtype == jnp.bfloat16
    exact = apply(module, back, x)
    assert np.linalg.norm(half - exact) < 0.01 * np.linalg.norm(exact)


def test_what_is_quantised_and_what_is_cast():
    square = jnp.ones((64, 64))
    params = {
        "blocks": {"mlp": {"up": {"kernel": jnp.ones((2, 64, 64)), "bias": jnp.ones((2, 64))}}},
        "block_0": {"attention": {"q": {"kernel": square}, "norm": {"q": {"scale": jnp.ones(64)}}}},
        "time_in": {"kernel": square},
        "head": {"kernel": square},
        "narrow": {"kernel": jnp.ones((64, 8))},
        "conv": {"kernel": jnp.ones((1, 1, 1, 64, 64))},
        "embed": {"embedding": square},
    }
    changed = {path[:-1] for path in flatten_dict(quantise(params)) if path[-1] == "kernel_scale"}
    assert changed == {("blocks", "mlp", "up"), ("block_0", "attention", "q")}
    assert is_quantisable("time_in/kernel", square, keep=())
    assert not is_quantisable("blocks/attention/q/kernel", square.astype(jnp.int8))
    types = {"/".join(path): leaf.dtype for path, leaf in flatten_dict(cast(quantise(params))).items()}
    kept = {name for name, dtype in types.items() if dtype == jnp.float32}
    assert kept == {"blocks/mlp/up/kernel_scale", "block_0/attention/q/kernel_scale",
                    "block_0/attention/norm/q/scale", "time_in/kernel"}  # fmt: skip
    with pytest.raises(ConfigError, match="'int4' is unknown: use one of int8, fp8"):
        quantise(params, "int4")


def test_a_column_of_zeros_stays_zero():
    kernel = jnp.zeros((64, 64)).at[:, 1].set(1.0)
    back = dequantise(quantise({"kernel": kernel}))["kernel"]
    np.testing.assert_array_equal(back, kernel)


def test_new_factors_carry_the_axes_of_their_kernel():
    boxed = {"mlp": {"up": Linear(8, ("embed", "mlp")).init(jax.random.key(0), jnp.ones((1, 4)))["params"]}}
    made = init_lora(jax.random.key(1), boxed, targets=("mlp/*",), rank=2)["mlp"]["up"]
    assert made["lora_a"].names == ("embed", None)
    assert made["lora_b"].names == (None, "mlp")
    a, b = made["lora_a"].value, made["lora_b"].value
    assert a.shape == (4, 2)
    assert np.abs(a).max() <= 0.5
    assert not np.any(b)
    leaves = scales(made, 0.5)
    assert join({"lora_a": a}, leaves)["lora_scale"] == np.float32(0.5)
    assert dense_layers({("blocks", "mlp", "up", "kernel"): (2, 4, 8), ("head", "kernel"): (4, 8)}) == {
        ("blocks", "mlp", "up"): "mlp/up", ("head",): "head"}  # fmt: skip
    with pytest.raises(ConfigError, match=r"'attn/\*' matches no dense layer of this model: it has mlp/up"):
        init_lora(jax.random.key(1), boxed, targets=("attn/*",), rank=2)
