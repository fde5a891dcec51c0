"""A public model as one thing: which networks its files hold, and the experiment that they make up.

    model = open_model("Wan2.1-T2V-1.3B-Diffusers")
    params, vae = model.load(mesh)
    import_model("Wan2.1-T2V-1.3B-Diffusers", "runs/wan-1.3b")      # what `vdit import` does

`open_model` knows what `vdit export` writes, diffusers folders (model_index.json), the original repositories' layouts
and single files. It reads their JSON and the headers of their tensor files, and nothing else; loading and importing
read the tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit import config as config_tools
from vdit import paths
from vdit.checkpoint import MANIFEST, damage
from vdit.dist.mesh import make_mesh
from vdit.dist.rules import replicated
from vdit.errors import ConfigError, WeightsError
from vdit.experiment.experiment import Experiment
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.model import VAE
from vdit.outputs import check_new_folder
from vdit.paths import read_bytes
from vdit.pretrained.tensors import TensorFiles
from vdit.pretrained.weights import Rule, TreeSource, check, check_names, import_trees, load
from vdit.reprs import short_repr
from vdit.train.pretrained import step_identity
from vdit.train.state import abstract_params
from vdit.train.workspace import EXPERIMENT, FILES, PUBLIC, Workspace
from vdit.types import PyTree

VAE_TREE = "vae"
MAX_EXTRA = 100_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One network of a public model.

    Attributes:
        tree: its key among our parameters: "text", "vision", "dit", "dit_low" or "vae".
        folder: its name in a diffusers folder.
        files: its tensors.
        rules: which of them is which of our parameters.
        ignore: beginnings of names of tensors that are not read.
    """

    tree: str
    folder: str
    files: TensorFiles
    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicModel:
    """What public weights hold.

    Attributes:
        folder: where they are.
        experiment: the model as an experiment of ours, with the sampling that it is meant for.
        components: its networks.
        statistics: {"mean": float32 [c], "std": float32 [c]} of the VAE's latents.
        tokenizer: the tokenizer's file. None for models of classes.
        extras: files that an export gives back as they are (schedulers, tokenizers), by path inside the folder.
    """

    folder: Path
    experiment: Experiment
    components: tuple[Component, ...]
    statistics: dict[str, np.ndarray]
    tokenizer: Path | None
    extras: tuple[str, ...] = ()

    def abstract(self, mesh: Mesh) -> PyTree:
        """Shapes of all parameters with their place on the mesh: {"text", "dit", ..., "vae"}."""
        tree = dict(abstract_params(self.experiment.network.init, mesh))
        return tree | {VAE_TREE: abstract_vae(self.experiment.vae, mesh)}

    def check(self) -> None:
        """Raise a WeightsError unless every component has every tensor that it needs, in its shape, and no other."""
        abstract = self.abstract(one_device())
        for part in self.components:
            check(part.rules, part.files, abstract[part.tree], ignore=part.ignore)

    def check_names(self) -> None:
        """The same as `check`, by names alone; builds nothing."""
        for part in self.components:
            check_names(part.rules, part.files, ignore=part.ignore)

    def load(self, mesh: Mesh, *, dtype: str | None = None) -> tuple[PyTree, PyTree]:
        """Load all parameters.

        Args:
            mesh: where they go; each device loads only its own shard.
            dtype: "float32", "bfloat16" or "float16" for all floats. None keeps each tensor's own.

        Returns:
            (the network's parameters, the VAE's).

        Raises:
            WeightsError: a tensor is missing, of another shape, left over, damaged or not finite.
        """
        abstract = self.abstract(mesh)
        for part in self.components:  # all of them, before the first tensor is read
            check(part.rules, part.files, abstract[part.tree], ignore=part.ignore)
        trees = {
            part.tree: load(part.rules, part.files, abstract[part.tree], dtype=dtype, ignore=part.ignore)
            for part in self.components
        }
        vae = trees.pop(VAE_TREE)
        return trees, vae

    def load_vae(self, mesh: Mesh) -> PyTree:
        """Load the VAE's parameters alone; see `load`."""
        (part,) = [part for part in self.components if part.tree == VAE_TREE]
        abstract = abstract_vae(self.experiment.vae, mesh)
        check(part.rules, part.files, abstract, ignore=part.ignore)
        return load(part.rules, part.files, abstract, ignore=part.ignore)


def open_model(path: str | Path, parts: Sequence[str | Path] = ()) -> PublicModel:
    """Read what public weights are, without reading their tensors.

    Args:
        path: a folder, or the file of a Wan's transformer as ComfyUI has it. Folders of diffusers: WanPipeline,
            WanImageToVideoPipeline (2.1 and 2.2), DiTPipeline. Original layouts: Wan 2.1 and 2.2 with their .pth files;
            a DiT checkpoint (.pt) with an autoencoder's folder `vae` beside it.
        parts: where the other networks of a single file are: files, folders of them, or one folder of a public model.

    Raises:
        WeightsError: they are of no kind that is known here, or something is missing, damaged or contradictory.
    """
    from vdit.pretrained import diffusers_folder, native, original_layouts  # they make what is defined here

    path = paths.local_weights(paths.shipped(path), error=WeightsError)
    parts = [paths.local_weights(part, error=WeightsError) for part in parts]
    if path.is_file():
        try:
            model = original_layouts.open_file(path, parts)
        except ConfigError as error:  # shapes that are in range, each, and do not go together
            raise WeightsError(f"{path}: {error}; download it again") from None
        model.check_names()
        return model
    if parts:
        raise WeightsError(f"{path}: is a folder, which has its parts itself: leave --parts out, or give a single file")
    if not path.is_dir():
        raise WeightsError(f"{path} is not a folder: give the folder or the file of a public model")
    if (path / MANIFEST).is_file():  # what `vdit export` wrote; folders from elsewhere have no checksums
        problems = damage(path.resolve())
        if problems:
            raise WeightsError(
                f"{path}: {problems[0]} ({len(problems)} in all): export it again, or if you changed it, remove "
                f"{MANIFEST}"
            )
    for family in (native, diffusers_folder, original_layouts):
        if family.is_one(path):
            try:
                model = family.open_folder(path)
            except ConfigError as error:  # values that are in range, each, and do not go together
                raise WeightsError(f"{path}: {error}; download its JSON files again") from None
            model.check_names()
            return model
    raise WeightsError(
        f"{path} holds no trained model (experiment.json is missing), and no public one known here: neither "
        "model.json (vdit export), nor model_index.json (diffusers), nor config.json or high_noise_model/ beside "
        "models_t5_*.pth (Wan), nor one .pt file with a folder vae/ (DiT); give the folder of a run or a public model"
    )


def abstract_vae(config: VAEConfig, mesh: Mesh) -> PyTree:
    """Shapes of a VAE's parameters, replicated on the mesh."""
    side = config.spatial_stride
    shape = (1, 1 + config.temporal_stride, side, side, 3)
    abstract = abstract_params(lambda key: VAE(config).init(key, jnp.zeros(shape, jnp.float32))["params"], mesh)
    whole = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), abstract)


def one_device() -> Mesh:
    """A mesh of one device, for what only needs shapes."""
    return make_mesh(devices=jax.local_devices()[:1])


def import_model(
    folder: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    parts: Sequence[str | Path] = (),
    say: Callable[[str], None] = lambda line: None,
) -> PublicModel:
    """Write a public model as a checkpoint of ours, in a folder like that of a run.

    Everything is checked before anything is written. One tensor is in memory at a time. The small files (statistics,
    tokenizer, what an export gives back) come under the checkpoint's checksums.

    Args:
        folder: see `open_model`.
        out: a new or empty folder.
        dtype: "float32" or "bfloat16" for all weights. None keeps each tensor's own.
        parts: see `open_model`.
        say: told what is done, in one line each.

    Returns:
        The model.

    Raises:
        WeightsError: see `open_model`.
        OutputError: the folder is taken or cannot be written.
    """
    out = paths.path(out)
    check_new_folder(out)
    model = open_model(folder, parts)
    say(f"{model.folder}: {_summary(model)}")
    model.check()
    abstract = model.abstract(one_device())
    sources = {
        part.tree: TreeSource(rules=part.rules, tensors=part.files, abstract=abstract[part.tree], ignore=part.ignore)
        for part in model.components
    }
    vae = {VAE_TREE: sources.pop(VAE_TREE)}
    space = Workspace(out)
    config = config_tools.to_dict(model.experiment)
    space.save_statistics(*(model.statistics[name].tolist() for name in ("mean", "std")))
    _copy_small_files(model, space)
    say("the autoencoder ...")
    import_trees({"params": vae}, space.vae, dtype=dtype, meta={"stage": "vae", "config": config})
    say(f"{', '.join(sources)} ...")
    meta = {"stage": "dit", "config": config, FILES: space.file_sums(), "vae": step_identity(space.vae)}
    import_trees({"params": sources}, space.dit, dtype=dtype, meta=meta)
    # Last: a folder without it is no model, so an import that was cut short is not taken for one.
    space.save_experiment(model.experiment)
    say(f"{out / EXPERIMENT}: done")
    return model


def _summary(model: PublicModel) -> str:
    count = {part.tree: sum(_size(info.shape) for info in part.files.info.values()) for part in model.components}
    return ", ".join(f"{tree} {number / 1e6:,.1f} M" for tree, number in count.items())


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _copy_small_files(model: PublicModel, space: Workspace) -> None:
    for name in model.extras:
        _copy_file(model.folder / name, space.root / PUBLIC / name)
    if model.tokenizer is not None:
        _copy_file(model.tokenizer, space.tokenizer)
        config = model.tokenizer.with_name("tokenizer_config.json")
        if config.is_file():
            _copy_file(config, space.root / config.name)


def _copy_file(source: Path, target: paths.AnyPath) -> None:
    data = read_bytes(source, limit=MAX_EXTRA, error=WeightsError, fix="it should be a small file")
    paths.write_atomic(target, data)
