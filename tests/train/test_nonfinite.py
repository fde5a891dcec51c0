"""NaN is named where it arises, and nothing that holds it passes for good: a batch, weights, a run's end, a video."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import vdit
from tests import tiny
from vdit import config as config_tools
from vdit.checkpoint import Checkpointer, load_params
from vdit.cli import output
from vdit.errors import CheckpointError, NumericsError, TrainingError, VideoError
from vdit.quickstart.config import experiment
from vdit.train.loop import Report, SampleHook, train
from vdit.train.resume import is_complete
from vdit.train.state import plan_state
from vdit.train.step import make_train_step


def overflows_from(step):
    def loss_fn(params, batch, key, at):
        loss, metrics = tiny.loss_fn(params, batch, key, at)
        return loss * jnp.where(at >= step - 1, jnp.inf, 1.0), metrics

    return loss_fn


class Recorder:
    def __init__(self):
        self.shown = []

    def scalars(self, step, values):
        pass

    def videos(self, step, name, videos, fps):
        self.shown.append(step)

    def flush(self):
        pass


def run(loss_fn=tiny.loss_fn, spoil_state=lambda state: state, spoil_batch=lambda batch: batch, writers=(), **more):
    report = Report(writers=writers, console=Console(file=io.StringIO()))
    step = make_train_step(loss_fn, plan_state(tiny.init_params, tiny.train_config(max_nonfinite=3)))
    state = spoil_state(step.plan.create(jax.random.key(0)))
    return train(state, step, map(spoil_batch, tiny.batches()), report=report, **more)


def spoilt_params(state):
    state.params["up"]["kernel"] = state.params["up"]["kernel"].at[0, 0].set(jnp.nan)
    return state


def spoilt_batch(batch):
    batch["x"][0, 0] = np.inf
    return batch


@pytest.mark.parametrize(("how", "named"), [
    ({"spoil_batch": spoilt_batch}, ["the data holds NaN", "(x)"]),
    ({"spoil_state": spoilt_params}, ["parameters hold NaN", "up.kernel"]),
    ({"loss_fn": overflows_from(5)}, ["step 8: 4 steps in a row were skipped", "the loss overflows"]),
    ({"loss_fn": overflows_from(11)}, ["the last 2 of 12 steps were skipped", "the loss overflows"]),
])  # fmt: skip
def test_training_names_where_nan_arises(how, named):
    with pytest.raises(TrainingError) as caught:
        run(**how)
    assert all(words in str(caught.value) for words in named), caught.value


def test_a_run_that_skipped_its_last_steps_is_saved_and_not_taken_for_complete(tmp_path):
    whole = experiment()
    meta = {"stage": "vae", "config": config_tools.to_dict(whole)}
    with pytest.raises(TrainingError), Checkpointer(tmp_path / "vae", meta=meta) as checkpointer:
        run(overflows_from(11), checkpointer=checkpointer)
    assert sorted(entry.name for entry in (tmp_path / "vae").iterdir()) == ["12", "8"]
    vae_train = tiny.train_config()
    with pytest.raises(TrainingError, match=r"the last 2 of 12 steps were skipped.*--cfg\.vae_train\.steps=112"):
        is_complete(tmp_path / "vae", vae_train, whole)
    assert not is_complete(tmp_path / "vae", tiny.train_config(steps=20), whole)


def test_samples_that_are_nan_are_told_and_not_shown(capsys):
    draw = lambda step, state: {"samples": np.full((1, 2, 4, 4, 3), np.nan if step == 4 else 0.0)}  # noqa: E731
    recorder = Recorder()
    result = run(hooks=(SampleHook(every=4, sample=draw),), writers=(recorder,))
    assert int(result.state.step) == 12
    assert recorder.shown == [8, 12]
    assert "step 4: samples hold NaN" in capsys.readouterr().err


def test_weights_that_are_nan_are_found_when_a_run_is_loaded(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for step, value in ((1, 1.0), (2, np.nan)):
            checkpointer.save(step, {"params": {"dit": {"w": jnp.full(3, value), "n": jnp.arange(3)}}})
    with pytest.raises(CheckpointError, match=r"/2: params hold NaN.*\(dit\.w\).*take another step of .* \(1\)"):
        load_params(tmp_path)
    np.testing.assert_array_equal(load_params(tmp_path, step=1)["dit"]["w"], 1.0)


def test_a_sampled_video_of_nan_is_an_error_and_no_black_picture(tmp_path):
    generator = tiny.generator()
    params = jax.tree.map(lambda leaf: leaf * 1e38, generator.params)
    with pytest.raises(NumericsError, match="--compute float32"):
        vdit.Generator(**vars(generator) | {"params": params})("", frames=1)
    target = output.Target(path=tmp_path / "frame.png", replace=True)
    with pytest.raises(VideoError, match="NaN"):
        output.write(target, np.full((1, 8, 8, 3), np.nan, np.float32), 8.0)
    assert list(tmp_path.iterdir()) == []
