"""Evaluation while training goes: when it is done, where its figures go, and which checkpoint is kept."""

import dataclasses
import json
import types

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests import tiny
from vdit.checkpoint import BestStep, Checkpointer, best_step
from vdit.config import apply_overrides
from vdit.data.data_source import FolderSource, LatentsSource, WorldsSource
from vdit.data.latents import write_latents
from vdit.dist.mesh import make_mesh
from vdit.errors import CheckpointError, ConfigError
from vdit.train.evaluate import (
    DenoisingEvaluator,
    EvaluationRun,
    MetricsEvaluator,
    ReconstructionEvaluator,
    SampleEvaluator,
    evaluations,
)
from vdit.train.logging import JsonLines, read_json_lines
from vdit.train.loop import Evaluation, Report, start, train
from vdit.train.state import plan_state
from vdit.train.step import make_train_step
from vdit.train.workspace import Workspace

SCORES = {2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0, 10: 2.5, 12: 4.0}


def trained(folder, steps, scores=SCORES, **changes):
    """A toy run that is evaluated every 2 steps; returns (steps at which that was done, lines of figures)."""
    config = tiny.train_config(steps=steps, save_every=6, keep=1, best_metric="eval/toy/score", **changes)
    plan = plan_state(tiny.init_params, config)
    seen = []

    def measure(params):
        seen.append(params)
        return {"score": scores[2 * (len(seen) + before // 2)], "other": 0.0}

    with Checkpointer(folder / "toy", keep=config.keep) as checkpointer:
        data = tiny.batches()
        state = start(plan, jax.random.key(0), checkpointer, data)
        before = int(state.step)
        writer = JsonLines(folder / "toy.jsonl", resume_step=before)
        evaluation = Evaluation(every=2, name="toy", measure=measure)
        train(state, make_train_step(tiny.loss_fn, plan), data, checkpointer=checkpointer, hooks=(evaluation,),
              report=Report(writers=(writer,)))  # fmt: skip
    lines = [line for line in read_json_lines(folder / "toy.jsonl") if "eval/toy/score" in line]
    return {line["step"]: line["eval/toy/score"] for line in lines}


def steps_on_disk(folder):
    return sorted(int(path.name) for path in (folder / "toy").iterdir() if path.name.isdecimal())


def test_the_best_step_is_saved_when_it_is_measured_and_kept(tmp_path):
    """Step 4 is best, and no step to save; keep=1 would have deleted it."""
    assert trained(tmp_path, 12) == SCORES
    assert steps_on_disk(tmp_path) == [4, 12]
    assert best_step(tmp_path / "toy") == 4


def test_a_resumed_run_knows_its_best_step_and_gives_it_up_for_a_better_one(tmp_path):
    trained(tmp_path, 6)
    assert steps_on_disk(tmp_path) == [4, 6]
    assert trained(tmp_path, 12, SCORES | {8: 0.5}) == SCORES | {8: 0.5}
    assert steps_on_disk(tmp_path) == [8, 12]


def test_the_highest_can_be_the_best(tmp_path):
    trained(tmp_path, 12, best_is="highest")
    assert steps_on_disk(tmp_path) == [2, 12]


def test_values_of_steps_that_were_never_complete_and_those_that_are_not_finite_do_not_count(tmp_path):
    trained(tmp_path, 6)
    file = tmp_path / "toy" / "best.json"
    told = json.loads(file.read_text())
    told["values"]["5"] = -9.0  # was being saved when the run was killed
    file.write_text(json.dumps(told))
    checkpointer = Checkpointer(tmp_path / "toy")
    best = BestStep(checkpointer, "eval/toy/score", warn=pytest.fail)
    assert checkpointer.protected == {4}
    assert not best.take(8, {"eval/toy/score": float("nan")})
    assert not best.take(8, {"eval/toy/score": 1.5})
    assert best.take(10, {"eval/toy/score": 0.1})
    assert checkpointer.protected == {10}
    with pytest.raises(CheckpointError, match="eval/toy/score"):
        best.take(12, {"eval/toy/other": 1.0})


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A run's folder with statistics, and held-out latents."""
    root = tmp_path_factory.mktemp("held_out")
    rng = np.random.default_rng(0)
    sizes = [(2, 4, 4), (1, 2, 4), (3, 2, 2)]
    write_latents(root / "latents", [{"latent": 3 + 2 * rng.normal(size=(*sizes[i % 3], 4)), "captions": ["x"]}
                                     for i in range(9)])  # fmt: skip
    space = Workspace(root)
    space.save_statistics([3.0] * 4, [2.0] * 4)
    return space


def experiment_of(space, **changes):
    experiment = tiny.experiment()
    dit = dataclasses.replace(experiment.backbone, text="none")
    data = dataclasses.replace(experiment.data, row_tokens=32)
    return dataclasses.replace(
        experiment, backbone=dit, data=data, held_out=LatentsSource(path=str(space.latents)),
        dit_train=dataclasses.replace(experiment.dit_train, batch_size=2), **changes
    )  # fmt: skip


def test_the_held_out_loss_is_that_of_each_level_with_the_same_noise_every_time(space):
    """A fresh transformer predicts 0, so that the loss of velocity is the mean square of noise less data: about 2."""
    experiment = experiment_of(space, evaluators=(DenoisingEvaluator(every=1, clips=9, levels=(0.2, 0.8)),))
    (evaluation,) = evaluations(EvaluationRun(experiment, space, make_mesh()), "dit")
    params = nn.meta.unbox(experiment.network.init(jax.random.key(0)))
    figures = dict(evaluation.measure(params))
    assert figures == dict(evaluation.measure(params))
    assert set(figures) == {"loss", "level_0.2", "level_0.8"}
    assert figures["loss"] == pytest.approx((figures["level_0.2"] + figures["level_0.8"]) / 2)
    assert 1.5 < figures["loss"] < 2.5
    moved = tiny.random_params(experiment.network.init)
    assert dict(evaluation.measure(moved)) != figures


def test_rows_hold_each_clip_at_least_once_whatever_the_batch(space):
    experiment = experiment_of(space)
    rows = EvaluationRun(experiment, space, make_mesh()).rows(9)
    values = np.concatenate([np.asarray(row.values)[np.asarray(row.segment_ids) > 0] for row in rows])
    assert sum(int(np.asarray(row.segment_ids).max(axis=1).sum()) for row in rows) >= 9
    assert abs(values.mean()) < 0.3  # normalised
    assert 0.7 < values.std() < 1.3


def test_reconstruction_of_held_out_scenes_is_measured(tmp_path):
    experiment = dataclasses.replace(
        tiny.experiment(), evaluators=(ReconstructionEvaluator(every=1, videos=2),),
        vae_clips=dataclasses.replace(tiny.experiment().vae_clips, frames=5, size=(16, 16)),
    )  # fmt: skip
    run = EvaluationRun(experiment, Workspace(tmp_path), make_mesh())
    assert evaluations(run, "dit") == []
    (evaluation,) = evaluations(run, "vae")
    figures = evaluation.measure({"vae": tiny.generator().vae.params})
    assert 0 < figures["l1"] <= 2
    assert -6.1 < figures["psnr"] < 60


def test_held_out_scenes_are_other_scenes():
    data = dataclasses.replace(tiny.experiment().data, source=WorldsSource(count=4))
    seen, held_out = data.source.open(data, seed=0), data.source.open_held_out(data, seed=0)
    videos = [held_out[i]["video"] for i in range(4)]
    assert not any(np.array_equal(video, seen[i]["video"]) for i in range(4) for video in videos)


def test_what_cannot_be_evaluated_is_named_before_the_first_step(space):
    with pytest.raises(ConfigError, match="levels"):
        DenoisingEvaluator(levels=(0.0,))
    with pytest.raises(ConfigError, match="twice"):
        experiment_of(space, evaluators=(DenoisingEvaluator(), DenoisingEvaluator(every=3)))
    nothing = dataclasses.replace(experiment_of(space, evaluators=(DenoisingEvaluator(),)), held_out=None)
    nothing = dataclasses.replace(nothing, data=dataclasses.replace(nothing.data, source=FolderSource(path="x")))
    with pytest.raises(ConfigError, match=r"'folder' has none.*holdout"):
        evaluations(EvaluationRun(nothing, space, make_mesh()), "dit")
    with pytest.raises(ConfigError, match="'denoisin'"):
        apply_overrides(nothing, ["evaluators=denoisin"])


def evaluation_of(generator, experiment):
    """(run, the one evaluation) of a DiT's experiment, with a generator's VAE."""
    stats = {name: np.asarray(value) for name, value in generator.vae.statistics.items()}
    space = types.SimpleNamespace(open_tokenizer=lambda experiment: tiny.Letters(), statistics=lambda: stats)
    run = EvaluationRun(experiment, space, make_mesh())
    run.vae = generator.vae
    (evaluation,) = evaluations(run, "dit")
    return run, evaluation


def test_samples_are_held_against_held_out_scenes():
    """The figures of the same weights are the same every time, and finite; of other weights they differ."""
    generator = tiny.generator()
    experiment = dataclasses.replace(generator.experiment, evaluators=(SampleEvaluator(every=1, videos=2),))
    _, evaluation = evaluation_of(generator, experiment)
    figures = dict(evaluation.measure(generator.params))
    assert set(figures) == {"frechet", "motion", "contrast"}
    assert all(np.isfinite(value) and value >= 0 for value in figures.values())
    assert dict(evaluation.measure(generator.params)) == figures
    other = jax.tree.map(lambda x: 1.5 * x, generator.params)
    assert dict(evaluation.measure(other)) != figures


def test_metrics_of_videos_are_measured_while_training():
    """Those without weights relative to held-out scenes, exact ones of worlds, and distances by the shipped net."""
    generator = tiny.generator()
    names = ("sharpness", "attributes", "frechet")
    evaluator = MetricsEvaluator(every=1, videos=3, metrics=names)
    data = dataclasses.replace(generator.experiment.data, source=WorldsSource(world="moving", count=8))
    experiment = dataclasses.replace(generator.experiment, data=data, evaluators=(evaluator,))
    run, evaluation = evaluation_of(generator, experiment)
    figures = dict(evaluation.measure(generator.params))
    assert set(figures) == {"sharpness", "colour", "shape", "direction", "attributes", "frechet"}
    assert figures["attributes"] == 0  # the network is random
    assert figures["frechet"] > 0
    assert figures["sharpness"] > 0
    assert dict(evaluation.measure(generator.params)) == figures
    with pytest.raises(ConfigError, match=r"'psnr'.*true video"):
        dataclasses.replace(evaluator, metrics=("psnr",)).prepare(run)


@pytest.mark.parametrize("metric", ["eval/tay/score", "loss", "eval/toy"])
def test_a_best_metric_that_nothing_measures_is_refused_before_the_first_step(tmp_path, metric):
    plan = plan_state(tiny.init_params, tiny.train_config(best_metric=metric))
    evaluation = Evaluation(every=2, name="toy", measure=lambda params: {"score": 1.0})
    with pytest.raises(ConfigError, match=metric):
        train(plan.create(jax.random.key(0)), make_train_step(tiny.loss_fn, plan), iter([]), hooks=(evaluation,))
