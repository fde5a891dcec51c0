"""Training a LoRA: only its leaves change and are kept, runs resume bit for bit, meshes agree, PEFT reads it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.tiny import STEPS, lora_experiment, make_base, train
from vdit.checkpoint import find_step, load_meta, load_params, load_trees
from vdit.checkpoint.integrity import write_manifest
from vdit.dist.mesh import make_mesh
from vdit.errors import CheckpointError, ConfigError
from vdit.experiment.training import LoRAConfig
from vdit.nn.lora import LEAVES, detach, merge, without_lora
from vdit.train.pretrained import split_trainable, starting_params, trained_params, with_lora
from vdit.train.state import plan_state
from vdit.train.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Nearly all the time here is XLA's: ask it for less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("lora") / "base"
    make_base(root)
    return root


@pytest.fixture(scope="module")
def trained(base) -> Workspace:
    """A LoRA of the base."""
    root = base.with_name("trained")
    train(lora_experiment(base), root)
    return Workspace(root)


def losses(space) -> list[float]:
    return [json.loads(line)["loss"] for line in (space.logs / "dit.jsonl").read_text().splitlines()]


def same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_checkpoints_hold_the_low_rank_leaves_alone(trained):
    folder = find_step(trained.dit)
    for name in ("params", "ema"):
        leaves = flatten_dict(load_params(trained.dit, ema=name == "ema"))
        assert {path[-1] for path in leaves} == {"lora_a", "lora_b"}
        assert {path[0] for path in leaves} == {"dit"}
        assert len(leaves) == 2 * 10  # q, k, v, out of both attentions, and the MLP's two, stacked over layers
    size = sum(file.stat().st_size for file in folder.rglob("*"))
    leaves = sum(leaf.nbytes for leaf in jax.tree.leaves(load_params(trained.dit)))
    assert size < 4 * leaves + 600_000  # parameters, average, two moments, and Orbax's own files
    meta = load_meta(trained.dit)
    assert meta["base"]["step"] == 1
    assert meta["config"]["lora"] == {"rank": 4, "alpha": 8.0, "targets": ["*attention/*", "mlp/*"],
                                      "weights": "float32"}  # fmt: skip


def test_the_base_keeps_its_bits(base, trained):
    experiment, mesh = trained.experiment(), make_mesh()
    before = load_params(base / "dit")
    params = trained_params(experiment, trained, mesh)
    same_bits(without_lora(params), before)
    changed = detach(params["dit"])
    assert all(np.any(low.b) for low in changed.layers.values()), "every target learns"
    assert all(low.scale == 2.0 for low in changed.layers.values())
    same_bits(params, with_lora(starting_params(experiment, mesh), trained.root))


def test_it_begins_as_the_base(base, trained):
    start = split_trainable(lora_experiment(base), make_mesh())
    fresh = plan_state(start.init, trained.experiment().dit_train).create(jax.random.key(0)).params
    for path, leaf in flatten_dict(fresh).items():
        assert np.any(leaf) == (path[-1] == "lora_a")
    assert {path[-1] for path in flatten_dict(start.frozen) if path[-1] in LEAVES} == {"lora_scale"}


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_frozen_weights_may_be_held_in_fewer_bits(base, weights):
    experiment = lora_experiment(base, lora=LoRAConfig(rank=4, weights=weights))
    kernel = split_trainable(experiment, make_mesh()).frozen["dit"]["blocks"]["mlp"]["up"]
    if weights == "bfloat16":
        assert kernel["kernel"].dtype == "bfloat16"
    else:  # kernels of this size are too small for int8 to pay
        assert kernel["kernel"].dtype == "float32"


def test_the_loss_falls(trained):
    curve = losses(trained)
    assert len(curve) == STEPS
    assert np.mean(curve[-3:]) < 0.7 * np.mean(curve[:2]), curve


def test_a_resumed_run_is_the_uninterrupted_run(base, trained):
    resumed = Workspace(base.with_name("resumed"))
    for steps in (STEPS // 2, STEPS):
        train(lora_experiment(base, steps=steps), resumed.root)
    assert losses(trained) == losses(resumed)
    names = ("params", "ema", "optimizer", "progress")
    start = split_trainable(lora_experiment(base), make_mesh())
    abstract = plan_state(start.init, lora_experiment(base).dit_train).abstract.trees()
    one, two = (load_trees(space.dit, {name: abstract[name] for name in names}) for space in (trained, resumed))
    plain = lambda leaf: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    same_bits(jax.tree.map(plain, one), jax.tree.map(plain, two))


def test_another_base_is_refused(base, trained):
    other = base.with_name("other")
    make_base(other)
    step = find_step(other / "dit")
    (step / "other").write_text("files")
    write_manifest(step)
    with pytest.raises(CheckpointError, match=r"was trained on .*give the folder of that base"):
        train(lora_experiment(other, steps=STEPS + 2), trained.root)
    moved = lora_experiment(base)
    train(dataclasses.replace(moved, start_from=os.path.relpath(base)), trained.root)  # the same by another path


def test_what_does_not_fit_the_base_is_named(base, tmp_path):
    experiment = lora_experiment(base)
    wider = dataclasses.replace(experiment, backbone=dataclasses.replace(experiment.backbone, mlp_width=64))
    with pytest.raises(ConfigError, match=r"backbone.mlp_width=64: the model in start_from=.* has 48"):
        train(wider, tmp_path / "wider")
    nothing = lora_experiment(base, lora=LoRAConfig(targets=("attn/*",)))
    with pytest.raises(ConfigError, match=r"'attn/\*' matches no dense layer of this model: it has attention/k"):
        train(nothing, tmp_path / "nothing")
    with pytest.raises(ConfigError, match="name its folder in start_from"):
        dataclasses.replace(experiment, start_from=None)


def test_without_lora_the_base_itself_is_trained(base):
    space = Workspace(base.with_name("tuned"))
    experiment = train(lora_experiment(base, lora=None, steps=2), space.root)
    before, after = load_params(base / "dit"), load_params(space.dit, ema=False)
    assert jax.tree.map(np.shape, before) == jax.tree.map(np.shape, after)
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
    assert 0 < max(jax.tree.leaves(gaps)) <= 0.1  # near the base, not new
    same_bits(trained_params(experiment, space, make_mesh()), load_params(space.dit))


def test_a_lora_on_a_lora_begins_with_their_sum(base, trained):
    on_top = lora_experiment(trained.root)
    params = starting_params(on_top, make_mesh())
    lora = detach(trained_params(trained.experiment(), trained, make_mesh())["dit"])
    want = merge(load_params(base / "dit")["dit"], lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params["dit"], want)


def test_eight_devices_train_the_lora_of_one(base):
    root = base.with_name("mesh")
    command = [sys.executable, str(ROOT / "tests/train/lora_mesh.py"), str(base), str(root)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found["mixed"]["losses"], found["one"]["losses"], rtol=2e-5)
    np.testing.assert_allclose(found["mixed"]["b"], found["one"]["b"], atol=2e-5)
    # what one device holds of the stacks attention/q [2 32 32] and its factors [2 32 4] and [2 4 32]
    want = {"kernel": [2, 16, 16], "lora_a": [2, 16, 4], "lora_b": [2, 4, 16], "mu": [2, 4, 16]}
    assert found["mixed"]["held"] == found["mixed"]["compiled"] == want
    assert found["mixed"]["attached"] == want["lora_b"]
