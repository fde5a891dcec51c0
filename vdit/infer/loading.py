"""Models from disk onto a mesh: runs of `vdit train`, imported models, and folders of public weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.checkpoint import load_params
from vdit.dist.mesh import make_mesh
from vdit.dist.rules import replicated
from vdit.errors import VditWarning
from vdit.infer.generator import Generator
from vdit.infer.precision import Compute, Weights, computing, fast_compute, held_as
from vdit.nn.lora import attach, merge
from vdit.pretrained.lora_files import LoRAFile, open_loras
from vdit.pretrained.model import PublicModel, open_model
from vdit.train.base import trained_params
from vdit.train.resuming import check_run
from vdit.train.workspace import EXPERIMENT, Workspace, open_tokenizer
from vdit.types import PyTree
from vdit.vae.video import VideoVAE


def load(
    path: str | Path,
    mesh: Mesh | None = None,
    *,
    ema: bool = True,
    step: int | None = None,
    compute: Compute | None = None,
    weights: Weights | None = None,
    lora: str | Path | LoRAFile | Sequence[str | Path | LoRAFile] = (),
    merge_lora: bool = False,
    parts: Sequence[str | Path] = (),
) -> Generator:
    """Load a model onto a mesh (all devices, if None).

    path: the folder of a run of `vdit train`, of an imported model (`vdit import`), or of public weights as they
        were published, or of a Wan's transformer alone in one file (vdit.pretrained.open_model).
    parts: of such a file, where its other networks are: files, folders, or the folder of a public model; without them
        they are looked for beside it (vdit.pretrained.single_file).
    ema: take the averaged parameters. step: of the DiT's checkpoint; the last one if None. Of runs only.
    compute: type of the matrix products; None is the run's own, and for public weights bfloat16, or float32 on CPU.
    weights: how parameters are held: "bfloat16", or "int8" and "fp8" for the kernels of dense layers; None as stored.
    lora: LoRA files in the public layouts (docs/lora.md), each "FILE[:STRENGTH][@EXPERT]" or a LoRAFile. They are
        checked before any weights are loaded.
    merge_lora: add them to the kernels, which costs nothing later. Else factors of low rank are kept apart, and the
        kernels may be quantised.
    A VditWarning says what of a LoRA was assumed or left out. Raises CheckpointError or WeightsError where something is
    missing or damaged.
    """
    mesh = make_mesh() if mesh is None else mesh
    of_run = (Path(path) / EXPERIMENT).exists() or not Path(path).exists()
    model = None if of_run else open_model(path, [parts] if isinstance(parts, str | Path) else parts)
    given = [lora] if isinstance(lora, str | Path | LoRAFile) else lora
    loras = open_loras(given, Workspace(path).experiment() if of_run else model.experiment, _warn) if given else []
    if of_run:
        generator = _load_run(Path(path), mesh, ema=ema, step=step, compute=compute)
    else:
        generator = _load_public(model, mesh, compute=compute)
    params = dict(generator.params)
    for tree, addition, strength in loras:
        params[tree] = (merge if merge_lora else attach)(params[tree], addition, strength)
    vae = generator.vae
    if weights in ("float32", "bfloat16"):
        vae = VideoVAE(config=vae.config, params=held_as(vae.params, weights), statistics=vae.statistics)
    for name in list(params):  # one at a time: the whole network need not be there in both forms
        params[name] = held_as(params.pop(name), weights)
    return Generator(
        experiment=generator.experiment, params=params, vae=vae, tokenizer=generator.tokenizer, mesh=mesh
    )


def load_vae(checkpoint_dir: str | Path, *, mesh: Mesh | None = None) -> VideoVAE:
    """The VAE of a run alone, replicated on the mesh; the DiT need not be trained yet."""
    mesh = make_mesh() if mesh is None else mesh
    space = Workspace(checkpoint_dir)
    config = space.experiment().vae
    params = jax.device_put(load_params(space.vae)["vae"], replicated(mesh))
    statistics = space.statistics()
    if statistics is None:
        channels = config.latent_channels
        statistics = {"mean": jnp.zeros(channels), "std": jnp.ones(channels)}
    return VideoVAE(config=config, params=params, statistics=_on(mesh, statistics))


def _warn(line: str) -> None:
    warnings.warn(line, VditWarning, stacklevel=4)


def _load_run(path: Path, mesh: Mesh, *, ema: bool, step: int | None, compute: Compute | None) -> Generator:
    space = Workspace(path)
    experiment = space.experiment()
    check_run(experiment, space, step=step)
    params = trained_params(experiment, space, mesh, ema=ema, step=step, as_stored=True)
    vae = load_vae(path, mesh=mesh)
    tokenizer = space.open_tokenizer(experiment)
    experiment = computing(experiment, compute)
    vae = VideoVAE(config=experiment.vae, params=vae.params, statistics=vae.statistics)
    return Generator(experiment=experiment, params=params, vae=vae, tokenizer=tokenizer, mesh=mesh)


def _load_public(model: PublicModel, mesh: Mesh, *, compute: Compute | None) -> Generator:
    experiment = computing(model.experiment, compute or fast_compute())
    tokenizer = open_tokenizer(experiment, model.tokenizer)
    params, vae = model.load(mesh)
    video_vae = VideoVAE(config=experiment.vae, params=vae, statistics=_on(mesh, model.statistics))
    return Generator(experiment=experiment, params=params, vae=video_vae, tokenizer=tokenizer, mesh=mesh)


def _on(mesh: Mesh, statistics: PyTree) -> PyTree:
    return jax.device_put({k: np.asarray(v, np.float32) for k, v in statistics.items()}, replicated(mesh))
