"""One training step: gradients of one or several pieces of a batch, update, average; one jit."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vdit.dist.rules import batch_shardings, replicated
from vdit.experiment.objectives import LossFn
from vdit.experiment.training import TrainConfig
from vdit.nn.lora import join
from vdit.reprs import short_repr
from vdit.train.state import StatePlan, TrainState
from vdit.types import Array, PyTree

# Metrics of these names are sums over a batch, so pieces of it add up; all others are weighted means.
SUMMED = ("weight", "tokens")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep:
    """`step(state, batch) -> (state, metrics)`. The given state is donated: do not use it again.

    plan: of the state. jitted: the compiled function.
    frozen: parameters that the loss takes and nothing changes; passed to each call, never donated.
    then: (n, step): another step of the same plan that takes over after n steps; None where this one does them all.
    batch: tree of arrays [b ...], or [a b/a ...] for `accumulation` a > 1; it is moved to where `shardings` says.
    metrics: name -> scalar on the devices: the loss function's, with loss, grad_norm, learning_rate, skipped and
        skipped_in_a_row.
    """

    plan: StatePlan
    jitted: Any
    frozen: PyTree | None = None
    then: tuple[int, TrainStep] | None = None

    def at(self, done: int) -> TrainStep:
        """The step to take where `done` steps are done: this one, or the one that has taken over."""
        return self.then[1].at(done) if self.then is not None and done >= self.then[0] else self

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = jax.device_put(batch, self.shardings(batch))
        with jax.set_mesh(self.plan.mesh):
            return self.jitted(state, batch, *self._extra())

    def shardings(self, batch: PyTree) -> PyTree:
        """Where a batch lies on the mesh: a NamedSharding for each array (vdit.dist.rules.batch_shardings).

        batch: as the step takes it, of global shapes; arrays or ShapeDtypeStructs.
        """
        return batch_shardings(self.plan.mesh, batch, accumulation=self.plan.config.accumulation > 1)

    def lower(self, batch: PyTree) -> jax.stages.Lowered:
        """The step's program for batches of these shapes (see `shardings`), to be compiled without a state."""
        struct = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
        with jax.set_mesh(self.plan.mesh):
            abstract = jax.tree.map(struct, batch, self.shardings(batch))
            return self.jitted.lower(self.plan.abstract, abstract, *self._extra())

    def _extra(self) -> tuple[PyTree, ...]:
        return () if self.frozen is None else (self.frozen,)


def make_train_step(
    loss_fn: LossFn, plan: StatePlan, *, frozen: PyTree | None = None, held: Collection[str] = (),
    then: tuple[int, TrainStep] | None = None, compiler_options: dict[str, Any] | None = None,
) -> TrainStep:  # fmt: skip
    """Compiles one training step: gradients, update, average. The state is donated.

    Args:
        loss_fn: (params, batch, key, step) -> (loss, metrics).
        plan: shapes and shardings of the state, and the optimizer.
        frozen: arrays on the plan's mesh that the loss takes as one tree with the parameters (a base beside a LoRA); an
            argument of the compiled step, not a constant in it.
        held: paths into the parameters ("vae/encoder"): what is there stays as it is, though it has its place in the
            optimizer's state. The loss should take no gradient of it.
        then: see TrainStep.
        compiler_options: for `jax.jit`; None for none.

    Returns:
        step(state, batch) -> (state, metrics).
    """
    config, optimizer = plan.config, plan.optimizer

    def step(state: TrainState, batch: PyTree, frozen: PyTree | None = None) -> tuple[TrainState, dict]:
        shardings = batch_shardings(plan.mesh, batch, accumulation=config.accumulation > 1)
        batch = jax.lax.with_sharding_constraint(batch, shardings)
        key = jax.random.fold_in(state.key, state.step)
        whole = loss_fn if frozen is None else _beside(frozen, loss_fn)
        loss, grads, metrics = _gradients(whole, state, batch, key, config.accumulation)
        norms = config.optimizer.norms(grads)
        norm = jnp.sqrt(sum(n**2 for n in norms.values()))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        done = state.step - state.skipped
        new = _update(state, grads, optimizer, config, done, held)
        state = _accept(state, new, finite)
        metrics |= {
            "loss": loss,
            "grad_norm": norm,
            "skipped": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        }
        rate = config.optimizer.learning_rate_at(config.steps)
        if rate is not None and plan.configured:  # an optimizer that was handed in may have another one, or several
            metrics["learning_rate"] = rate(done)
        metrics |= {f"grad_norm/{group}": n for group, n in norms.items() if group}
        return state, metrics

    frozen_place = () if frozen is None else (jax.tree.map(lambda leaf: leaf.sharding, frozen),)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(plan.shardings, None, *frozen_place),
        out_shardings=(plan.shardings, replicated(plan.mesh)),
        compiler_options=compiler_options,
    )
    return TrainStep(plan=plan, jitted=jitted, frozen=frozen, then=then)


def _beside(frozen: PyTree, loss_fn: LossFn) -> LossFn:
    """Close the loss over frozen parameters, leaving a function of the trainable ones."""
    return lambda params, *rest: loss_fn(join(frozen, params), *rest)


def _gradients(loss_fn: LossFn, state: TrainState, batch: PyTree, key: jax.Array, pieces: int):
    """(loss, gradients, metrics) of a batch, worked through in `pieces` one after the other."""
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def weighted(piece, piece_key):
        (loss, metrics), grads = grad_fn(state.params, piece, piece_key, state.step)
        weight = jnp.asarray(metrics.get("weight", 1.0), jnp.float32)
        # a piece that is all padding has weight 0, and may well be 0/0
        times = lambda x: jnp.where(weight == 0, 0.0, x * weight)  # noqa: E731
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        scaled = {name: value if name in SUMMED else times(value) for name, value in metrics.items()}
        return jax.tree.map(times, grads), times(loss), weight, scaled

    if pieces == 1:
        (loss, metrics), grads = grad_fn(state.params, batch, key, state.step)
        return loss, grads, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    def add(total, piece_and_key):
        return jax.tree.map(jnp.add, total, weighted(*piece_and_key)), None

    keys = jax.random.split(key, pieces)
    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(weighted, jax.tree.map(lambda leaf: leaf[0], batch), keys[0]),
    )
    (grads, loss, weight, metrics), _ = jax.lax.scan(add, zero, (batch, keys))
    grads = jax.tree.map(lambda g: g / weight, grads)
    metrics = {name: value if name in SUMMED else value / weight for name, value in metrics.items()}
    return loss / weight, grads, metrics


def _update(
    state: TrainState, grads: PyTree, optimizer: optax.GradientTransformation, config: TrainConfig, done,
    held: Collection[str],
) -> TrainState:  # fmt: skip
    """The state after an update that is taken, but for its counters."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if held:
        params = jax.tree_util.tree_map_with_path(
            lambda path, old, new: old if _is_below(path, held) else new, state.params, params
        )
    ema = state.ema
    if ema is not None:
        rate = 1 - ema_decay(config, done)
        ema = jax.tree.map(lambda average, new: average + rate * (new - average), ema, params)
    return dataclasses.replace(state, params=params, ema=ema, opt_state=opt_state)


def _is_below(path: tuple, names: Collection[str]) -> bool:
    """Whether a leaf's path is one of `names`, or goes on from one."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return any(f"{name}/".startswith(f"{one}/") for one in names)


def ema_decay(config: TrainConfig, done: Array) -> Array:
    """Decay of the average at the update that follows `done` updates."""
    if not config.ema_warmup:
        return jnp.asarray(config.ema_decay, jnp.float32)
    return jnp.minimum(config.ema_decay, (1.0 + done) / (10.0 + done))


def _accept(old: TrainState, new: TrainState, finite: jax.Array) -> TrainState:
    """`new` if the step was finite, else `old`; the counters move either way."""
    kept = jax.tree.map(
        lambda a, b: jnp.where(finite, a, b),
        (new.params, new.ema, new.opt_state),
        (old.params, old.ema, old.opt_state),
    )
    bad = jnp.where(finite, 0, 1).astype(jnp.int32)
    return dataclasses.replace(
        old,
        step=old.step + 1,
        params=kept[0],
        ema=kept[1],
        opt_state=kept[2],
        skipped=old.skipped + bad,
        skipped_in_a_row=jnp.where(finite, 0, old.skipped_in_a_row + 1).astype(jnp.int32),
    )
