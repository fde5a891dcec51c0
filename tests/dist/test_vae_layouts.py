"""A clip shared out over devices, by frames and rows, is encoded and decoded as on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.models.vae import VAE, VAEConfig, split
from vdit.models.vae.blocks import frame_attention

ROOT = Path(__file__).resolve().parents[2]

# Case of vae_layouts.py -> the mesh axes that share the batch, and how many devices share frames and rows.
WAYS = {
    "wan21 4x2": ([], [4, 2]),
    "wan21 8x1": ([], [8, 1]),
    "wan21 1x4": ([], [1, 4]),
    "wan22 2x2": ([], [2, 2]),
    "sd 1x4": ([], [1, 4]),
    "base 2x1": (["data", "fsdp"], [2, 1]),
    "tiny 4x1": ([], [4, 1]),
}


# Layouts of vae_training.py.
TRAINED = (
    "data 8", "fsdp 8", "data 2 fsdp 2 sequence 2", "sequence 4 tensor 2", "fsdp 2 sequence 2 tensor 2",
)  # fmt: skip


def run(script):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/dist" / script)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results():
    return run("vae_layouts.py")


@pytest.fixture(scope="module")
def trained():
    return run("vae_training.py")


@pytest.mark.parametrize("name", WAYS)
def test_values_and_gradients_are_those_of_one_device(results, name):
    case = results["cases"][name]
    assert (case["batch"], case["ways"]) == WAYS[name]
    assert {"[0]['mean']", "[0]['decoded']"} < set(case["errors"])
    assert max(case["errors"].values()) < 1e-5, case["errors"]


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_chunks_on_a_mesh_are_the_whole_on_one_device(results, name):
    found = results["streamed"][name]
    assert max(found["errors"].values()) < 1e-5, found
    rows, all_rows = found["rows"]
    assert rows < all_rows


def test_nothing_sees_what_comes_later(results):
    moved = results["cases"]["wan21 8x1"]["moved"]
    for name, frames in moved.items():
        last = 4 if name == "decoded" else 1  # the frames of the last latent frame
        assert all(frame == 0.0 for frame in frames[:-last]), moved
        assert all(frame > 0.0 for frame in frames[-last:]), moved


def test_neighbours_exchange_edges_and_nothing_is_gathered_but_for_attention(results):
    sent = results["compiled"]["sent"]
    permuted = [axes for kind, axes, _ in sent if kind == "collective-permute"]
    assert sorted(permuted) == [["sequence"], ["tensor"]]
    # Frames become rows at the end; attention gathers the keys of a frame.
    assert [one for one in sent if one[0] != "collective-permute"] == [
        ["all-gather", ["tensor"], True], ["all-to-all", ["sequence"], False],
    ]  # fmt: skip


def test_no_device_holds_a_whole_video_and_memory_falls_with_their_number(results):
    compiled = results["compiled"]
    one, eight = compiled["memory"]
    assert eight < one / 4
    assert compiled["largest"] < 2 * compiled["part of the widest"]


@pytest.mark.parametrize("layout", TRAINED)
def test_training_has_the_loss_and_gradients_of_one_device(trained, layout):
    one, eight = trained["one"]["metrics"], trained[layout]["metrics"]
    assert {"reconstruction", "kl", "generator", "discriminator", "loss", "grad_norm"} <= set(one)
    np.testing.assert_allclose(list(eight.values()), [one[name] for name in eight], rtol=1e-5, atol=1e-6)
    assert max(trained[layout]["errors"].values()) < 1e-5, trained[layout]["errors"]


@pytest.mark.parametrize("layout", TRAINED)
def test_training_gathers_parameters_alone_and_scatters_their_gradients(trained, layout):
    """Over the axes that share the parameters; they lie as the table says after the step."""
    found = trained[layout]
    assert found["split"] == found["table"]
    assert any(found["split"]) == ("fsdp" in layout)
    sent = [(kind, payload) for kind, axes, payload in found["sent"] if {"data", "fsdp"} & set(axes)]
    gathered = [payload for kind, payload in sent if kind == "all-gather"]
    assert max(gathered, default=0) <= trained["largest parameter"]
    assert len(gathered) >= sum(found["split"])
    assert {kind for kind, _ in sent} <= {"all-gather", "reduce-scatter", "all-reduce"}
    if "fsdp" in layout:
        scattered = sum(payload for kind, payload in sent if kind == "reduce-scatter")
        assert scattered > 0.8 * trained["parameters"]


@pytest.mark.parametrize(
    ("sizes", "shape", "start", "wanted"),
    [
        ({"sequence": 16, "tensor": 4}, (1, 361, 68), True, ((), ("sequence",), ("tensor",), 7)),
        ({"sequence": 2, "tensor": 2}, (1, 1, 8), True, ((), (), ("tensor", "sequence"), 0)),
        ({"sequence": 4, "tensor": 2}, (1, 2, 8), True, ((), (), ("tensor", "sequence"), 0)),
        ({"sequence": 4, "tensor": 2}, (1, 6, 9), True, ((), ("sequence",), (), 2)),
        ({"sequence": 4, "tensor": 2}, (1, 6, 9), False, ((), (), (), 0)),
        ({"data": 8}, (8, 5, 8), True, (("data",), (), (), 0)),
        ({"data": 8}, (1, 5, 8), True, ((), (), ("data",), 0)),
        ({"data": 2, "fsdp": 2, "sequence": 2}, (4, 5, 7), True, (("data", "fsdp"), ("sequence",), (), 1)),
    ],
)
def test_devices_are_given_frames_rows_or_clips_so_that_each_has_least_to_do(sizes, shape, start, wanted):
    plan = split.plan_split(*shape, start=start, sizes=sizes)
    assert (plan.batch, plan.split.time, plan.split.height, plan.front) == wanted


def test_one_device_runs_the_plain_model():
    config = VAEConfig(
        latent_channels=2, base_channels=4, channel_mults=(1,), spatial_down=(), temporal_down=(), patch=4,
        patch_frames=2, middle="none", blocks_per_level=1,
    )  # fmt: skip
    vae, video = VAE(config), jnp.zeros((1, 3, 8, 8, 3))
    params = meta.unbox(jax.eval_shape(vae.init, jax.random.key(1), video)["params"])
    trace = lambda run: str(jax.make_jaxpr(run)(params, video))  # noqa: E731
    shared = lambda params, x: split.encode(config, params, x)  # noqa: E731
    assert trace(shared) == trace(lambda params, x: vae.apply({"params": params}, x, method="encode"))
    with jax.set_mesh(make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])):
        assert "shard_map" not in trace(shared)


@pytest.mark.parametrize("max_scores", [200, 30, 5])
def test_attention_in_pieces_is_that_of_the_whole(max_scores):
    q, k, v = (jax.random.normal(jax.random.key(i), (3, n, 4)) for i, n in enumerate((10, 12, 12)))

    def run(max_scores):
        return jax.value_and_grad(lambda q: jnp.sum(jnp.sin(frame_attention(q, k, v, max_scores))))(q)

    np.testing.assert_allclose(run(max_scores)[1], run(10**6)[1], atol=1e-5)
    pieces = jax.jit(lambda q: frame_attention(q, k, v, max_scores)).lower(q).as_text()
    assert "3x10x12" not in pieces
