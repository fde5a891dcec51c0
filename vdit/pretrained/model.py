"""A folder of public weights as one thing: which networks it holds, and the experiment that they make up.

`open_model` knows diffusers folders (model_index.json) and the original repositories' layouts, reads their JSON
and the headers of their tensor files, and nothing else; loading and importing read the tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.checkpoint import MANIFEST, damage
from vdit.dist.mesh import make_mesh
from vdit.dist.rules import replicated
from vdit.errors import ConfigError, WeightsError
from vdit.experiment.experiment import Experiment
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.model import VAE
from vdit.pretrained.load import check, check_names, load
from vdit.pretrained.tensors import TensorFiles
from vdit.pretrained.weights import Rule
from vdit.reprs import short_repr
from vdit.train.state import abstract_params
from vdit.types import PyTree

VAE_TREE = "vae"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One network of a public model.

    tree: its key among our parameters: "text", "vision", "dit", "dit_low" or "vae".
    folder: its name in a diffusers folder. ignore: how names begin that hold no part of it.
    """

    tree: str
    folder: str
    files: TensorFiles
    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicModel:
    """What a folder of public weights holds.

    experiment: the model as an experiment of ours, with the sampling that it is meant for.
    statistics: {"mean": float32 [c], "std": float32 [c]} of the VAE's latents.
    tokenizer: the sentencepiece file; None for models of classes.
    extras: files that an export gives back as they are (schedulers, tokenizers), by path inside the folder.
    """

    folder: Path
    experiment: Experiment
    components: tuple[Component, ...]
    statistics: dict[str, np.ndarray]
    tokenizer: Path | None
    extras: tuple[str, ...] = ()

    def abstract(self, mesh: Mesh) -> PyTree:
        """{"text", "dit", ...} and {"vae"}: shapes of all parameters, with their place on the mesh."""
        tree = dict(abstract_params(self.experiment.network.init, mesh))
        return tree | {VAE_TREE: abstract_vae(self.experiment.vae, mesh)}

    def check(self) -> None:
        """WeightsError unless every component has every tensor that it needs, in its shape, and no other."""
        abstract = self.abstract(one_device())
        for part in self.components:
            check(part.rules, part.files, abstract[part.tree], ignore=part.ignore)

    def check_names(self) -> None:
        """WeightsError unless every component has the tensors that it needs and no other, by name; builds nothing."""
        for part in self.components:
            check_names(part.rules, part.files, ignore=part.ignore)

    def load(self, mesh: Mesh, *, dtype: str | None = None) -> tuple[PyTree, PyTree]:
        """(the network's parameters, the VAE's), on the mesh; dtype: None keeps each tensor's own."""
        abstract = self.abstract(mesh)
        for part in self.components:  # all of them, before the first tensor is read
            check(part.rules, part.files, abstract[part.tree], ignore=part.ignore)
        trees = {
            part.tree: load(part.rules, part.files, abstract[part.tree], dtype=dtype, ignore=part.ignore)
            for part in self.components
        }
        vae = trees.pop(VAE_TREE)
        return trees, vae


def open_model(path: str | Path, parts: Sequence[str | Path] = ()) -> PublicModel:
    """Reads what public weights are; WeightsError where they are none that are known here.

    path: a folder, or the file of a Wan's transformer as ComfyUI has it (vdit.pretrained.single_file).
        diffusers: WanPipeline, WanImageToVideoPipeline (2.1 and 2.2), DiTPipeline. Original: Wan 2.1 and 2.2 with
        their .pth files; a DiT checkpoint (.pt) with an autoencoder's folder `vae` beside it.
    parts: of a single file, where its other networks are: files, folders of them, or one folder of a public model.
    """
    from vdit.pretrained import diffusers_folder, original_folder, single_file  # they make what is defined here

    path = Path(path)
    if path.is_file():
        try:
            model = single_file.open_file(path, parts)
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
    for family in (diffusers_folder, original_folder):
        if family.is_one(path):
            try:
                model = family.open_folder(path)
            except ConfigError as error:  # values that are in range, each, and do not go together
                raise WeightsError(f"{path}: {error}; download its JSON files again") from None
            model.check_names()
            return model
    raise WeightsError(
        f"{path} holds no trained model (experiment.json is missing), and no public one known here: neither "
        "model_index.json (diffusers), nor config.json or high_noise_model/ beside models_t5_*.pth (Wan), nor one .pt "
        "file with a folder vae/ (DiT); give the folder of a run or of a public model"
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
