"""Checkpoints: what comes back, what is kept, what is refused and in which words."""

import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint.runs import Source, abstract, assert_same, make_run, trees
from vdit.checkpoint import Checkpointer, check_config, load_meta, load_params, load_trees
from vdit.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copied(saved, tmp_path):
    """A copy to break."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_everything_comes_back_with_its_type_and_the_data_at_its_place(saved):
    source = Source()
    with Checkpointer(saved) as checkpointer:
        assert checkpointer.latest_step() == 3
        assert_same(checkpointer.restore(abstract(trees()), data=source), trees(3))
        assert source.place == {"next_index": 30}
        assert_same(checkpointer.restore(abstract(trees()), step=2, data=source), trees(2))
        assert source.place == {"next_index": 20}


def test_only_the_last_steps_are_kept(saved):
    assert sorted(entry.name for entry in saved.iterdir()) == ["2", "3"]


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path):
    """The next step overwrites the donated arrays and the iterator moves on while the save is written."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree, place = {"w": jnp.zeros((512, 1024))}, {"next_index": 1, "inner": {"n": [1]}}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": tree}, iterator_state=place)
        place["inner"]["n"][0] = 99
        for _ in range(20):
            tree = step(tree)
        source = Source()
        got = checkpointer.restore({"params": abstract(tree)}, data=source)
    np.testing.assert_array_equal(np.asarray(got["params"]["w"]), 0.0)
    assert source.place == {"next_index": 1, "inner": {"n": [1]}}


def test_a_place_in_bytes_comes_back_as_bytes(tmp_path):
    source = Source()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": {"w": jnp.ones(2)}}, iterator_state=b"\x00\xff")
        checkpointer.restore({"params": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}}, data=source)
    assert source.place == b"\x00\xff"


def test_inference_reads_the_average_and_knows_nothing_of_the_optimizer(saved):
    assert_same(load_params(saved), trees(3)["ema"])
    assert_same(load_params(saved, ema=False, step=2), trees(2)["params"])
    assert_same(load_params(saved, abstract=abstract(trees()["ema"])), trees(3)["ema"])
    assert load_meta(saved) == {"config": {"dit": {"depth": 4}}}


def test_without_an_average_inference_reads_the_parameters(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, {"params": {"w": jnp.full(2, 5.0)}})
    np.testing.assert_array_equal(load_params(tmp_path)["w"], 5.0)


def test_a_save_cut_short_is_passed_over_and_cleared(copied):
    shutil.copytree(copied / "3", copied / "4.orbax-checkpoint-tmp")
    os.remove(copied / "4.orbax-checkpoint-tmp" / "commit_success.txt")
    assert_same(load_params(copied), trees(3)["ema"])
    with Checkpointer(copied) as checkpointer:
        assert checkpointer.latest_step() == 3
    assert not (copied / "4.orbax-checkpoint-tmp").exists()


def test_arrays_that_do_not_fit_are_named(saved):
    wanted = abstract(trees())
    wanted["params"]["layer"]["kernel"] = jax.ShapeDtypeStruct((3, 8), jnp.float32)
    wanted["params"]["extra"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    del wanted["ema"]
    words = "params/extra is absent, must be (2,); params/layer/kernel is (3, 4), must be (3, 8); use the"
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load_trees(saved, wanted)


def test_a_part_that_was_not_saved_is_named(saved):
    with pytest.raises(CheckpointError, match=r"has no \['moments'\], only \['ema', 'optimizer', 'params'"):
        load_trees(saved, {"moments": {}})


def test_no_directory_no_step_and_no_such_step_are_told_apart(saved, tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        load_params(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        load_params(tmp_path)
    with pytest.raises(CheckpointError, match=r"no step 9; there are \[2, 3\]"):
        load_params(saved, step=9)


@pytest.fixture
def of_two_hosts(copied):
    """(a run whose step 3 was saved by two hosts, a function that sets their places)."""

    def put(first, second):
        for host, place in enumerate((first, second)):
            (copied / "3" / "data" / f"host_{host}_of_2.json").write_text(json.dumps({"dict": place}))
        os.remove(copied / "3" / "data" / "host_0_of_1.json")
        os.remove(copied / "3" / "sha256.json")

    return copied, put


def test_places_of_streams_come_together_for_any_number_of_hosts(of_two_hosts):
    run, put = of_two_hosts
    put({"streams": {"0": [1], "1": [2]}, "seed": 7}, {"streams": {"1": [2], "2": [3]}, "seed": 7})
    source = Source()
    with Checkpointer(run, warn=str) as checkpointer:
        checkpointer.restore(abstract(trees()), data=source)
    assert source.place == {"streams": {"0": [1], "1": [2], "2": [3]}, "seed": 7}


def test_hosts_that_disagree_about_a_stream_are_refused(of_two_hosts):
    run, put = of_two_hosts
    put({"streams": {"0": [1]}}, {"streams": {"0": [2]}})
    with Checkpointer(run, warn=str) as checkpointer, pytest.raises(CheckpointError, match="elsewhere in stream 0"):
        checkpointer.restore(abstract(trees()), data=Source())


def test_a_plain_place_of_another_number_of_hosts_is_refused(of_two_hosts):
    run, put = of_two_hosts
    put({"next_index": 1}, {"next_index": 2})
    with (
        Checkpointer(run, warn=str) as checkpointer,
        pytest.raises(CheckpointError, match=r"of 2 hosts, this run has 1: resume on 2, or start the data"),
    ):
        checkpointer.restore(abstract(trees()), data=Source())


def test_a_checkpoint_without_a_place_cannot_place_the_data(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": {"w": jnp.ones(2)}})
        with pytest.raises(CheckpointError, match="holds no place in the data"):
            checkpointer.restore({"params": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}}, data=Source())


def test_another_config_is_refused_by_the_keys_that_changed():
    saved = {"dit": {"depth": 4, "width": 64}, "train": {"steps": 10}}
    now = {"dit": {"depth": 6, "width": 64}, "train": {"steps": 20}}
    with pytest.raises(CheckpointError, match=r"dit.depth was 4, is 6; set them back"):
        check_config(saved, now, may_change=("train",))
    check_config(saved, now, may_change=("train.steps", "dit.depth"))
    with pytest.raises(CheckpointError, match=r"train\.steps"):
        check_config(saved, now, may_change=("dit", "tra"))


def test_the_meta_data_is_plain_json(saved):
    assert json.loads((saved / "3" / "meta" / "meta.json").read_text())["config"]["dit"]["depth"] == 4
