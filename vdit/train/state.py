"""Everything that a step reads and writes, and where it lies on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdit.dist.mesh import make_mesh
from vdit.dist.rules import named_shardings, replicated
from vdit.experiment.training import TrainConfig
from vdit.reprs import short_repr
from vdit.types import PyTree

if TYPE_CHECKING:
    import optax


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state between two steps.

    step: int32 [], optimizer steps done, skipped ones included.
    params: nested dict of arrays. ema: the same tree, averaged, or None.
    opt_state: optax's. key: the run's typed random key; a step folds its number into it.
    skipped: int32 [], non-finite steps so far. skipped_in_a_row: int32 [], those just before now.
    """

    step: Any
    params: PyTree
    ema: PyTree | None
    opt_state: PyTree
    key: Any
    skipped: Any
    skipped_in_a_row: Any

    def trees(self) -> dict[str, PyTree]:
        """The state in the parts that a checkpoint stores under names of their own."""
        progress = {
            "step": self.step,
            "key": self.key,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }
        parts = {"params": self.params, "optimizer": self.opt_state, "progress": progress}
        return parts if self.ema is None else parts | {"ema": self.ema}

    @classmethod
    def from_trees(cls, trees: dict[str, PyTree]) -> TrainState:
        """The inverse of `trees`."""
        return cls(
            params=trees["params"],
            ema=trees.get("ema"),
            opt_state=trees["optimizer"],
            **trees["progress"],
        )


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class StatePlan:
    """A state before it exists: its shapes, its place on the mesh, and how to make it.

    abstract: TrainState of ShapeDtypeStructs that carry their sharding: what a checkpoint restores into.
    shardings: TrainState of NamedShardings. configured: whether the optimizer is that of `config`. report: a line for
    each dimension left whole against the table of vdit/dist/rules.py. create(key) makes the state, each device its
    own part only; with_params(params, key) makes it of parameters that are there already, which are donated.
    """

    config: TrainConfig
    mesh: Mesh
    optimizer: optax.GradientTransformation
    configured: bool
    abstract: TrainState
    shardings: TrainState
    report: tuple[str, ...]
    create: Callable[[jax.Array], TrainState]
    with_params: Callable[[PyTree, jax.Array], TrainState]


def plan_state(
    init: Callable[[jax.Array], PyTree], config: TrainConfig, *, mesh: Mesh | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> StatePlan:  # fmt: skip
    """Lays out the state of a run on a mesh. Nothing is computed here.

    Args:
        init: key -> parameters, in Flax boxes with logical axes or plain.
        config: of the run.
        mesh: None is all devices, each with its part of the batch.
        optimizer: any optax optimizer, instead of `config.optimizer`. A resumed run must be given the same one.

    Returns:
        The plan: abstract state, shardings, and functions that make the state.
    """
    mesh = make_mesh() if mesh is None else mesh
    boxed = jax.eval_shape(init, jax.random.key(0))
    names = logical_axes(boxed)
    configured = optimizer is None
    optimizer = config.optimizer.make(config.steps, names) if optimizer is None else optimizer

    def begin(params: PyTree, key: jax.Array) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=None if config.ema_decay is None else jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            key=key,
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_a_row=jnp.zeros((), jnp.int32),
        )

    def create(key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        return begin(nn.meta.unbox(init(init_key)), run_key)

    def with_params(params: PyTree, key: jax.Array) -> TrainState:
        params = jax.tree.map(lambda leaf, made: leaf.astype(made.dtype), params, abstract.params)
        return begin(params, jax.random.split(key)[1])

    abstract = jax.eval_shape(create, jax.random.key(0))
    param_shardings, report = named_shardings(mesh, abstract.params, names)
    whole = replicated(mesh)
    shardings = TrainState(
        step=whole,
        params=param_shardings,
        ema=None if abstract.ema is None else param_shardings,
        opt_state=_like_params(abstract.opt_state, abstract.params, param_shardings, whole),
        key=whole,
        skipped=whole,
        skipped_in_a_row=whole,
    )
    struct = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return StatePlan(
        config=config,
        mesh=mesh,
        optimizer=optimizer,
        configured=configured,
        abstract=jax.tree.map(struct, abstract, shardings),
        shardings=shardings,
        report=tuple(report),
        create=jax.jit(create, out_shardings=shardings),
        with_params=jax.jit(
            with_params, in_shardings=(param_shardings, whole), out_shardings=shardings, donate_argnums=0
        ),
    )


def abstract_params(init: Callable[[jax.Array], PyTree], mesh: Mesh) -> PyTree:
    """Shapes of `init(key)`'s parameters with their place on the mesh: what to load parameters into."""
    boxed = jax.eval_shape(init, jax.random.key(0))
    shapes = nn.meta.unbox(boxed)
    param_shardings, _ = named_shardings(mesh, shapes, logical_axes(boxed))
    struct = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(struct, shapes, param_shardings)


def logical_axes(boxed: PyTree) -> PyTree:
    """The tree of parameters with each array replaced by its tuple of logical axes, or by None."""
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.names if is_box(leaf) else None, boxed, is_leaf=is_box)


def _like_params(opt_state: PyTree, params: PyTree, param_shardings: PyTree, whole: Any) -> PyTree:
    """Shardings of the optimizer's state: its copies of a parameter lie where the parameter does.

    A copy is known by its path, which ends in the parameter's path, and by its shape.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    known = {path: (leaf.shape, sharding) for (path, leaf), sharding in zip(leaves, jax.tree.leaves(param_shardings))}

    def sharding_of(path, leaf):
        for start in range(len(path)):
            shape, sharding = known.get(tuple(path[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return whole

    return jax.tree_util.tree_map_with_path(sharding_of, opt_state)
