"""Models from disk onto a mesh: runs of `vdit train`, imported models, and folders of public weights.

Also in how many bits a model computes, and in how many its weights are held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit import paths
from vdit.checkpoint import best_step, find_step, load_params
from vdit.checkpoint.files import steps_in
from vdit.dist.mesh import make_mesh
from vdit.dist.rules import replicated
from vdit.errors import CheckpointError, ConfigError, VditWarning, WeightsError
from vdit.experiment.experiment import Experiment
from vdit.generate.generator import Generator
from vdit.models.text import Tokenizer
from vdit.models.vae.video import VideoVAE
from vdit.nn.lora import attach, merge
from vdit.nn.quantise import DTYPES, cast, quantise
from vdit.pretrained.lora import LoRAFile, open_loras
from vdit.pretrained.model import PublicModel, open_model
from vdit.train.pretrained import trained_params
from vdit.train.resume import check_trained_run
from vdit.train.workspace import EXPERIMENT, Workspace, open_tokenizer
from vdit.types import PyTree

Compute = Literal["float32", "bfloat16"]
Weights = Literal["float32", "bfloat16", "int8", "fp8"]


def computing(experiment: Experiment, compute: Compute | None) -> Experiment:
    """The experiment with its matrix products and convolutions in `compute`; None leaves it as it is."""
    if compute is None:
        return experiment
    _check("compute", compute, Compute)
    text = dataclasses.replace(experiment.text, dtype=compute)
    if text.t5 is not None:
        text = dataclasses.replace(text, t5=dataclasses.replace(text.t5, dtype=compute))
    changed: dict[str, Any] = {
        name: dataclasses.replace(getattr(experiment, name), dtype=compute) for name in ("backbone", "vae")
    }
    if experiment.vision is not None:
        changed["vision"] = dataclasses.replace(experiment.vision, dtype=compute)
    return dataclasses.replace(experiment, text=text, **changed)


def fast_compute() -> Compute:
    """What public weights compute in where nobody says: bfloat16, but float32 on a CPU, which is faster at it."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def held_as(params: PyTree, weights: Weights | None) -> PyTree:
    """Parameters of one network in `weights`; None leaves them as they are.

    "bfloat16" leaves norms, tables and the time embedding; "int8" and "fp8" hold the kernels of dense layers with
    a factor for each output channel, and the rest as it is (vdit.nn.quantise).
    """
    if weights is None:
        return params
    check_held(weights)
    if weights in DTYPES:
        return quantise(params, weights)
    return cast(params, weights, **({"keep": ()} if weights == "float32" else {}))


def check_held(weights: str) -> None:
    """ConfigError for a form of weights that there is not."""
    _check("weights", weights, Weights)


def _check(name: str, value: str, known: Any) -> None:
    if value not in get_args(known):
        raise ConfigError(f"{name}={value!r} is unknown: use one of {', '.join(get_args(known))}")


# What is known of a model without its weights, and how those are read: (the network's by name, the VAE).
_Opened = tuple[Experiment, Tokenizer, Callable[[], tuple[dict, VideoVAE]]]


def load(
    path: str | Path,
    mesh: Mesh | None = None,
    *,
    ema: bool = True,
    step: int | Literal["best"] | None = None,
    compute: Compute | None = None,
    weights: Weights | None = None,
    lora: str | Path | LoRAFile | Sequence[str | Path | LoRAFile] = (),
    merge_lora: bool = False,
    parts: Sequence[str | Path] = (),
) -> Generator:
    """Loads a model onto a mesh.

    Args:
        path: the folder of a run of `vdit train`, of a model that `vdit export` wrote or `vdit import` imported, or of
            public weights as they were published; "demo", the model that ships with vdit; or a Wan's transformer alone
            in one file (docs/single_files.md).
        mesh: None is all devices.
        ema: take the averaged parameters. Of runs only.
        step: of the DiT's checkpoint; None is the last one, "best" the one that evaluators found best (`best_metric` of
            the run). Of runs only.
        compute: dtype of the matrix products; None is the run's own, and for public weights bfloat16, or float32 on
            CPU.
        weights: how parameters are stored in memory: "bfloat16", or "int8" and "fp8" for the kernels of dense layers;
            None as in the file.
        lora: LoRA files in the public layouts (docs/lora.md), each "FILE[:STRENGTH][@EXPERT]" or a LoRAFile. They are
            checked before any weights are loaded; a VditWarning says what was assumed or left out.
        merge_lora: add them to the kernels. Otherwise factors of low rank stay beside them, and the kernels may be
            quantised.
        parts: where the other networks of a model in one file are: files, folders, or the folder of a public model;
            without them they are looked for beside it.

    Returns:
        The generator.

    Raises:
        CheckpointError: a run is incomplete or damaged.
        WeightsError: public weights are incomplete or damaged.

    Example:
        generator = vdit.load("runs/quickstart")
        videos = generator(["a red circle moves to the left"], frames=17)
    """
    more = {"weights": weights, "lora": lora, "merge_lora": merge_lora, "parts": parts}
    return open_generator(path, mesh, ema=ema, step=step, compute=compute, **more).loaded


class Loading(TypedDict, total=False):
    """How a model is loaded: options of `load`, where each is described."""

    ema: bool
    step: int | Literal["best"]
    compute: Compute
    weights: Weights
    lora: str | Path | LoRAFile | Sequence[str | Path | LoRAFile]
    merge_lora: bool
    parts: Sequence[str | Path]


def open_generator(
    path: str | Path,
    mesh: Mesh | None = None,
    *,
    loading: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    drawn: Callable[[int], None] | None = None,
    **how: Unpack[Loading],
) -> OpenedGenerator:
    """As `load`, but the weights are read when they are first needed.

    Until then only small files have been read: configs, tokenizer, headers, LoRAs. So whatever is wrong with what is
    asked of the model is found in a second.

    loading: gives a context that is entered while the weights are read. drawn: as that of the Generator. how: see load.
    """
    weights, lora = how.get("weights"), how.get("lora", ())
    mesh = make_mesh() if mesh is None else mesh
    path = paths.local_folder(path, error=WeightsError) if paths.is_hub(path) else paths.path(paths.shipped(path))
    if paths.is_file(path / EXPERIMENT) or not paths.exists(path):
        of_run = {"ema": how.get("ema", True), "step": how.get("step"), "compute": how.get("compute")}
        experiment, tokenizer, read = _open_run(path, mesh, **of_run)
    else:
        parts = how.get("parts", ())
        model = open_model(path, [parts] if isinstance(parts, str | Path) else parts)
        experiment, tokenizer, read = _open_public(model, mesh, compute=how.get("compute"))
    if weights is not None:
        check_held(weights)
    given = [lora] if isinstance(lora, str | Path | LoRAFile) else lora
    loras = open_loras(given, experiment, _warn) if given else []

    def read_all() -> Generator:
        with loading():
            params, vae = read()
            for tree, factors, strength in loras:
                params[tree] = (merge if how.get("merge_lora") else attach)(params[tree], factors, strength)
            if weights in ("float32", "bfloat16"):
                vae = dataclasses.replace(vae, params=held_as(vae.params, weights))
            for name in list(params):  # one at a time: the whole network need not be there in both forms
                params[name] = held_as(params.pop(name), weights)
            return Generator(experiment=experiment, params=params, vae=vae, tokenizer=tokenizer, mesh=mesh)

    return OpenedGenerator(experiment=experiment, tokenizer=tokenizer, mesh=mesh, read=read_all, drawn=drawn)


class OpenedGenerator(Generator):
    """A generator whose parameters are read when they are first asked for. Made by `open_generator`."""

    def __init__(
        self, *, experiment: Experiment, tokenizer: Tokenizer, mesh: Mesh, read: Callable[[], Generator],
        drawn: Callable[[int], None] | None = None,
    ):  # fmt: skip
        vars(self).update(experiment=experiment, tokenizer=tokenizer, mesh=mesh, drawn=drawn, _read=read)

    def __repr__(self) -> str:
        if "loaded" in vars(self):
            return repr(self.loaded)
        return f"OpenedGenerator({self.experiment.name!r}, weights not read yet)"

    def _repr_html_(self) -> str:
        return self.loaded._repr_html_() if "loaded" in vars(self) else html.escape(repr(self))

    @functools.cached_property
    def loaded(self) -> Generator:
        """The generator with its parameters."""
        return self._read()

    @property
    def params(self) -> PyTree:
        return self.loaded.params

    @property
    def vae(self) -> VideoVAE:
        return self.loaded.vae


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


def _open_run(
    path: paths.AnyPath, mesh: Mesh, *, ema: bool, step: int | Literal["best"] | None, compute: Compute | None
) -> _Opened:
    space = Workspace(path)
    stored = space.experiment()
    if step == "best":
        step = best_step(space.dit)
        if step is None:
            rule = "no evaluator has found a best checkpoint: set dit_train.best_metric, or name a step"
            raise CheckpointError(f"{space.dit}: {rule}")
    experiment = computing(stored, compute)
    for folder in (space.vae, space.dit):
        if not (paths.is_dir(folder) and steps_in(folder)):
            find_step(folder)  # says what is missing
    check_trained_run(stored, space, step=step)

    def read() -> tuple[dict, VideoVAE]:
        params = trained_params(stored, space, mesh, ema=ema, step=step, as_stored=True)
        return dict(params), dataclasses.replace(load_vae(path, mesh=mesh), config=experiment.vae)

    return experiment, space.open_tokenizer(stored), read


def _open_public(model: PublicModel, mesh: Mesh, *, compute: Compute | None) -> _Opened:
    experiment = computing(model.experiment, compute or fast_compute())

    def read() -> tuple[dict, VideoVAE]:
        params, vae = model.load(mesh)
        return dict(params), VideoVAE(config=experiment.vae, params=vae, statistics=_on(mesh, model.statistics))

    return experiment, open_tokenizer(experiment, model.tokenizer), read


def _on(mesh: Mesh, statistics: PyTree) -> PyTree:
    return jax.device_put({k: np.asarray(v, np.float32) for k, v in statistics.items()}, replicated(mesh))
