"""Weights through a map onto devices: right numbers in the right place, and every misfit by name."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as reference

from tests.pretrained.load import fill
from tests.pretrained.toy_weights import LAYERS, abstract, rules, state
from vdit.errors import WeightsError
from vdit.pretrained.open import open_tensors
from vdit.pretrained.weights import check, flatten, load, rule

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def opened(tmp_path):
    """opened(**changes): the state dict on disk, some of it changed; None drops a tensor."""

    def save(**changes):
        tensors = {name: values for name, values in (state() | changes).items() if values is not None}
        reference.save_file(tensors, tmp_path / "x.safetensors")
        return open_tensors(tmp_path / "x.safetensors")

    return save


def test_every_kind_of_rule_lands_where_it_should(opened):
    params = load(rules(), opened(), abstract())
    wanted = fill(rules(), state())
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert jax.tree.structure(params) == jax.tree.structure(abstract())


def test_types_are_kept_or_made_what_is_asked(opened):
    half = {name: values.astype(jnp.bfloat16) for name, values in state().items()}
    kept = load(rules(), opened(**half), abstract())
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept)} == {"bfloat16"}
    wide = load(rules(), opened(**half), abstract(), dtype="float32")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(wide)} == {"float32"}
    narrow = load(rules(), opened(), abstract(), dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, narrow, kept)
    mixed = load(rules(), opened(**{"blocks.1.q.bias": half["blocks.1.q.bias"]}), abstract())["blocks"]["q"]
    assert mixed["bias"].dtype == jnp.float32, "nothing is lost"
    np.testing.assert_array_equal(mixed["bias"][1], half["blocks.1.q.bias"].astype(np.float32))
    with pytest.raises(WeightsError, match="head/bias is stored as float64; say dtype='float32'"):
        load(rules(), opened(**{"head.bias": state()["head.bias"].astype(np.float64)}), abstract())
    with pytest.raises(WeightsError, match="'int8' must be one of float32"):
        load(rules(), opened(), abstract(), dtype="int8")


def test_integers_keep_their_values_or_are_refused(opened):
    table = {"ids": jax.ShapeDtypeStruct((3,), jnp.int32)}
    got = load([rule("ids", "ids")], _only(opened, np.array([1, 2, 3], np.int64)), table)
    np.testing.assert_array_equal(got["ids"], [1, 2, 3])
    with pytest.raises(WeightsError, match="ids: holds numbers that int32 cannot"):
        load([rule("ids", "ids")], _only(opened, np.array([1, 2, 2**40], np.int64)), table)


def _only(opened, ids):
    return opened(**dict.fromkeys(state()), ids=ids)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head.bias": None, "scale": None}, r"2 missing \(head.bias, scale\); use the config"),
        ({"head.extra": np.zeros(2)}, r"1 that this model does not have \(head.extra\)"),
        ({"scale": np.zeros(5, np.float32)}, r"1 of another shape \(scale is \[5\], must be \[4\]\)"),
        ({"head.weight": np.zeros((4, 8), np.float32)}, r"head.weight is \[4, 8\], must be \[8, 4\]"),
        ({"scale": np.zeros(4, np.int32)}, r"1 of another type \(scale is int32, must be float\)"),
        ({"tied.weight": np.zeros((8, 4), np.float32)}, "tied.weight must equal embed.weight"),
        ({name: None for name in list(state())[2:]} | {"x.y": np.zeros(2)}, "another family: 15 of 17 .* it has x.y"),
    ],
)
def test_what_does_not_fit_is_named(opened, changes, words):
    with pytest.raises(WeightsError, match=words) as error:
        load(rules(), opened(**changes), abstract())
    assert "\n" not in str(error.value)


def test_long_lists_are_cut(opened):
    extra = {f"x.{i}": np.zeros(1, np.float32) for i in range(9)}
    with pytest.raises(WeightsError, match=r"9 that .* \(x.0, x.1, x.2, x.3 and 5 more\)"):
        check(rules(), opened(**extra), abstract())
    check(rules(), opened(**extra), abstract(), ignore=("x.",))
    with pytest.raises(WeightsError, match=r"y\.0"):
        check(rules(), opened(**extra, **{"y.0": np.zeros(1)}), abstract(), ignore=("x.",))


def test_a_copy_may_be_absent_and_may_stand_for_its_tensor(opened):
    wanted = load(rules(), opened(), abstract())
    for absent in ("tied.weight", "embed.weight"):
        jax.tree.map(np.testing.assert_array_equal, load(rules(), opened(**{absent: None}), abstract()), wanted)


def test_a_map_that_does_not_go_with_the_model_is_refused(opened):
    deeper = abstract()
    deeper["blocks"]["q"]["bias"] = jax.ShapeDtypeStruct((LAYERS + 1, 8), jnp.float32)
    with pytest.raises(WeightsError, match="does not fill blocks/q/bias once"):
        check(rules(), opened(), deeper)
    with pytest.raises(WeightsError, match="does not fill head/bias once"):
        check([*rules(), rule("again", "head/bias")], opened(), abstract())
    with pytest.raises(WeightsError, match="the map fills tail, which the model lacks"):
        check([*rules(), rule("tail", "tail")], opened(), abstract())
    halves = [r for r in rules() if r.name != "blocks.1.v.weight"]
    with pytest.raises(WeightsError, match="does not fill blocks/kv/kernel once"):
        check(halves, opened(), abstract())


def test_one_tensor_at_a_time_and_each_once(opened):
    tensors, reads = opened(), []
    spy = dataclasses.replace(tensors, reader=lambda name: reads.append(name) or tensors.reader(name))
    load(rules(), spy, abstract())
    assert sorted(reads) == sorted(state())


def test_paths_of_leaves():
    assert list(flatten({"b": {"c": 1}, "a": 2})) == ["a", "b/c"]


def test_on_eight_devices_each_shard_is_where_the_abstract_tree_says(opened, tmp_path):
    file = opened().path
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/pretrained/load_on_mesh.py"), str(file), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["devices"] == 8
    assert results["same"]
    assert results["placed"]
    assert results["saved"], "the ordinary path: onto the mesh, then a checkpoint of the mesh"
    assert results["shard"] == [LAYERS, 2, 4]
    # zeros and one update for each of three stacks, whatever their depth; the rest is a few helpers of jax
    assert results["compiled"] <= 9, results["compiled"]
