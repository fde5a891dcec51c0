"""The stage between videos and the DiT: latents, their statistics, and what says which VAE they are of."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
import numpy as np

from vdit import config as config_tools
from vdit.checkpoint import load_params
from vdit.checkpoint.hosts import Exchange
from vdit.data.changes import RECORD, Changes, Record, digest_of, find_changes, look_at_videos, read_record
from vdit.data.data_source import DataSource, FolderSource, LatentsSource, TfdsSource, WorldsSource
from vdit.data.encode import EncodeSpec, Former, encode_clips
from vdit.data.latents import LatentStore, write_json
from vdit.data.streams import ProcessShard
from vdit.dist.multihost import PATIENCE, is_primary_host, on_primary_host, wait_for_all
from vdit.errors import ConfigError, DataError
from vdit.experiment.experiment import Experiment
from vdit.models.vae.statistics import MIN_STD, constant_channels
from vdit.models.vae.video import VideoVAE
from vdit.registry import name_of
from vdit.train.encoded import EncodedClips, encoded_clips
from vdit.train.logging import Logging, TrainingVideos
from vdit.train.pretrained import provides
from vdit.train.progress import make_display
from vdit.train.resume import last_step
from vdit.train.workspace import Workspace
from vdit.types import PyTree


def encode_latents(experiment: Experiment, workspace: Workspace, logging: Logging, videos: TrainingVideos) -> None:
    """Encode the videos with the trained VAE, each host its share of them, in a folder that all hosts share.

    Goes on where it was interrupted. Where videos or captions are not what they were when they were encoded, what
    changed is encoded again, and said. Latents of another VAE or another data config are refused.
    """
    params = load_params(workspace.vae)["vae"]
    look = _look(experiment, workspace)
    if look.changes is not None:
        _encode_changes(experiment, workspace, params, look, logging, videos)
    elif not (workspace.latents / "index.json").exists():
        _encode(experiment, workspace, params, look, logging, videos, _taken(experiment, params, logging))
    elif isinstance(experiment.data.source, FolderSource) and look.digest is None:
        logging.say(f"latents: {experiment.data.path} is not there any more; its latents are used as they are")
    index = LatentStore(workspace.latents).index
    _check_identity(index, workspace, [_fingerprint(params, experiment)])
    unused = constant_channels(index)
    if unused:
        logging.say(
            f"latents: channel(s) {', '.join(map(str, unused))} of {index['channels']} never vary (std 0): the videos "
            f"are all alike there, or the VAE does not use them; they are normalised by {MIN_STD:g}"
        )
    # What a transformer was trained with stays: it would make other colours by other statistics.
    kept = provides(experiment, "statistics.json") or (last_step(workspace.dit) is not None and workspace.statistics())
    if not kept:
        on_primary_host(lambda: workspace.save_statistics(index["mean"], index["std"]), "statistics.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Look:
    """What the first host sees of the videos, and all hosts act upon.

    record: of the videos, on the first host alone; None where they are not files. digest: of the record. changes: since
    the latents were encoded; None for none. videos: how many the latents were made of.
    """

    record: Record | None
    digest: str | None
    changes: Changes | None = None
    videos: int = 0


def _look(experiment: Experiment, workspace: Workspace) -> _Look:
    """Looks at the videos, and keeps a record of them beside latents that have none: those of an older vdit."""
    seen: list[Record | None] = [None]

    def look() -> dict[str, Any]:
        encoded = (workspace.latents / "index.json").exists()
        before = read_record(workspace.latents) if encoded else None
        now = seen[0] = look_at_videos(experiment.data, experiment.holdout, before)
        if not encoded or now is None:
            return {"digest": digest_of(now)}
        adopted, before = before is None, before or now | {"videos": 0}  # of an older vdit: as if nothing had changed
        changes = find_changes(before, now)
        if not changes and (adopted or before["files"] != now["files"]):
            write_json(workspace.latents / RECORD, now | {"videos": before["videos"]})
        return {"digest": digest_of(now), "changes": dataclasses.asdict(changes) if changes else None,
                "videos": before["videos"]}  # fmt: skip

    found = Exchange().agree(None, lambda _: look(), seconds=PATIENCE)  # a terabyte takes a while to read
    changes = found.get("changes")
    return _Look(
        record=seen[0],
        digest=found["digest"],
        changes=None if changes is None else Changes(**{name: tuple(names) for name, names in changes.items()}),
        videos=found.get("videos", 0),
    )


def _encode_changes(
    experiment: Experiment, workspace: Workspace, params: PyTree, look: _Look, logging: Logging, videos: TrainingVideos
) -> None:
    """Replaces latents by those of the videos as they are now."""
    store = LatentStore(workspace.latents)
    samples = dataclasses.replace(experiment.latents, samples=store.index["count"])
    # `vdit train --data` may draw another number of other videos: that is no other data config.
    known = [experiment, dataclasses.replace(experiment, latents=samples)]
    _check_identity(store.index, workspace, [_fingerprint(params, each) for each in known])
    step, taken = last_step(workspace.dit), _taken(experiment, params, logging)
    count = experiment.latents.samples or len(taken or videos.open())
    if step is not None and count != len(store):
        raise DataError(
            f"{experiment.data.path} has changed since it was encoded: {look.changes}. The transformer was trained on "
            f"{len(store)} latents and cannot go on with {count}: train in another --workdir, or undo the change"
        )
    logging.say(f"latents: videos have changed since they were encoded: {look.changes}; encoding what changed again")
    former = Former(store=store, videos=look.videos, changed=look.changes.names)
    _encode(experiment, workspace, params, look, logging, videos, taken or former)
    if step is not None:
        logging.say(
            f"latents: the transformer's {step} steps were trained on the videos as they were; more steps "
            f"(--cfg.dit_train.steps=N) train it on these"
        )
    elif experiment.text.tokenizer is None and not provides(experiment, "tokenizer.model"):
        # The tokenizer is of the old captions.
        on_primary_host(lambda: workspace.tokenizer.unlink(missing_ok=True), "tokenizer.model")


def _check_identity(index: dict[str, Any], workspace: Workspace, identities: list[str]) -> None:
    if index["vae"] not in identities:
        raise ConfigError(
            f"{workspace.latents} was encoded with another VAE or another data config: remove that folder to "
            "encode again"
        )


def _taken(experiment: Experiment, params: PyTree, logging: Logging) -> EncodedClips | None:
    """The latents that `vdit curate`, with --vae, has made of the clips, where the run can take them."""
    taken = encoded_clips(experiment, vae_identity(params), logging.say)
    if taken is not None:
        logging.say(f"latents: takes {len(taken)} that are encoded already, in {experiment.data.path}/latents")
    return taken


def _encode(
    experiment: Experiment,
    workspace: Workspace,
    params: PyTree,
    look: _Look,
    logging: Logging,
    videos: TrainingVideos,
    known: Former | EncodedClips | None = None,
) -> None:
    """known: latents of the videos as they were, or all latents that there will be."""
    former, taken = (known, None) if isinstance(known, Former) else (None, known)
    source = videos.open() if taken is None else taken
    channels = experiment.vae.latent_channels
    plain = {"mean": np.zeros(channels, np.float32), "std": np.ones(channels, np.float32)}
    vae = VideoVAE(config=experiment.vae, params=params, statistics=plain)
    samples = experiment.latents.samples or len(source)
    display = make_display("latents", samples, 0, console=logging.console) if is_primary_host() else None

    def show(done: int, total: int) -> None:
        if display is not None:  # a host knows of its own share only, and shows the whole as far as that
            display.update(done * samples // total, {})

    try:
        encode_clips(
            source,
            functools.partial(vae.encode, latent_frames=experiment.latents.latent_frames or None),
            workspace.latents,
            EncodeSpec(
                samples=samples,
                vae=_fingerprint(params, experiment),
                dtype=experiment.latents.dtype,
                key=look.digest,
                record=None if taken is not None else look.record,
                conditions=experiment.conditions,
                threads=experiment.data.threads,
            ),
            shard=ProcessShard(index=jax.process_index(), count=jax.process_count()),
            wait=wait_for_all,
            progress=show,
            former=former,
        )
    finally:
        if display is not None:
            display.close()
    if taken is None:
        videos.report_skipped()
    elif look.record is not None:  # none of them is of a video by its number, as a Former takes them
        write_json(workspace.latents / RECORD, look.record | {"videos": 0})


def vae_identity(params: PyTree, more: Any = None) -> str:
    """Changes with the weights of a VAE, and with `more`, which is plain JSON."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    if more is not None:
        digest.update(json.dumps(more).encode())
    return digest.hexdigest()[:16]


def _fingerprint(params: PyTree, experiment: Experiment) -> str:
    """Changes with the VAE's weights and with the choice of clips to encode."""
    data = experiment.data
    names = ("size_multiple", "frames", "fps", "aspects", "hflip")
    chosen = {"areas": data.pixel_budgets} | {name: getattr(data, name) for name in names}
    chosen |= _source_values(data.source)
    if experiment.conditions:
        values = [dataclasses.asdict(dataclasses.replace(one, dropout=0.0)) for one in experiment.conditions]
        chosen["conditions"] = [[name_of("conditioner", one), more] for one, more in zip(experiment.conditions, values)]
    return vae_identity(params, [chosen, experiment.seed, experiment.holdout, experiment.latents.samples])


def _source_values(source: DataSource) -> dict[str, Any]:
    """What a data source is, for `_fingerprint`: in the words of vdit 0, whose latents stay good."""
    values = {"source": name_of("data_source", source)}
    if isinstance(source, FolderSource | WorldsSource | LatentsSource | TfdsSource):
        old = {"path": ("path", ""), "captions": ("captions", None), "world": ("world", "moving"),
               "world_count": ("count", 4096), "world_options": ("options", ())}  # fmt: skip
        return values | {name: getattr(source, field, default) for name, (field, default) in old.items()}
    return values | config_tools.to_dict(source)
