"""Consistency distillation: the true function has the least loss and is learned, what is known is left alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import lora_experiment, make_base, train
from vdit.checkpoint import find_step, load_params
from vdit.data.packing import PackItem, RowShape, build_rows
from vdit.diffusion import DDPM, DiffusionConfig, Flow, from_clean_and_noise
from vdit.dist.mesh import make_mesh
from vdit.errors import ConfigError
from vdit.experiment.canvases import CanvasConfig, DrawnCanvas
from vdit.experiment.distill import TEACHER, ConsistencyDistillation, Networks, consistency_gap, pseudo_huber, step_down
from vdit.experiment.experiment import Experiment
from vdit.experiment.training import LoRAConfig
from vdit.models.backbone import Output
from vdit.models.conditions import ClassCondition
from vdit.models.dit.config import DiTConfig
from vdit.models.vae.config import preset
from vdit.sampling.canvas import Canvas, tokenize
from vdit.sampling.config import sampling_config
from vdit.sampling.denoise import denoise
from vdit.train.pretrained import split_trainable, starting_params, trained_params
from vdit.train.resume import last_step
from vdit.train.workspace import Workspace

MEAN, STD = 0.5, 0.4  # of data whose values are independent Gaussians
KEY = jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Nearly all the time here is XLA's: ask it for less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def likely(x, alpha, sigma, std):
    """The mean of what the data may be, given x: what a teacher says."""
    return MEAN + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * MEAN)


def place(x, alpha, sigma, std):
    """Where the probability-flow ODE ends that goes through x: the true consistency function."""
    return MEAN + std / jnp.sqrt(alpha**2 * std**2 + sigma**2) * (x - alpha * MEAN)


def gap(mix, *, steps, std=STD, schedule=None, prediction="velocity", **networks):
    """Root of the mean gap at all levels of a grid, of a student between the teacher, 0, and the truth, 1."""
    schedule = schedule or Flow()
    level = jnp.linspace(1.0, 0.0, steps + 1)[None]
    frame_index = jnp.tile(jnp.arange(steps), 50)[None]

    def network(mix):
        def predict(x, levels):
            t = jnp.take_along_axis(levels, frame_index, axis=1)[..., None]
            alpha, sigma = schedule.alpha(t), jnp.maximum(schedule.sigma(t), 1e-4)
            x0 = likely(x, alpha, sigma, std)
            x0 = x0 + mix * (place(x, alpha, sigma, std) - x0)
            return from_clean_and_noise(prediction, x0, (x - alpha * x0) / sigma, alpha, sigma)

        return predict

    t = jnp.take_along_axis(level, frame_index, axis=1)[..., None]
    spread = jnp.hypot(schedule.alpha(t) * std, schedule.sigma(t))
    x = schedule.alpha(t) * MEAN + spread * jax.random.normal(KEY, t.shape)
    mixes = {"student": mix, "target": mix, "teacher": 0.0} | networks
    square = consistency_gap(
        x, frame_index, level[:, :-1], level[:, 1:], Networks(**{name: network(m) for name, m in mixes.items()}),
        schedule=schedule, prediction=prediction,
    )  # fmt: skip
    return jnp.sqrt(jnp.mean(square))


def test_of_one_point_the_true_function_has_no_loss():
    """The teacher's straight step is then exact. Students that lie elsewhere have a loss."""
    assert gap(1.0, steps=8, std=0.0) < 1e-5
    assert gap(1.0, steps=8, std=0.0, target=-1.0) < 1e-5  # both say the point itself
    assert gap(1.0, steps=8, std=0.4, target=0.0) > 0.1


@pytest.mark.parametrize(
    ("schedule", "prediction", "share"),
    [(Flow(), "velocity", 0.2), (Flow(), "v", 0.2), (Flow(), "sample", 0.2), (DDPM(), "v", 0.7)],
)
def test_the_true_function_has_the_least_loss_which_falls_as_the_teachers_error(schedule, prediction, share):
    options = {"schedule": schedule, "prediction": prediction}
    measure = jax.jit(lambda mix, steps: gap(mix, steps=steps, **options), static_argnums=1)
    coarse, fine = (float(measure(1.0, steps)) for steps in (16, 64))
    others = [float(measure(mix, 64)) for mix in (0.0, 0.8, 1.2)]
    print(f"true at 16 steps {coarse:.5f}, at 64 {fine:.5f}, elsewhere {others}")
    assert fine < share * min(others)
    assert coarse / fine > 10  # a step of first order errs by its length squared: by a 16th


def test_of_clean_data_the_last_target_is_what_was_stepped_to_whatever_the_network_says():
    level, lower = jnp.array([[0.5]]), jnp.array([[0.0]])
    x = jnp.full((1, 3, 1), 0.7)
    says = lambda value: lambda *_: jnp.full_like(x, value)  # noqa: E731
    told = Networks(student=says(0.2), target=says(jnp.nan), teacher=says(0.3))
    frames = jnp.zeros((1, 3), int)
    square = consistency_gap(x, frames, level, lower, told, schedule=Flow(), prediction="sample")
    np.testing.assert_allclose(square, 0.1**2, rtol=1e-5)


def test_gradients_reach_the_guess_alone():
    slope = lambda **moved: jax.grad(lambda m: gap(0.3, steps=8, **{name: m for name in moved}))(0.3)  # noqa: E731
    assert slope(teacher=True) == 0
    assert slope(target=True) == 0
    assert abs(slope(student=True)) > 1e-3
    np.testing.assert_allclose(slope(student=True, target=True), slope(student=True), rtol=1e-6)


def test_the_distance_is_square_for_small_gaps_and_plain_for_large():
    np.testing.assert_allclose(pseudo_huber(jnp.float32(1e-2**2), 1.0), 1e-2**2 / 2, rtol=1e-2)
    np.testing.assert_allclose(pseudo_huber(jnp.float32(100.0**2), 1.0), 100.0, rtol=2e-2)


def test_steps_lie_on_the_shifted_grid_and_what_is_known_stays(row):
    frame_segment_ids = jnp.array([[1, 1, 2, 2, 0]])
    drawn = DrawnCanvas(
        row=dataclasses.replace(row, frame_segment_ids=frame_segment_ids),
        levels=jnp.array([[1.0, 0.26, 0.25, 0.3, 0.0]]),
        known=jnp.zeros((1, 1), bool),
        known_frames=jnp.array([[False, False, False, True, False]]),
    )
    level, lower = step_down(drawn, Flow(shift=3.0), 4)
    shifted = lambda *t: np.array([[3 * u / (1 + 2 * u) for u in t]])  # noqa: E731
    want = shifted(1.0, 0.5, 0.25, 0, 0), shifted(0.75, 0.25, 0.0, 0, 0)
    moves = slice(0, 3)
    np.testing.assert_allclose((level[:, moves], lower[:, moves]), [w[:, moves] for w in want], rtol=1e-6)
    np.testing.assert_array_equal(level[:, 3:], lower[:, 3:])
    np.testing.assert_array_equal(level[:, 3:], drawn.levels[:, 3:])


class ToyNetwork:
    """Predicts velocity, as in `gap`; `pull` [] times the label is added. told: what it was asked, while tracing."""

    action_width = 0

    def __init__(self, classes=0):
        self.told, self.classes = [], classes

    def encode_text(self, params, row):
        return None

    def apply(self, params, row, time, text=None):
        self.told.append({"mix": params["mix"], "values": row.values, "frame_index": row.frame_index, "time": time})
        t = jnp.take_along_axis(time / 1000, row.frame_index, axis=1)[..., None]
        alpha, x = 1 - t, row.values
        x0 = likely(x, alpha, t, STD)
        x0 = x0 + params["mix"] * (place(x, alpha, t, STD) - x0)
        label = jnp.pad(row.cond["label"], ((0, 0), (1, 0)))
        label = jnp.take_along_axis(label, row.segment_ids, axis=1)[..., None]
        return Output(prediction=(x - x0) / jnp.maximum(t, 1e-6) + params.get("pull", 0.0) * label)

    @property
    def all_conditions(self):
        return (ClassCondition(classes=self.classes),) if self.classes else ()

    def drop(self, row, clips):
        return ClassCondition(classes=self.classes).drop(row, clips)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Experiment):
    """Data that are Gaussian, whose teacher and consistency function are formulas."""

    toy: ToyNetwork

    @property
    def network(self):
        return self.toy


def toy(objective=None, classes=0, **changes) -> Toy:
    return Toy(**{
        "name": "toy", "toy": ToyNetwork(classes), "start_from": "nowhere", "vae": preset("tiny", latent_channels=4),
        "backbone": DiTConfig(in_channels=4, text="none", classes=classes),
        "objective": objective or ConsistencyDistillation(guidance=1.0, steps=32), **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def row():
    rng = np.random.default_rng(0)

    def clip(grid):
        values = (MEAN + STD * rng.standard_normal((np.prod(grid), 16))).astype(np.float32)
        return PackItem(values=values, grid=grid, text=np.array([1], np.int32))

    groups = [[clip((5, 2, 2)), clip((3, 3, 2)), clip((1, 4, 4))] for _ in range(4)]
    rows = jax.tree.map(jnp.asarray, build_rows(groups, RowShape(tokens=64, text=8, frames=24, clips=6)))
    return rows.with_cond("label", jnp.tile(jnp.where(jnp.arange(6) < 3, 1, 0), (4, 1)), "clip")


def params_of(mix, pull=0.0):
    teacher = {"mix": jnp.float32(0.0), "pull": jnp.float32(pull)}
    return {"mix": jnp.asarray(mix, jnp.float32), TEACHER: teacher}


def loss_of(experiment, params, row, key=KEY):
    return jax.jit(experiment.objective.make_loss(experiment.model))(params, row, key, 0)[0]


def test_a_student_learns_the_true_function(row):
    """From the teacher's own estimate, by gradients alone."""
    experiment = toy()
    loss = experiment.objective.make_loss(experiment.model)

    def descend(mix, key):
        gradient = jax.grad(lambda m: loss(params_of(m), row, key, 0)[0])(mix)
        return mix - 4.0 * gradient, gradient

    mix, _ = jax.jit(lambda: jax.lax.scan(descend, jnp.float32(0.0), jax.random.split(KEY, 400)))()
    assert abs(mix - 1.0) < 0.1


def test_the_noisiest_level_is_drawn_as_often_as_others(row):
    """Sampling begins there, and the teacher's own draws would hardly visit it."""
    experiment = toy(ConsistencyDistillation(guidance=1.0, steps=4))

    def told(key):
        experiment.toy.told.clear()
        experiment.objective.make_loss(experiment.model)(params_of(0.0), row, key, 0)
        return experiment.toy.told[0]["time"]

    time = jax.jit(jax.vmap(told))(jax.random.split(KEY, 200))
    used = time[jnp.broadcast_to(row.frame_segment_ids > 0, time.shape)]
    for level in (250, 500, 750, 1000):
        assert 0.2 < np.mean(np.isclose(used, level)) < 0.3


def test_known_tokens_stay_are_told_level_0_and_do_not_count(row):
    canvases = CanvasConfig(none=0.0, head=1.0, mask=1.0, context_dropout=0.0)
    experiment = toy(canvases=canvases)

    @jax.jit
    def traced(row):
        experiment.toy.told.clear()
        loss, metrics = experiment.objective.make_loss(experiment.model)(params_of(0.3), row, KEY, 0)
        return loss, metrics, list(experiment.toy.told)

    loss, metrics, told = traced(row)
    (teacher,) = (call for call in told if call["mix"] == 0.0)
    target, student = sorted((call for call in told if call["mix"] != 0.0), key=lambda call: call["time"].sum())
    of_tokens = lambda call: jnp.take_along_axis(call["time"], call["frame_index"], axis=1)  # noqa: E731
    known, free = ((row.segment_ids > 0) & hit for hit in (of_tokens(student) == 0, of_tokens(student) > 0))
    assert known.sum() > 20 < free.sum()
    for call in (teacher, target, student):
        np.testing.assert_array_equal(call["values"][known], row.values[known])
        np.testing.assert_array_equal(of_tokens(call)[known], 0)
    for name in ("values", "time"):
        np.testing.assert_array_equal(teacher[name], student[name])
    np.testing.assert_allclose((of_tokens(student) - of_tokens(target))[free], 1000 / 32, rtol=1e-4)
    assert metrics["weight"] == free.sum()
    junk = dataclasses.replace(row, values=jnp.where(known[..., None], 7.0, row.values))
    assert traced(junk)[0] == loss  # the toy looks at no token but its own
    assert traced(dataclasses.replace(row, values=jnp.where(free[..., None], 7.0, row.values)))[0] != loss


def test_the_teacher_is_guided_inside_the_interval(row):
    """Guidance by g of a teacher that is pulled by its label is a pull g times as strong."""
    guided = lambda pull, **options: loss_of(  # noqa: E731
        toy(ConsistencyDistillation(**options), classes=2, text_dropout=0.0), params_of(0.5, pull), row
    )
    np.testing.assert_allclose(guided(0.1, guidance=3.0), guided(0.3, guidance=1.0), rtol=1e-5)
    plain = guided(0.1, guidance=1.0)
    assert abs(guided(0.1, guidance=3.0) - plain) > 1e-3 * plain
    np.testing.assert_allclose(guided(0.1, guidance=3.0, interval=(0.0, 0.0)), plain, rtol=1e-6)


def test_what_cannot_be_distilled_is_refused():
    with pytest.raises(ConfigError, match=r"objective needs a teacher.*start_from"):
        toy(start_from=None)
    with pytest.raises(ConfigError, match="set lora=none"):
        toy(lora=LoRAConfig())
    with pytest.raises(ConfigError, match=r"diffusion.prediction='noise'.* needs 'velocity', 'v' or 'sample'"):
        toy(diffusion=DiffusionConfig(kind="ddpm", prediction="noise"))
    for wrong in ({"steps": 1}, {"huber": 0.0}, {"guidance": -1.0}, {"interval": (0.5, 0.2)}):
        with pytest.raises(ConfigError, match=f"objective.{next(iter(wrong))}="):
            ConsistencyDistillation(**wrong)


def student_of(base: Path) -> Experiment:
    experiment = lora_experiment(base, lora=None, steps=4, save_every=2, learning_rate=1e-3)
    sample = dataclasses.replace(experiment.sample, sampler="consistency", steps=2, guidance=1.0)
    return dataclasses.replace(experiment, objective=ConsistencyDistillation(steps=8), sample=sample)


def test_a_run_distils_resumes_bit_for_bit_and_samples_in_two_steps(tmp_path):
    base = tmp_path / "base"
    make_base(base)
    whole, parts = Workspace(tmp_path / "whole"), Workspace(tmp_path / "parts")
    experiment = train(student_of(base), whole.root)
    shutil.copytree(whole.root, parts.root)
    shutil.rmtree(find_step(parts.dit))
    assert last_step(parts.dit) == 2
    train(experiment, parts.root)
    for ema in (True, False):
        one, two, teacher = (load_params(dit, ema=ema) for dit in (whole.dit, parts.dit, base / "dit"))
        jax.tree.map(np.testing.assert_array_equal, one, two)
        assert jax.tree.structure(one) == jax.tree.structure(teacher), "the teacher is not saved again"
        assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(teacher)))

    mesh = make_mesh()
    teacher = split_trainable(experiment, mesh).frozen[TEACHER]
    jax.tree.map(np.testing.assert_array_equal, teacher, starting_params(experiment, mesh))
    prompts = tokenize(whole.open_tokenizer(experiment), ["a red disc"], length=8)
    canvas = Canvas(latents=jnp.zeros((1, 3, 4, 4, 4)), level=jnp.array([0.0, 1.0, 1.0]).reshape(1, 3, 1, 1))
    method = sampling_config(experiment)
    sample = jax.jit(lambda params: denoise(experiment.network, params, canvas, prompts, prompts, KEY, method))
    made = sample(trained_params(experiment, whole, mesh))
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made[:, 0], 0.0)
    assert np.std(made[:, 1:]) > 0.01
