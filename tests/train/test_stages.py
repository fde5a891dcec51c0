"""The stages on real sources: a run that is stopped and resumed is the run that was not."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

import vdit
from tests.conftest import TINY
from tools import tune_decoder
from vdit import config as config_tools
from vdit.checkpoint import check_config, load_params
from vdit.config import apply_overrides
from vdit.errors import CheckpointError, ConfigError
from vdit.quickstart.config import experiment as quickstart_experiment
from vdit.train import resume as resuming
from vdit.train.stages import Logging, run
from vdit.train.workspace import Workspace

OVERRIDES = (
    *TINY, "dit_train.optimizer.schedule=constant", "vae_train.optimizer.schedule=constant", "dit_train.save_every=2",
    "dit_train.keep=9", "dit_train.batch_size=2",
)  # fmt: skip
LOGGING = Logging(tensorboard=False, console=Console(quiet=True))


def with_steps(experiment, steps):
    return dataclasses.replace(experiment, dit_train=dataclasses.replace(experiment.dit_train, steps=steps))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a run of 4 steps, the same run stopped after 2 and resumed), both on the same latents."""
    experiment = apply_overrides(quickstart_experiment(), OVERRIDES)
    whole = Workspace(tmp_path_factory.mktemp("stages") / "whole")
    run(experiment, whole, stages=("vae", "latents", "tokenizer"), logging=LOGGING)
    resumed = Workspace(shutil.copytree(whole.root, whole.root.with_name("resumed")))
    run(with_steps(experiment, 4), whole, stages=("dit",), logging=LOGGING)
    for steps in (2, 4):
        run(with_steps(experiment, steps), resumed, stages=("dit",), logging=LOGGING)
    return experiment, whole, resumed


def losses(space):
    return [json.loads(line)["loss"] for line in (space.logs / "dit.jsonl").read_text().splitlines()]


def test_resumed_run_is_the_uninterrupted_run_bit_for_bit(runs):
    _, whole, resumed = runs
    assert len(losses(whole)) == 4
    assert losses(whole) == losses(resumed)
    for ema in (False, True):
        a, b = (jax.tree.leaves(load_params(space.dit, ema=ema)) for space in (whole, resumed))
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)


def test_a_complete_stage_is_not_run_again(runs):
    experiment, whole, _ = runs
    before = losses(whole)
    run(with_steps(experiment, 4), whole, logging=LOGGING)
    assert losses(whole) == before


def test_another_model_in_the_same_folder_is_refused(runs):
    experiment, whole, _ = runs
    other = dataclasses.replace(experiment, backbone=dataclasses.replace(experiment.backbone, depth=2))
    with pytest.raises(Exception, match=r"backbone\.depth was 1, is 2"):
        run(with_steps(other, 6), whole, stages=("dit",), logging=LOGGING)


def test_fields_that_came_after_the_checkpoint_are_at_their_defaults(runs):
    experiment, _, _ = runs
    older = config_tools.to_dict(experiment)
    del older["backbone"]["causal"]
    assert resuming.as_of_now(older) == config_tools.to_dict(experiment)
    older["backbone"]["no_more"] = 3
    with pytest.raises(CheckpointError, match=r"backbone\.no_more was 3"):
        check_config(resuming.as_of_now(older), config_tools.to_dict(experiment), may_change=("backbone.causal",))


def test_costs_of_stages_are_kept(runs):
    _, whole, _ = runs
    costs = whole.costs()
    assert {"vae", "latents", "tokenizer", "dit"} <= set(costs)
    assert all(cost["seconds"] > 0 and cost["peak_memory"] > 50e6 for cost in costs.values())


def test_the_decoder_alone_is_trained_at_the_end(tmp_path):
    """The encoder of step 2 is that of step 4; a run that is continued from step 3 is the run that was not."""
    experiment = apply_overrides(quickstart_experiment(), (
        *OVERRIDES, "vae_loss.decoder_share=0.5", "vae_train.save_every=1", "vae_train.keep=9", "vae_train.steps=4",
    ))  # fmt: skip
    space = Workspace(tmp_path / "run")
    run(experiment, space, stages=("vae",), logging=LOGGING)
    parts = [load_params(space.vae, step=step, ema=False)["vae"] for step in (1, 2, 3, 4)]
    moved = [{name: not trees_equal(old[name], new[name]) for name in new} for old, new in itertools.pairwise(parts)]
    assert moved == [{"encoder": True, "decoder": True}] + 2 * [{"encoder": False, "decoder": True}]
    shutil.rmtree(space.vae / "4")
    run(experiment, space, stages=("vae",), logging=LOGGING)
    assert trees_equal(load_params(space.vae, step=4, ema=False)["vae"], parts[-1])


def test_the_decoder_of_a_finished_run_is_tuned_and_nothing_else(runs, tmp_path):
    _, whole, _ = runs
    out = tmp_path / "sharper"
    assert tune_decoder.main([str(whole.root), str(out), "--steps", "2", "--batch", "2"]) == 0
    before, after = vdit.load(whole.root), vdit.load(out)
    assert trees_equal(before.params, after.params)
    assert trees_equal(before.vae.params["encoder"], after.vae.params["encoder"])
    assert not trees_equal(before.vae.params["decoder"], after.vae.params["decoder"])
    assert tune_decoder.main([str(whole.root), str(out)]) == 1  # it is there already


def trees_equal(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_unknown_stages_are_named(runs):
    experiment, whole, _ = runs
    with pytest.raises(ConfigError, match="'dits' is unknown: use some of vae"):
        run(experiment, whole, stages=("dits",), logging=LOGGING)
