"""Optimizers: registered choices of kind "optimizer"; the usual one is AdamW in optax's pieces.

Any optax optimizer can be handed to `vdit.train.run` or `plan_state` as it is. One that configs can name is a frozen
dataclass with `make`:

    @register("optimizer", "lion")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Lion(Optimizer):
        learning_rate: float = 1e-5

        def make(self, steps, axes=None):
            return optax.lion(self.learning_rate)
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vdit.errors import ConfigError
from vdit.registry import register
from vdit.reprs import short_repr
from vdit.types import PyTree

if TYPE_CHECKING:
    import optax


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of Muon (Jordan, 2024): x -> a x + b x^3 + c x^5 on singular values
RMS = 0.2  # of Muon's update of a matrix, before the learning rate: that of AdamW's (Liu et al., 2025)


def require(name: str, value: Any, holds: bool, rule: str) -> None:
    """ConfigError that names a value and its rule, unless the rule holds."""
    if not holds:
        raise ConfigError(f"{name}={value!r}: must be {rule}")


class Optimizer(Protocol):
    """How parameters follow their gradients. Implementations are registered frozen dataclasses.

    Subclass it to inherit the defaults below.
    """

    def make(self, steps: int, axes: PyTree | None = None) -> optax.GradientTransformation:
        """The optax optimizer of a run.

        Args:
            steps: of the run, for schedules.
            axes: tree of tuples of logical axes like the parameters; an axis "layers" is a stack of layers. None where
                they are not known.
        """
        ...

    def check(self, steps: int) -> None:
        """Raises ConfigError if this optimizer does not suit a run of so many steps."""

    def learning_rate_at(self, steps: int) -> optax.Schedule | None:
        """Updates so far -> learning rate, to be logged; None if it has no single one."""
        return None

    def norms(self, grads: PyTree) -> dict[str, jax.Array]:
        """Norms of the gradient, to be logged: "" is the norm of all that no other name covers."""
        import optax

        return {"": optax.tree.norm(grads)}


@register("optimizer", "adamw")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Optimizer):
    """AdamW with linear warm-up, then constant or cosine.

    learning_rate: the peak.
    warmup_steps: steps from 0 to the peak.
    schedule: what follows the warm-up; "cosine" falls to final_scale * learning_rate at the last step.
    restart: share of the steps after which warm-up and schedule begin anew (Loshchilov and Hutter, 2017); 0 for never.
    b1, b2: decay of the first and second moment. eps: added to the root of the second.
    weight_decay: decoupled; arrays of fewer than two dimensions (biases, norms) are exempt.
    clip_norm: largest global norm of the gradient; None leaves it alone.
    lr_scale: (top-level key of the parameters, factor on its learning rate); a group named here is
        also clipped by its own norm, so that a GAN's two sides do not throttle each other.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    final_scale: float = 0.0
    restart: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    lr_scale: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        require("learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        require("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more")
        require("schedule", self.schedule, self.schedule in ("constant", "cosine"), "'constant' or 'cosine'")
        require("final_scale", self.final_scale, 0 <= self.final_scale <= 1, "from 0 to 1")
        require("restart", self.restart, 0 <= self.restart < 1, "in [0, 1)")
        for name in ("b1", "b2"):
            require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        require("eps", self.eps, self.eps > 0, "above 0")
        require("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        require("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "above 0 or none")
        for group, scale in self.lr_scale:
            require(f"lr_scale[{group}]", scale, scale >= 0, "0 or more")
        groups = [group for group, _ in self.lr_scale]
        require("lr_scale", groups, len(set(groups)) == len(groups), "one factor for each group")

    def check(self, steps: int) -> None:
        warmup = self.warmup_steps
        require("optimizer.warmup_steps", warmup, warmup <= steps, f"at most steps={steps}")

    def make(self, steps: int, axes: PyTree | None = None) -> optax.GradientTransformation:
        import optax  # here: sampling imports this module too, and does without

        clip = optax.identity() if self.clip_norm is None else _clip_groups(self)
        return optax.chain(
            clip,
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=lambda params: decayed(params, axes)),
            optax.scale_by_learning_rate(self.learning_rate_at(steps)),
            _scale_groups(self),
        )

    def learning_rate_at(self, steps: int) -> optax.Schedule:
        """Updates so far -> learning rate of the next one. The first update of a warm-up is not at 0."""
        import optax

        first = round(self.restart * steps)
        if not 0 < first < steps:
            return self._schedule(steps)
        return optax.join_schedules([self._schedule(first), self._schedule(steps - first)], [first])

    def _schedule(self, steps: int) -> optax.Schedule:
        import optax

        peak, warmup = self.learning_rate, self.warmup_steps
        if self.schedule == "cosine":
            after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=self.final_scale)
        else:
            after = optax.constant_schedule(peak)
        if warmup == 0:
            return after
        ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
        return optax.join_schedules([ramp, after], [warmup])

    def norms(self, grads: PyTree) -> dict[str, jax.Array]:
        return group_norms(self, grads)


@register("optimizer", "muon")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(OptimizerConfig):
    """Muon on the matrices inside a network, AdamW on all else; schedules and clipping are those of AdamW.

    The update of a matrix is its momentum, made orthogonal (Jordan, 2024), with the root mean square that updates of
    AdamW have (Liu et al., 2025), so learning rates are of AdamW's order. Where a network meets its data (pixels,
    patches, vocabulary) and where a parameter has fewer than two dimensions in one layer, AdamW with Nesterov's
    momentum does the work.

    momentum: decay of the gradient's mean. newton_steps: iterations that make it orthogonal; on CPUs they are those of
        `orthogonalize`, which are faster where a matrix is not square (tools/bench/muon.py).
    """

    momentum: float = 0.95
    newton_steps: int = 5

    def __post_init__(self):
        super().__post_init__()
        require("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        require("newton_steps", self.newton_steps, self.newton_steps >= 1, "at least 1")

    def make(self, steps: int, axes: PyTree | None = None) -> optax.GradientTransformation:
        import optax
        from optax.contrib import muon

        # Accelerators may round products of float32 to fewer bits; iterations on squares were not tried there.
        squares = jax.default_backend() == "cpu"
        direction = muon(
            1.0,
            ns_steps=0 if squares else self.newton_steps,
            beta=self.momentum,
            eps=self.eps,
            adam_b1=self.b1,
            adam_b2=self.b2,
            muon_weight_dimension_numbers=lambda params: matrix_axes(params, axes),
            consistent_rms=RMS,
        )
        if squares:
            direction = _orthogonalized(direction, self.newton_steps, axes)
        return optax.chain(
            optax.identity() if self.clip_norm is None else _clip_groups(self),
            direction,
            optax.scale(-1.0),  # muon's updates descend already; decay and rate come after
            optax.add_decayed_weights(self.weight_decay, mask=lambda params: decayed(params, axes)),
            optax.scale_by_learning_rate(self.learning_rate_at(steps)),
            _scale_groups(self),
        )


def orthogonalize(x: jax.Array, steps: int) -> jax.Array:
    """Newton-Schulz iterations (Jordan, 2024) on the square of a matrix: G = X X^T on its smaller side.

    Each iteration multiplies X by a polynomial p of its square from the left. So the next square is p G p, and the
    product of all p is applied once. What the usual form computes on the whole matrix at each iteration is computed
    on its smaller side, squared.

    Args:
        x: [..., m, n], float32, in any scale.
        steps: iterations. A square that is 0 but for rounding grows twelvefold by each, so X is formed anew after 5.

    Returns:
        [..., m, n]; its singular values are about 1, but for those that were far below the largest.
    """
    if x.shape[-2] > x.shape[-1]:
        return jnp.swapaxes(orthogonalize(jnp.swapaxes(x, -2, -1), steps), -2, -1)
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
    linear, cubic, quintic = NEWTON_SCHULZ
    while steps > 0:
        now = min(steps, 5)
        square, product = x @ jnp.swapaxes(x, -2, -1), None
        for i in range(now):
            factor = linear * jnp.eye(x.shape[-2], dtype=x.dtype) + cubic * square + quintic * (square @ square)
            product = factor if product is None else product @ factor
            if i < now - 1:
                square = factor @ square @ factor
        x, steps = product @ x, steps - now
    return x


def _orthogonalized(
    direction: optax.GradientTransformation, steps: int, axes: PyTree | None
) -> optax.GradientTransformation:
    """`direction`, whose updates of matrices are then made orthogonal, and as large as optax's Muon makes them."""
    import optax
    from optax.contrib import MuonDimensionNumbers

    def turn(numbers: MuonDimensionNumbers | None, leaf: jax.Array) -> jax.Array:
        if numbers is None:
            return leaf
        inside = (*numbers.reduction_axis, numbers.output_axis)
        order = (*[i for i in range(leaf.ndim) if i not in inside], *inside)
        moved = leaf.transpose(order)
        matrices = moved.reshape(*moved.shape[: -len(inside)], -1, moved.shape[-1])
        scale = RMS * max(matrices.shape[-2:]) ** 0.5
        return (scale * orthogonalize(matrices, steps)).reshape(moved.shape).transpose(np.argsort(order))

    def update(updates, state, params=None):
        updates, state = direction.update(updates, state, params)
        is_leaf = lambda x: x is None or isinstance(x, MuonDimensionNumbers)  # noqa: E731
        return jax.tree.map(turn, matrix_axes(updates, axes), updates, is_leaf=is_leaf), state

    return optax.GradientTransformation(direction.init, update)


def matrix_axes(params: PyTree, names: PyTree | None = None) -> PyTree:
    """Which dimensions of each array are a matrix inside the network, for Muon; None for an array that is none.

    Args:
        params: tree of arrays; the last dimension of an array is its output.
        names: tree of tuples of logical axes (vdit/dist/rules.py), where they are known: "layers" is a stack of
            matrices, "patch" and "vocab" are where the network meets its data.

    Returns:
        Tree of optax's MuonDimensionNumbers or None; optax's MaskedNode stays where it is.
    """
    from optax import MaskedNode
    from optax.contrib import MuonDimensionNumbers

    def axes_of(leaf, axes=None):
        if isinstance(leaf, MaskedNode):  # optax asks again about the matrices alone
            return leaf
        axes = axes or ()
        inside = [i for i in range(leaf.ndim) if i >= len(axes) or axes[i] != "layers"]
        if len(inside) < 2 or {"patch", "vocab"} & set(axes):
            return None
        return MuonDimensionNumbers(reduction_axis=tuple(inside[:-1]), output_axis=inside[-1])

    trees = (params,) if names is None else (params, names)
    return jax.tree.map(axes_of, *trees, is_leaf=lambda leaf: isinstance(leaf, MaskedNode))


def decayed(params: PyTree, names: PyTree | None = None) -> PyTree:
    """True for each array that weight decay applies to: those of two dimensions or more in one layer."""
    if names is None:
        return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
    stacks = jax.tree.map(lambda _, axes: (axes or ()).count("layers"), params, names)
    return jax.tree.map(lambda leaf, stack: leaf.ndim - stack >= 2, params, stacks)


def group_norms(config: OptimizerConfig, tree: PyTree) -> dict[str, jax.Array]:
    """The global norm of each group that `lr_scale` names; "" is everything else."""
    import optax

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
    import optax

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
    import optax

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
