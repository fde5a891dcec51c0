"""Latents and features that curation has made beside its clips (--vae): a run on these clips takes them as they are.

    OUT/latents/      LatentStore, with encoding.json: by which VAE, of which clips, with which data config
    OUT/vae/          the VAE, as a run has it
    OUT/texts/        TextStore, with --text

A run whose data source is OUT takes the VAE in the place of training one, and the latents in the place of encoding its
clips, where its VAE config and its data config are those of the latents. Otherwise it says why, and goes its own way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from vdit import paths
from vdit.checkpoint import MANIFEST, find_step
from vdit.config import diff, from_dict, to_dict
from vdit.data.changes import digest_of, look_at_videos
from vdit.data.curated import CuratedDataset
from vdit.data.data_source import CuratedSource, Sample, Source
from vdit.data.latents import LatentStore, write_json
from vdit.data.texts import TextStore
from vdit.errors import ConfigError, DataError
from vdit.experiment.experiment import Experiment
from vdit.experiment.upgrade import upgrade
from vdit.train.pretrained import step_identity
from vdit.train.workspace import Workspace

ENCODING = "encoding.json"  # beside the latents
VAE_FROM = "vae_from.json"  # in a run: where its VAE was taken from
_FORMAT = "vdit-encoded-1"
_FIX = "run vdit curate again"
_CHOSEN = ("size_multiple", "frame_multiple", "frames", "fps", "aspects", "hflip", "pixel_budgets")  # of clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """What stands beside the latents of a curated folder.

    Args:
        folder: the curated folder.
        vae: identity of the VAE (vdit.train.encoding.vae_identity).
        experiment: whose VAE config, and whose data config, the latents were made with.
        clips: digest of the clips. count: of the latents.
    """

    folder: str
    vae: str
    experiment: Experiment
    clips: str
    count: int

    def to_json(self) -> dict[str, Any]:
        """What is written beside the latents."""
        values = {"format": _FORMAT, "vae": self.vae, "clips": self.clips, "count": self.count}
        return values | {"experiment": to_dict(self.experiment)}


def find_encoding(path: str | None) -> Encoding | None:
    """The encoding of a curated folder; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    file = None if path is None else paths.path(path) / "latents" / ENCODING
    if file is None or not paths.is_file(file):
        return None
    note = paths.read_json(file, limit=64 * paths.MIB, error=DataError, fix=_FIX)
    try:
        if note["format"] != _FORMAT or type(note["count"]) is not int:
            raise ValueError
        experiment = from_dict(Experiment, upgrade(note["experiment"], quiet=True))
        return Encoding(folder=str(path), vae=str(note["vae"]), experiment=experiment, clips=str(note["clips"]),
                        count=note["count"])  # fmt: skip
    except ConfigError as error:
        raise DataError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{file}: is damaged: {_FIX}") from None


def encoding_of(experiment: Experiment) -> Encoding | None:
    """The encoding of the clips that an experiment trains on; None where they have none."""
    return find_encoding(experiment.data.source.path) if isinstance(experiment.data.source, CuratedSource) else None


def clips_digest(folder: str) -> str | None:
    """Changes with the clips of a curated folder."""
    from vdit.data.config import DataConfig

    return digest_of(look_at_videos(DataConfig(source=CuratedSource(path=folder)), ()))


def refusal(experiment: Experiment, encoding: Encoding) -> str | None:
    """Why a run cannot take the latents, as far as configs tell; None where it can."""
    theirs, data = encoding.experiment, experiment.data
    different = [name for name in _CHOSEN if getattr(data, name) != getattr(theirs.data, name)]
    if different:
        name = different[0]
        return f"data.{name} is {getattr(data, name)}, theirs is {getattr(theirs.data, name)}"
    changed = diff(to_dict(theirs.vae), to_dict(experiment.vae))
    if changed:
        name, (their, own) = next(iter(changed.items()))
        return f"vae.{name} is {own}, theirs is {their}"
    if experiment.conditions:
        return "conditions are read of videos"
    if experiment.latents.samples > encoding.count:
        return f"latents.samples is {experiment.latents.samples}, there are {encoding.count}; 0 takes all"
    if clips_digest(encoding.folder) != encoding.clips:
        return "the clips have changed since: curating with --vae encodes them again"
    return None


def copy_encoded_vae(experiment: Experiment, workspace: Workspace) -> None:
    """Gives a new run the VAE of its clips' latents, where it has none and starts from no model."""
    encoding = None if experiment.start_from is not None else encoding_of(experiment)
    if encoding is None or jax.process_index() != 0 or paths.exists(workspace.vae) or refusal(experiment, encoding):
        return
    step = find_step(paths.path(encoding.folder) / "vae")
    partial = workspace.vae.with_name("vae.partial")
    paths.remove_folder(partial)
    paths.copy_folder(step, partial / step.name, last=(MANIFEST,))
    write_json(workspace.root / VAE_FROM, {"folder": encoding.folder} | step_identity(partial))
    paths.move_folder(partial, workspace.vae, last=(f"{step.name}/{MANIFEST}",))


def has_encoded_vae(workspace: Workspace) -> bool:
    """Whether the run's VAE is one that `copy_encoded_vae` took: then it is not trained further."""
    mark = workspace.root / VAE_FROM
    if not (paths.is_file(mark) and paths.is_dir(workspace.vae)):
        return False
    taken = paths.read_json(mark, limit=paths.MIB, error=DataError, fix="restore it from a copy of the run")
    return isinstance(taken, dict) and taken.get("sha256") == step_identity(workspace.vae)["sha256"]


class EncodedClips(Source):
    """The latents of a curated folder as samples, but for those of clips that are held out."""

    def __init__(self, store: LatentStore, held: frozenset[str]):
        super().__init__()
        self._store = store
        self._items = [i for i in range(len(store)) if not held or store.read(i, 0)["id"] not in held]
        if not self._items:
            raise DataError(f"{store.path}: all of its {len(store)} latents are held out: hold out fewer")

    def __len__(self) -> int:
        return len(self._items)

    def name(self, item: int) -> str:
        return self._store.name(self._items[item])

    def read(self, item: int, epoch: int) -> Sample:
        return self._store.read(self._items[item], epoch)


def encoded_clips(experiment: Experiment, vae: str, say: Callable[[str], None]) -> EncodedClips | None:
    """The latents that a run takes in the place of encoding its clips.

    Args:
        experiment: of the run.
        vae: identity of its VAE.
        say: is told why the latents that are there are not taken.

    Returns:
        The latents as samples; None where there are none, or the run cannot take them.
    """
    encoding = encoding_of(experiment)
    if encoding is None:
        return None
    why = refusal(experiment, encoding)
    if why is None and vae != encoding.vae:
        why = "they are of a VAE with other weights"
    if why is not None:
        say(f"latents: those in {encoding.folder}/latents are not used: {why}")
        return None
    held: frozenset[str] = frozenset()
    if experiment.holdout:
        dataset = CuratedDataset(encoding.folder, only=experiment.holdout)
        held = frozenset(dataset.name(item) for item in range(len(dataset)))
    return EncodedClips(LatentStore(paths.path(encoding.folder) / "latents"), held)


def encoded_texts(experiment: Experiment) -> TextStore | None:
    """The encoded captions of a curated folder; None where there are none."""
    source = experiment.data.source
    if not isinstance(source, CuratedSource) or not paths.is_file(paths.path(source.path) / "texts" / "index.json"):
        return None
    return TextStore(paths.path(source.path) / "texts")

