"""A model of vdit's own as one small folder: to publish, to copy, to ship. `demo`, the shipped model, is one.

    model.json              the experiment, without the places of its data
    dit/, vae/, text/, ...  model.safetensors of each network, under vdit's own names
    statistics.json         mean and standard deviation of the VAE's latents, by channel
    tokenizer.model         sentencepiece, where prompts are texts; tokenizer_config.json beside it where a T5 has one
    checksums               as of every folder that `vdit export` writes

`open_model` reads it as it reads public weights, so `vdit.load`, every command and `vdit import` do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from vdit import paths
from vdit.checkpoint import load_meta
from vdit.config import from_dict, to_dict
from vdit.data.data_source import WorldsSource
from vdit.errors import WeightsError
from vdit.experiment.experiment import Experiment
from vdit.experiment.upgrade import upgrade
from vdit.models.vae.statistics import check_statistics
from vdit.outputs import check_new_folder
from vdit.pretrained.export import plain, save_tensors, write_small_files
from vdit.pretrained.model import VAE_TREE, Component, PublicModel
from vdit.pretrained.open import open_weights
from vdit.pretrained.tensors import read_json
from vdit.pretrained.weights import flatten, rule
from vdit.train.workspace import FILES, SAMPLED, SMALL, Workspace
from vdit.types import PyTree

MODEL = "model.json"
_STATISTICS, _TOKENIZER, _STEM = "statistics.json", "tokenizer.model", "model"


def is_one(path: Path) -> bool:
    """Whether a folder is a model of vdit's own."""
    return (path / MODEL).is_file()


def open_folder(path: Path) -> PublicModel:
    """Read what `export_native` wrote, without its tensors.

    Args:
        path: the folder.

    Raises:
        WeightsError: a file is missing or damaged.
        ConfigError: the experiment has keys or values that this version does not know.
    """
    experiment = from_dict(Experiment, upgrade(read_json(path / MODEL, limit=SMALL)))
    statistics = read_json(path / _STATISTICS, limit=SMALL)
    trees = [VAE_TREE, *sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name != VAE_TREE)]
    components = [_component(path, tree) for tree in trees]
    tokenizer = path / _TOKENIZER if experiment.network.uses_text else None
    return PublicModel(
        folder=path,
        experiment=experiment,
        components=tuple(components),
        statistics=check_statistics(statistics, name=str(path / _STATISTICS), error=WeightsError),
        tokenizer=tokenizer,
    )


def _component(path: Path, tree: str) -> Component:
    files = open_weights(path / tree)
    return Component(tree=tree, folder=tree, files=files, rules=tuple(rule(name, name) for name in files.info))


def export_native(
    space: Workspace,
    params: PyTree,
    vae_params: PyTree,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard: float = 5e9,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a run's model as a folder of vdit's own layout.

    Args:
        space: the run's folder.
        params: {"text", "dit", ...}; a LoRA that is kept apart is merged.
        vae_params: parameters of the autoencoder.
        out: a new or empty folder of this disk.
        dtype: of the written weights. None: each parameter keeps its own.
        max_shard: bytes of one file.
        say: told what is done, in one line each.

    Raises:
        CheckpointError: a file of the run is missing or changed.
        OutputError: the folder is taken or cannot be written.
    """
    check_new_folder(out)
    space.check_files(load_meta(space.dit).get(FILES, {}), names=SAMPLED)
    small = {name: (space.root / name).read_bytes() for name in SAMPLED if paths.is_file(space.root / name)}
    for tree, values in [*params.items(), (VAE_TREE, vae_params)]:
        say(f"{tree} ...")
        values = plain(values)
        rules = [rule(name, name) for name in flatten(values)]
        save_tensors(rules, values, out / tree, stem=_STEM, dtype=dtype, max_shard=max_shard)
    small[MODEL] = (json.dumps(to_dict(without_places(space.experiment())), indent=2) + "\n").encode()
    write_small_files(out, small, last=MODEL)
    say(f"{out / MODEL}: done")


def without_places(experiment: Experiment) -> Experiment:
    """The experiment without the folders that it was trained from, which the model does not need.

    Args:
        experiment: of a run.

    Returns:
        The same model; its data comes from a rendered world where it came from a folder or a library.
    """
    source = experiment.data.source
    if not isinstance(source, WorldsSource):
        source = WorldsSource()
    data = dataclasses.replace(experiment.data, source=source)
    return dataclasses.replace(experiment, data=data, start_from=None, lora=None)
