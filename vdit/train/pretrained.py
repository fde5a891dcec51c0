"""What the DiT's training starts from, and what of it is trained: all of it, or a LoRA beside frozen weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdit import config as config_tools
from vdit import paths
from vdit.checkpoint import MANIFEST, checksums, find_step, load_meta, load_params
from vdit.dist.rules import replicated
from vdit.errors import CheckpointError, ConfigError
from vdit.experiment.distill import TEACHER
from vdit.experiment.experiment import Experiment
from vdit.experiment.objectives import DenoisingLoss
from vdit.nn.lora import LoRA, attach, detach, init_lora, join, merge, scales, without_lora
from vdit.nn.quantise import cast, quantise
from vdit.reprs import short_repr
from vdit.train.state import abstract_params
from vdit.train.workspace import SAMPLED, Workspace
from vdit.types import PyTree

# Parts of an experiment that must be the base's, since its weights are of them; and what may differ in those.
_SAME = ("vae", "text", "backbone", "diffusion.kind", "diffusion.prediction")
_MAY_DIFFER = ("dtype", "remat", "sequence_parallel", "tokenizer", "max_length", "vocab_size")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class InitState:
    """What a run of the DiT's training begins with.

    init: key -> the parameters that are trained, in boxes. params: their values to begin with, or None for those
    of `init`. frozen: the network's other parameters, on the mesh, or None where all are trained.
    """

    init: Callable[[jax.Array], PyTree]
    params: PyTree | None = None
    frozen: PyTree | None = None


def split_trainable(
    experiment: Experiment, mesh: Mesh, *, resumed: bool = False, parts: Collection[str] | None = None
) -> InitState:
    """Load the pretrained model, if any, and split it into frozen and trainable parameters.

    With `lora` that is new factors only. Without, it is the base itself, but for encoders that came trained (T5,
    image encoders). resumed: a checkpoint holds what is trained, so the base's is let go. parts: of the pretrained
    model to load ("text", "dit", ...); None loads all.
    """
    if experiment.start_from is None:
        return InitState(init=experiment.network.init)
    if experiment.expert_boundary is not None:
        raise ConfigError(
            f"expert_boundary={experiment.expert_boundary}: two experts are not trained from a base here: "
            "train one of them, with expert_boundary=none"
        )
    base = starting_params(experiment, mesh, parts)
    init = experiment.network.init
    if experiment.lora is not None:
        factors = lambda key: _lora_init(experiment, key)  # noqa: E731
        factor = scales(jax.eval_shape(factors, jax.random.key(0)), experiment.lora.scale)
        for name in list(base):  # one network at a time: they need not all be there in both forms
            base[name] = _with_weights(base.pop(name), experiment.lora.weights)
        return InitState(init=factors, frozen=join(base, jax.device_put(factor, replicated(mesh))))
    trained = [key for key in base if key == "dit" or (key == "text" and experiment.text.t5 is None)]
    rest = {key: base.pop(key) for key in list(base) if key not in trained}
    if experiment.objective.teacher:
        rest = rest | {TEACHER: rest | base}
        # A copy: the student's parameters are given up to each step, the teacher's are not.
        base = None if resumed else jax.tree.map(jnp.copy, base)
    return InitState(
        init=lambda key: {name: value for name, value in init(key).items() if name in trained},
        params=None if resumed else base,
        frozen=rest or None,
    )


def starting_params(experiment: Experiment, mesh: Mesh, parts: Collection[str] | None = None) -> PyTree:
    """The parameters {"text", "dit", ...} of the model in `start_from`, on the mesh: a vdit run's averaged ones.

    parts: those to load; None loads all.
    """
    space = Workspace(experiment.start_from)
    base = space.experiment()
    _check_same(base, experiment)
    params = trained_params(base, space, mesh, parts=parts)
    if base.lora is not None and "dit" in params:  # a LoRA on top of a run that is one: what that run is, is the sum
        params = params | {"dit": _merged(params["dit"])}
    return params


def trained_params(
    experiment: Experiment,
    space: Workspace,
    mesh: Mesh,
    *,
    ema: bool = True,
    step: int | None = None,
    as_stored: bool = False,
    parts: Collection[str] | None = None,
) -> PyTree:
    """The parameters of a trained run, whatever of them its own checkpoints hold; a LoRA is kept apart.

    ema: take the averaged ones. step: of the DiT's checkpoint; the last one if None. as_stored: keep the types of
    imported weights, rather than float32. parts: those to load; None loads all.
    """
    if experiment.start_from is None:
        abstract = abstract_params(experiment.network.init, mesh)
        return load_params(space.dit, ema=ema, step=step, abstract=abstract, as_stored=as_stored, only=parts)
    check_pretrained(experiment, load_meta(space.dit, step=step).get("base"))
    if experiment.lora is not None:
        params = starting_params(experiment, mesh, parts)
        return with_lora(params, space.root, ema=ema, step=step) if "dit" in params else params
    plain = dataclasses.replace(experiment, objective=DenoisingLoss())
    start = split_trainable(plain, mesh, resumed=True, parts=parts)
    abstract = abstract_params(start.init, mesh)
    if not abstract:  # none of the parts was trained
        return start.frozen
    trained = load_params(space.dit, ema=ema, step=step, abstract=abstract, only=parts)
    return trained if start.frozen is None else start.frozen | trained


def with_lora(params: PyTree, run_folder: str | Path, *, ema: bool = True, step: int | None = None) -> PyTree:
    """The parameters {"text", "dit", ...} of a base with the LoRA of a run attached (see vdit.nn.lora.attach)."""
    space = Workspace(run_folder)
    experiment = space.experiment()
    if experiment.lora is None:
        raise CheckpointError(f"{run_folder} is not a LoRA run (its experiment has lora=none): load it with vdit.load")
    return params | {"dit": attach(params["dit"], run_lora(space, ema=ema, step=step))}


def run_lora(space: Workspace, *, ema: bool = True, step: int | None = None) -> LoRA:
    """The LoRA that a run has trained on its DiT."""
    leaves = load_params(space.dit, ema=ema, step=step)["dit"]
    return detach(join(leaves, scales(leaves, space.experiment().lora.scale)))


def pretrained_identity(experiment: Experiment) -> dict[str, Any] | None:
    """What a checkpoint says of the base that it belongs to: its folder, step, and a digest of its files' digests."""
    if experiment.start_from is None:
        return None
    return {"folder": experiment.start_from} | step_identity(Workspace(experiment.start_from).dit)


def step_identity(directory: Path) -> dict[str, Any]:
    """What one checkpoint says of another that belongs to it: its newest step, and a digest of its files' digests."""
    folder = find_step(directory)
    (digest,) = checksums(folder, [MANIFEST]).values()
    return {"step": int(folder.name), "sha256": digest}


def check_pretrained(experiment: Experiment, saved: dict[str, Any] | None) -> None:
    """Refuses a base that is not the one a checkpoint was trained on; it may have moved to another folder."""
    now = pretrained_identity(experiment)
    same = saved == now or (saved and now and all(saved[key] == now[key] for key in ("step", "sha256")))
    if not same:
        raise CheckpointError(
            f"the checkpoint was trained on {saved}, start_from has {now}: give the folder of that base as it was"
        )


def copy_pretrained(experiment: Experiment, workspace: Workspace) -> None:
    """Gives a new run the VAE, its statistics and the tokenizer of the model that it starts from."""
    if experiment.start_from is None:
        return
    base = Workspace(experiment.start_from)
    _check_same(base.experiment(), experiment)
    if jax.process_index() != 0:
        return
    if paths.is_dir(base.vae) and not paths.exists(workspace.vae):
        step = find_step(base.vae)
        partial = workspace.vae.with_name("vae.partial")
        paths.remove_folder(partial)
        paths.copy_folder(step, partial / step.name, last=(MANIFEST,))
        paths.move_folder(partial, workspace.vae, last=(f"{step.name}/{MANIFEST}",))
    for name in SAMPLED:
        if paths.is_file(base.root / name) and not paths.exists(workspace.root / name):
            paths.copy_file(base.root / name, workspace.root / name)


def provides(experiment: Experiment, name: str) -> bool:
    """Whether the model that the run starts from provides this part."""
    return experiment.start_from is not None and paths.exists(paths.path(experiment.start_from) / name)


def _lora_init(experiment: Experiment, key: jax.Array) -> PyTree:
    boxed = jax.eval_shape(experiment.network.init, jax.random.key(0))
    lora = experiment.lora
    return {"dit": init_lora(key, boxed["dit"], targets=lora.targets, rank=lora.rank)}


def _with_weights(params: PyTree, weights: str) -> PyTree:
    if weights == "float32":
        return params
    return cast(params, weights) if weights == "bfloat16" else quantise(params, weights)


def _merged(params: PyTree) -> PyTree:
    """Parameters with a LoRA apart -> the same sum in plain kernels."""
    return merge(without_lora(params), detach(params))


def _check_same(base: Experiment, experiment: Experiment) -> None:
    """The model of a run must be the model that its weights come from."""
    changed = config_tools.diff(config_tools.to_dict(base), config_tools.to_dict(experiment))
    for key, (theirs, ours) in changed.items():
        inside = any(key == start or key.startswith(start + ".") for start in _SAME)
        if inside and key.rpartition(".")[2] not in _MAY_DIFFER:
            raise ConfigError(
                f"{key}={ours!r}: the model in start_from={experiment.start_from!r} has {theirs!r}: set it so"
            )
