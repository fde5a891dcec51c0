"""One step: pieces of a batch, the average, clipping, warm-up, groups, steps that are not finite."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from vdit.config import apply_overrides, from_dict, to_dict
from vdit.errors import ConfigError
from vdit.experiment.optimizer import Muon, Optimizer, decayed, matrix_axes
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.registry import register
from vdit.train.loop import PrefetchToDevice
from vdit.train.state import plan_state
from vdit.train.step import ema_decay, make_train_step


def steps_of(step, batches, each=None):
    """Trains from one start on a list of batches; returns (state, list of metrics as floats)."""
    state = step.plan.create(jax.random.key(0))
    feed = PrefetchToDevice(iter(batches), step, remaining=len(batches))
    metrics = []
    for _ in batches:
        state, values = step(state, feed.take()[0])
        metrics.append({name: float(value) for name, value in values.items()})
        if each is not None:
            each(state)
    return state, metrics


def leaves_of(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def poisoned(params, batch, key, step):
    """The toy's loss, not a number where the batch says so; also tells what the key draws."""
    loss, metrics = tiny.quiet_loss_fn(params, batch, key, step)
    return loss + jnp.where(batch["bad"].any(), jnp.nan, 0.0), metrics | {"draw": jax.random.uniform(key)}


@pytest.fixture(scope="module")
def three_batches():
    return [with_bad(tiny.batch_of(8, start), False) for start in (0, 8, 16)]


@pytest.fixture(scope="module")
def step():
    return make_train_step(poisoned, plan_state(tiny.init_params, tiny.train_config()))


@pytest.fixture(scope="module")
def whole(step, three_batches):
    return steps_of(step, three_batches)


def test_pieces_of_a_batch_make_the_step_of_the_whole(whole, three_batches):
    weights = np.concatenate([batch["mask"].reshape(4, -1).sum(axis=1) for batch in three_batches])
    assert set(weights) == {0, 1, 2}, "the pieces must weigh differently, and one be all padding"
    pieces = make_train_step(tiny.quiet_loss_fn, plan_state(tiny.init_params, tiny.train_config(accumulation=4)))
    state, metrics = steps_of(pieces, [{k: v for k, v in b.items() if k != "bad"} for b in three_batches])
    for got, want in zip(metrics, whole[1]):
        for name in ("loss", "grad_norm", "tokens", "weight"):
            assert got[name] == pytest.approx(want[name], rel=2e-6), name
    for got, want in zip(leaves_of(state.params), leaves_of(whole[0].params)):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_average_forgets_its_start_and_follows_the_parameters(step, three_batches):
    average = leaves_of(step.plan.create(jax.random.key(0)).params)

    def follow(state):
        nonlocal average
        decay = int(state.step) / (9 + int(state.step))
        average = [decay * a + (1 - decay) * p for a, p in zip(average, leaves_of(state.params))]
        for got, want in zip(leaves_of(state.ema), average):
            np.testing.assert_allclose(got, want, atol=1e-6)

    steps_of(step, three_batches, follow)


def test_the_average_warms_up_to_its_decay():
    config = tiny.train_config(ema_decay=0.9)
    assert float(ema_decay(config, jnp.asarray(0))) == pytest.approx(0.1)
    assert float(ema_decay(config, jnp.asarray(1000))) == pytest.approx(0.9)
    cold = dataclasses.replace(config, ema_warmup=False)
    assert float(ema_decay(cold, jnp.asarray(0))) == pytest.approx(0.9)


def test_without_an_average_none_is_kept():
    plan = plan_state(tiny.init_params, tiny.train_config(ema_decay=None))
    state, _ = jax.eval_shape(make_train_step(tiny.loss_fn, plan).jitted, plan.abstract, tiny.batch_of())
    assert state.ema is None
    assert "ema" not in state.trees()


def with_bad(batch, bad):
    return batch | {"bad": np.full(8, bad)}


def test_steps_that_are_not_finite_change_nothing_but_the_counters(step, three_batches, whole):
    good, bad = three_batches, with_bad(three_batches[0], True)
    mixed, metrics = steps_of(step, [good[0], bad, bad, good[1], good[2]])
    for name in ("params", "ema", "opt_state"):
        for got, want in zip(leaves_of(getattr(mixed, name)), leaves_of(getattr(whole[0], name))):
            np.testing.assert_array_equal(got, want)
    assert int(mixed.step) == 5
    assert [m["skipped"] for m in metrics] == [0, 1, 2, 2, 2]
    assert [m["skipped_in_a_row"] for m in metrics] == [0, 1, 2, 0, 0]
    assert not np.isfinite(metrics[1]["loss"])


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is(three_batches):
    def steep(params, batch, key, step):
        loss, metrics = tiny.quiet_loss_fn(params, batch, key, step)
        return loss + jnp.sqrt(jnp.sum(params["up"]["bias"] ** 2)), metrics  # slope of 0/0 at the zero bias

    train_step = make_train_step(steep, plan_state(tiny.init_params, tiny.train_config()))
    state, metrics = steps_of(train_step, three_batches[:1])
    assert np.isfinite(metrics[0]["loss"])
    assert int(state.skipped) == 1


def test_parameters_that_are_held_stay_and_others_move(three_batches):
    """"dow" is the name of none; "up" is held with all below it, and is so where the step is the second's."""
    plan = plan_state(tiny.init_params, tiny.train_config())
    held = make_train_step(poisoned, plan, held=("up", "dow"))
    step = make_train_step(poisoned, plan, then=(2, held))
    assert [step.at(n) is held for n in range(4)] == [False, False, True, True]
    before = jax.tree.map(np.asarray, plan.create(jax.random.key(0)).params)
    after = jax.tree.map(np.asarray, steps_of(held, three_batches)[0].params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert not any(jax.tree.leaves(moved["up"]))
    assert all(jax.tree.leaves(moved["down"]))


def test_each_step_draws_anew(whole):
    assert len({metrics["draw"] for metrics in whole[1]}) == 3


def test_warm_up_rises_to_the_peak_and_cosine_falls_to_the_end():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine", final_scale=0.1)
    rates = [float(config.learning_rate_at(12)(n)) for n in range(13)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[12] == pytest.approx(0.1)
    assert float(OptimizerConfig(learning_rate=2.0).learning_rate_at(12)(0)) == 2.0


def test_a_restart_is_two_schedules_one_after_the_other():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule="cosine", restart=0.6)
    once = dataclasses.replace(config, restart=0.0)
    parts = [once.learning_rate_at(steps)(n) for steps in (12, 8) for n in range(steps)]
    np.testing.assert_allclose([config.learning_rate_at(20)(n) for n in range(20)], parts, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"restart=1\.0"):
        OptimizerConfig(restart=1.0)


def sgd_like(**changes):
    """With b1 = b2 = 0, Adam's update is the sign of the gradient: the clip shows through eps only."""
    return OptimizerConfig(learning_rate=1.0, b1=0.0, b2=0.0, eps=1.0, **changes)


def update_of(config, grads, params, names=None):
    optimizer = config.make(10, names)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return updates


def test_the_clip_bounds_the_global_norm_and_leaves_small_gradients_alone():
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    big = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 100.0), params)
    unit = jax.tree.map(lambda g: g / optax.tree.norm(big), big)
    got = update_of(sgd_like(clip_norm=1.0), big, params)
    want = update_of(sgd_like(clip_norm=None), unit, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)
    small = jax.tree.map(lambda g: g * 0.5, unit)
    got, want = (update_of(sgd_like(clip_norm=c), small, params) for c in (1.0, None))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_group_has_its_own_rate_and_its_own_clip():
    params = {"vae": {"w": jnp.zeros((2, 2))}, "disc": {"w": jnp.zeros((2, 2))}}
    grads = {"vae": {"w": jnp.full((2, 2), 0.25)}, "disc": {"w": jnp.full((2, 2), 1e6)}}
    got = update_of(sgd_like(clip_norm=1.0, lr_scale=(("disc", 0.5),)), grads, params)
    alone = update_of(sgd_like(clip_norm=1.0), {"vae": grads["vae"]}, {"vae": params["vae"]})
    np.testing.assert_allclose(got["vae"]["w"], alone["vae"]["w"], rtol=1e-6)
    # clipped to norm 1 each entry is 1/2, Adam with eps 1 makes it (1/2) / (1/2 + 1), the group halves it
    np.testing.assert_allclose(got["disc"]["w"], np.full((2, 2), -0.5 / 3), rtol=1e-5)


def test_a_group_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"\['discriminator'\].*\['a'\]"):
        update_of(sgd_like(lr_scale=(("discriminator", 1.0),)), {"a": jnp.ones(2)}, {"a": jnp.ones(2)})


def test_weight_decay_spares_biases_and_norms_in_a_stack_of_layers_too():
    params = {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4)), "scale": jnp.ones(4)}
    names = {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp"), "scale": None}
    assert decayed(params, names) == {"kernel": True, "bias": False, "scale": False}
    assert decayed(params) == {"kernel": True, "bias": True, "scale": False}
    zero = jax.tree.map(jnp.zeros_like, params)
    got = update_of(sgd_like(weight_decay=0.1), zero, params, names)
    np.testing.assert_allclose(got["kernel"], -0.1 * np.ones((3, 4, 4)), rtol=1e-6)
    np.testing.assert_array_equal(got["bias"], np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OptimizerConfig(learning_rate=0.0), r"learning_rate=0.0: must be above 0"),
        (lambda: OptimizerConfig(schedule="linear"), "schedule='linear'"),
        (lambda: OptimizerConfig(clip_norm=-1.0), "clip_norm=-1.0"),
        (lambda: OptimizerConfig(lr_scale=(("a", 1.0), ("a", 2.0))), "lr_scale"),
        (lambda: TrainConfig(steps=0, batch_size=1), "steps=0"),
        (lambda: TrainConfig(steps=1, batch_size=6, accumulation=4), "batch_size=6 must be a multiple"),
        (lambda: TrainConfig(steps=1, batch_size=1, ema_decay=1.0), r"ema_decay=1.0: must be in \[0, 1\)"),
        (lambda: tiny.train_config(optimizer=OptimizerConfig(warmup_steps=99)), "warmup_steps=99: .* at most"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_an_optax_optimizer_can_be_handed_in():
    """Any one: its own state, its own learning rate."""
    config = tiny.train_config(ema_decay=None)
    plan = plan_state(tiny.init_params, config, optimizer=optax.sgd(0.5))
    state = plan.create(jax.random.key(0))
    batch = tiny.batch_of()
    before = jax.device_get(state.params)
    step = make_train_step(tiny.quiet_loss_fn, plan)
    grads = jax.grad(lambda p: tiny.quiet_loss_fn(p, batch, None, 0)[0])(before)
    state, metrics = step(state, batch)
    want = jax.tree.map(lambda p, g: p - 0.5 * g, before, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.params, want)
    assert "learning_rate" not in metrics


@register("optimizer", "test_lion")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    rate: float = 1e-3

    def make(self, steps, axes=None):
        return optax.lion(self.rate)


def test_a_registered_optimizer_is_named_by_the_config():
    config = apply_overrides(tiny.train_config(), ["optimizer=test_lion", "optimizer.rate=0.01"])
    assert from_dict(TrainConfig, to_dict(config)) == config
    plan = plan_state(tiny.init_params, config)
    batch = tiny.batch_of()
    state = plan.create(jax.random.key(0))
    before = jax.device_get(state.params["up"]["kernel"])
    state, _ = make_train_step(tiny.quiet_loss_fn, plan)(state, batch)
    moved = np.abs(np.asarray(state.params["up"]["kernel"]) - before)
    np.testing.assert_allclose(moved[moved > 0], 0.01, rtol=1e-2)  # Lion steps by the sign alone


MUON = Muon(learning_rate=0.01, weight_decay=0.1, warmup_steps=0, clip_norm=None)


def updates_of(optimizer, grads, params, axes=None, steps=2):
    made = optimizer.make(10, axes)
    state, out = made.init(params), None
    for _ in range(steps):
        out, state = made.update(grads, state, params)
    return jax.tree.map(np.asarray, out)


def test_muon_turns_a_matrix_of_gradients_into_an_orthogonal_one():
    """All singular values of an update are alike, and it is as large as one of AdamW's (0.2 times the rate)."""
    rng = np.random.default_rng(0)
    grads = {"w": jnp.asarray(rng.normal(size=(24, 64)) * np.logspace(0, -2, 24)[:, None], jnp.float32)}
    update = updates_of(dataclasses.replace(MUON, weight_decay=0.0), grads, jax.tree.map(jnp.zeros_like, grads))["w"]
    of_gradient, of_update = (np.linalg.svd(m, compute_uv=False) for m in (np.asarray(grads["w"]), update))
    assert of_gradient.max() / of_gradient.min() > 50
    assert of_update.max() / of_update.min() < 2.5
    np.testing.assert_allclose(np.sqrt(np.mean(update**2)), 0.2 * 0.01, rtol=0.25)
    assert np.sum(update * np.asarray(grads["w"])) < 0  # it descends


@pytest.mark.parametrize("steps", [1, 5, 7])
def test_muon_moves_as_optaxs_does(steps):
    """Kernels of convolutions, stacks of layers, tall and wide matrices, one of rank 1, and one of zeros."""
    rng = np.random.default_rng(3)
    axes = {"conv": (None, None, "embed", "mlp"), "stack": ("layers", "embed", "heads", None), "tall": ("mlp", "embed"),
            "flat": ("embed", "mlp"), "still": ("embed", "mlp"), "bias": ("mlp",)}  # fmt: skip
    shapes = {"conv": (3, 3, 8, 12), "stack": (2, 8, 2, 4), "tall": (32, 8), "flat": (48, 96), "still": (4, 6),
              "bias": (12,)}  # fmt: skip
    grads = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    grads["flat"] = grads["flat"][:, :1] * grads["flat"][:1]  # of rank 1
    grads["still"] = jnp.zeros_like(grads["still"])
    params = jax.tree.map(jnp.zeros_like, grads)
    config = dataclasses.replace(MUON, weight_decay=0.0, newton_steps=steps)
    optaxs = optax.contrib.muon(
        0.01, ns_steps=steps, beta=config.momentum, eps=config.eps, adam_b1=config.b1, adam_b2=config.b2,
        muon_weight_dimension_numbers=lambda params: matrix_axes(params, axes), consistent_rms=0.2,
    )  # fmt: skip
    state = optaxs.init(params)
    for _ in range(2):
        expected, state = optaxs.update(grads, state, params)
    got = updates_of(config, grads, params, axes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-2 * np.abs(b).max()), got, expected)


def test_muon_leaves_what_is_no_matrix_inside_the_network_to_adamw():
    rng = np.random.default_rng(1)
    shapes = {"bias": (8,), "table": (16, 8), "patches": (12, 8), "scales": (3, 8)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    axes = {"bias": ("embed",), "table": ("vocab", "embed"), "patches": ("patch", "embed"), "scales": ("layers", None)}
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    adamw = optax.adamw(0.01, b1=MUON.b1, b2=MUON.b2, eps=MUON.eps, weight_decay=0.1, nesterov=True,
                        mask=lambda params: decayed(params, axes))  # fmt: skip
    state = adamw.init(params)
    for _ in range(2):
        updates, state = adamw.update(grads, state, params)
    got = updates_of(MUON, grads, params, axes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), got, updates)


def test_muon_sees_each_layer_of_a_stack_as_a_matrix_of_its_own():
    rng = np.random.default_rng(2)
    layers = [{"w": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)} for _ in range(3)]
    grads = [{"w": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)} for _ in range(3)]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    whole = updates_of(MUON, stack(grads), stack(layers), {"w": ("layers", "embed", "mlp")})["w"]
    apart = [updates_of(MUON, g, p, {"w": ("embed", "mlp")})["w"] for g, p in zip(grads, layers)]
    np.testing.assert_allclose(whole, np.stack(apart), rtol=1e-4, atol=1e-7)


def test_muon_is_chosen_by_the_config_and_learns():
    config = apply_overrides(tiny.train_config(ema_decay=None), ["optimizer=muon", "optimizer.learning_rate=0.02"])
    assert from_dict(TrainConfig, to_dict(config)) == config
    step = make_train_step(tiny.quiet_loss_fn, plan_state(tiny.init_params, config))
    _, metrics = steps_of(step, [tiny.batch_of(8)] * 24)
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
