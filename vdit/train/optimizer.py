"""AdamW in optax's pieces: clip, adam, decay, schedule, a factor for each group of parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from vdit.errors import ConfigError
from vdit.experiment.training import OptimizerConfig
from vdit.types import PyTree


def make_optimizer(
    config: OptimizerConfig, steps: int, names: PyTree | None = None
) -> optax.GradientTransformation:
    """The optimizer of `config` for a run of `steps`.

    names: tree of tuples of logical axes like the parameters; where given, an axis `layers` (a stack
    made by scan) does not count as a dimension when biases and norms are told from matrices.
    """
    clip = optax.identity() if config.clip_norm is None else _clip_groups(config)
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: decayed(params, names)),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
        _scale_groups(config),
    )


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Updates so far -> learning rate of the next one. The first update of a warm-up is not at 0."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=config.final_scale)
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def decayed(params: PyTree, names: PyTree | None = None) -> PyTree:
    """True for each array that weight decay applies to: those of two dimensions or more in one layer."""
    if names is None:
        return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
    stacks = jax.tree.map(lambda _, axes: (axes or ()).count("layers"), params, names)
    return jax.tree.map(lambda leaf, stack: leaf.ndim - stack >= 2, params, stacks)


def group_norms(config: OptimizerConfig, tree: PyTree) -> dict[str, jax.Array]:
    """The global norm of each group that `lr_scale` names; "" is everything else."""
    named = {group for group, _ in config.lr_scale}
    if not named:
        return {"": optax.tree.norm(tree)}
    missing = sorted(named - set(tree))
    if missing:
        raise ConfigError(f"lr_scale names {missing}: the parameters have the top-level keys {sorted(tree)}")
    norms = {group: optax.tree.norm(tree[group]) for group in sorted(named)}
    rest = {key: branch for key, branch in tree.items() if key not in named}
    return norms | ({"": optax.tree.norm(rest)} if rest else {})


def _clip_groups(config: OptimizerConfig) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        del params
        scales = {
            group: jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-12))
            for group, norm in group_norms(config, updates).items()
        }
        by_name = lambda group: scales.get(group, scales.get(""))  # noqa: E731
        return _by_group(updates, by_name, named=bool(config.lr_scale)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale_groups(config: OptimizerConfig) -> optax.GradientTransformation:
    factors = dict(config.lr_scale)

    def update(updates, state, params=None):
        del params
        if not factors:
            return updates, state
        return _by_group(updates, lambda group: factors.get(group, 1.0), named=True), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _by_group(tree: PyTree, factor, *, named: bool) -> PyTree:
    times = lambda branch, scale: jax.tree.map(lambda leaf: leaf * scale, branch)  # noqa: E731
    if not named:
        return times(tree, factor(""))
    return {key: times(branch, factor(key)) for key, branch in tree.items()}
