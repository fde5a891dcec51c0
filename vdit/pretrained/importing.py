"""`vdit import`: a folder of public weights becomes a folder like that of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vdit import config as config_tools
from vdit.errors import WeightsError
from vdit.outputs import check_new_folder
from vdit.paths import read_bytes
from vdit.pretrained.convert import Source, import_trees
from vdit.pretrained.model import VAE_TREE, PublicModel, one_device, open_model
from vdit.train.base import step_identity
from vdit.train.workspace import EXPERIMENT, FILES, PUBLIC, Workspace

MAX_EXTRA = 100_000_000


def import_model(
    folder: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    parts: Sequence[str | Path] = (),
    say: Callable[[str], None] = lambda line: None,
) -> PublicModel:
    """Writes a public model as an orbax checkpoint in a folder of the form of a run; returns what it holds.

    The small files (statistics, tokenizer, what an export gives back) come under the checkpoint's checksums.

    folder, parts: see open_model. out: a new or empty folder. dtype: "float32" or "bfloat16" for all weights; None
    keeps each tensor's own. say: told what is done. One tensor is in memory at a time. Everything is checked before
    anything is written; WeightsError names what is wrong.
    """
    out = Path(out)
    check_new_folder(out)
    model = open_model(folder, parts)
    say(f"{model.folder}: {_summary(model)}")
    model.check()
    abstract = model.abstract(one_device())
    sources = {
        part.tree: Source(rules=part.rules, tensors=part.files, abstract=abstract[part.tree], ignore=part.ignore)
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


def _copy_file(source: Path, target: Path) -> None:
    data = read_bytes(source, limit=MAX_EXTRA, error=WeightsError, fix="it should be a small file")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
