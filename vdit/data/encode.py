"""Videos to latents on disk, with an encode function given by the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from vdit.data.clips import Clips
from vdit.data.parts import LatentParts
from vdit.data.sources import Sample
from vdit.types import Array

# uint8 [1 t h w 3] -> the latent's mean [1 t' h' w' c]. Bytes, so that they are scaled on the device.
Encode = Callable[[Array], Array]
Progress = Callable[[int, int], None]
Wait = Callable[[str], None]


def encode_clips(source: Clips, encode: Encode, path: str | Path, *, samples: int = 0, vae: str = "",
                 dtype: str = "float16", threads: int = 4, read_ahead: int = 8, progress: Progress | None = None,
                 key: Any = None, shard_index: int = 0, shard_count: int = 1, wait: Wait | None = None,
                 ) -> dict[str, Any] | None:
    """Encodes `samples` cuts of a source (0: each item once) into a new folder of latents.

    A clip's actions go into its record as they are.
    encode may return a device array: the next clip is dispatched before the last one is fetched.
    vae: names the VAE in the index. progress: called with (done, samples) of this host after each clip.
    key: plain value that changes when the source's cuts do, its settings for instance. A call that was interrupted
    goes on where it was when made again with the same key, vae, dtype and samples, on any number of hosts.
    shard_index, shard_count: this host of how many that make the same call, in a folder that they share; each
    encodes its share. wait: called by each host with a name, returns when all hosts have called it.
    Returns the index (see write_latents); None where there are several hosts and no way to wait for the others:
    then a call without a share completes the folder. The latents do not depend on the number of hosts.
    """
    samples = samples or len(source)
    parts = LatentParts(path, samples=samples, vae=vae, dtype=dtype, key=[key, len(source)],
                        shard_index=shard_index, shard_count=shard_count)
    missing = parts.missing()
    indices = [index for part in missing for index in parts.places(part)]
    total = sum(len(parts.places(part)) for part in parts.own())
    items = _counted(_encoded(_read(source, indices, threads, read_ahead), encode), total - len(indices), total,
                     progress)
    for part in missing:
        parts.write(part, items)
    return parts.finish(wait) if wait is not None or shard_count == 1 else None


def _read(source: Clips, indices: Sequence[int], threads: int, read_ahead: int) -> Iterable[Sample]:
    if not indices:
        return ()
    clips = grain.MapDataset.range(len(indices)).map(lambda place: source[indices[place]])
    return clips.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead))


def _counted(items: Iterable[Sample], done: int, total: int, progress: Progress | None) -> Iterator[Sample]:
    for count, item in enumerate(items, start=done + 1):
        if progress is not None:
            progress(count, total)
        yield item


def _encoded(clips: Iterable[Sample], encode: Encode) -> Iterator[Sample]:
    """Each clip with its latent, one clip behind the dispatch."""
    pending: deque[tuple[Sample, Array]] = deque()
    for sample in clips:
        video = sample.pop("video")
        pending.append((sample, encode(video[None])))
        if len(pending) > 1:
            yield _fetch(*pending.popleft())
    while pending:
        yield _fetch(*pending.popleft())


def _fetch(sample: Sample, latent: Array) -> Sample:
    return {"latent": np.asarray(latent, np.float32)[0], **sample}
