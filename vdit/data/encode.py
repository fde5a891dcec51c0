"""Videos to latents on disk, with an encode function given by the caller."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from vdit.data.changes import RECORD, Record
from vdit.data.clips import Clips
from vdit.data.conditions import read_conditions
from vdit.data.data_source import Sample
from vdit.data.latents import LatentParts, LatentStore
from vdit.data.streams import ProcessShard
from vdit.errors import DataError
from vdit.models.conditioner import Conditioner
from vdit.reprs import short_repr
from vdit.types import Array

# uint8 [1 t h w 3] -> the latent's mean [1 t' h' w' c]. Bytes, so that they are scaled on the device.
Encode = Callable[[Array], Array]
Progress = Callable[[int, int], None]
Wait = Callable[[str], None]


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeSpec:
    """Which clips of a source are encoded, and what is stored of them.

    samples: how many clips; 0: each item of the source once.
    vae: identifies the VAE in the index.
    dtype: of the latents on disk.
    key: plain value that changes when the source's clips do, its settings for instance.
    record: describes the videos (vdit.data.changes); kept beside the latents by the first host.
    conditions: what is read of each clip beside its video, and stored with its latents.
    threads: that read videos. read_ahead: clips that they read ahead.
    """

    samples: int = 0
    vae: str = ""
    dtype: str = "float16"
    key: Any = None
    record: Record | None = None
    conditions: tuple[Conditioner, ...] = ()
    threads: int = 4
    read_ahead: int = 8


def encode_clips(source: Clips, encode: Encode, path: str | Path, spec: EncodeSpec | None = None, *,
                 shard: ProcessShard | None = None, wait: Wait | None = None, progress: Progress | None = None,
                 former: Former | None = None) -> dict[str, Any] | None:
    """Encodes clips of a source into a new folder of latents. The latents do not depend on the number of hosts.

    Args:
        source: clips of videos.
        encode: video -> latents; may return a device array: the next clip is dispatched before the last one is fetched.
        path: the folder. A call that was interrupted continues when made again with the same spec, on any number of
            hosts.
        spec: which clips, and what is stored of them; None is the default, each item once.
        shard: this host of how many that make the same call in one shared folder; each encodes its part. None: the only
            host.
        wait: called by each host with a name; returns when all hosts have called it.
        progress: called with (done, samples) of this host after each clip.
        former: latents in the folder that are being replaced; those that are still right are taken over.

    Returns:
        The index (see `write_latents`). None where there are several hosts and no `wait`: then a call without a shard
        completes the folder.

    Raises:
        DataError: the folder exists already, there are no clips, or hosts do not share the folder.
    """
    spec, shard = spec or EncodeSpec(), shard or ProcessShard()
    parts = LatentParts(path, samples=spec.samples or len(source), vae=spec.vae, dtype=spec.dtype,
                        key=[spec.key, len(source)], shard=shard, replaces=former is not None)
    missing = parts.missing()
    indices = [index for part in missing for index in parts.places(part)]
    total = sum(len(parts.places(part)) for part in parts.own())
    read = _read(source, indices, spec, former)
    items = _counted(_encoded(read, encode), total - len(indices), total, progress)
    for part in missing:
        parts.write(part, items)
    if wait is None and shard.count > 1:
        return None
    more = {} if spec.record is None else {RECORD: spec.record | {"videos": len(source)}}
    return parts.finish(wait, more)


def encode_part(source: Clips, encode: Encode, parts: LatentParts, part: int, spec: EncodeSpec | None = None) -> None:
    """Encodes one part of a folder of latents, for pipelines that deal parts out to workers themselves.

    Args:
        source: clips of videos, the same in every worker.
        encode: video -> latents.
        parts: of the folder. part: number of the one that is made.
        spec: how videos are read, and the conditions that are stored; the parts say the rest. None is the default.
    """
    parts.write(part, iter(_encoded(_read(source, parts.places(part), spec or EncodeSpec(), None), encode)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Former:
    """Latents of the same source as it was before some of its videos changed.

    store: these latents. videos: how many videos the source had. changed: names of those that are not as they were.
    """

    store: LatentStore
    videos: int
    changed: frozenset[str]

    def sample(self, source: Clips, index: int) -> Sample | None:
        """What encoding the source's sample would give again, bit for bit; None where that is not certain."""
        if len(source) != self.videos or index >= len(self.store):  # other numbers of videos draw other cuts
            return None
        name = source.name(index % len(source))
        if name in self.changed:
            return None
        try:
            sample = self.store.read(index, 0)
        except DataError:
            return None
        return sample if sample["id"] == name else None


def _read(source: Clips, indices: Sequence[int], spec: EncodeSpec, former: Former | None) -> Iterable[Sample]:
    if not indices:
        return ()

    def read(place: int) -> Sample:
        known = None if former is None else former.sample(source, indices[place])
        if known is not None:
            return known
        sample = source[indices[place]]
        return sample | read_conditions(spec.conditions, sample)

    clips = grain.MapDataset.range(len(indices)).map(read)
    return clips.to_iter_dataset(grain.ReadOptions(num_threads=spec.threads, prefetch_buffer_size=spec.read_ahead))


def _counted(items: Iterable[Sample], done: int, total: int, progress: Progress | None) -> Iterator[Sample]:
    for count, item in enumerate(items, start=done + 1):
        if progress is not None:
            progress(count, total)
        yield item


def _encoded(clips: Iterable[Sample], encode: Encode) -> Iterator[Sample]:
    """Each clip with its latent, one clip behind the dispatch."""
    pending: deque[tuple[Sample, Array | None]] = deque()
    for sample in clips:
        pending.append((sample, None if "latent" in sample else encode(sample.pop("video")[None])))
        if len(pending) > 1:
            yield _fetch(*pending.popleft())
    while pending:
        yield _fetch(*pending.popleft())


def _fetch(sample: Sample, latent: Array | None) -> Sample:
    return sample if latent is None else {"latent": np.asarray(latent, np.float32)[0], **sample}
