"""Videos to latents on disk, with an encode function given by the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from vdit.data.clips import Clips
from vdit.data.latents import write_latents
from vdit.data.sources import Sample
from vdit.types import Array

# uint8 [1 t h w 3] -> the latent's mean [1 t' h' w' c]. Bytes, so that they are scaled on the device.
Encode = Callable[[Array], Array]
Progress = Callable[[int, int], None]


def encode_clips(source: Clips, encode: Encode, path: str | Path, *, samples: int = 0, vae: str = "",
                 dtype: str = "float16", threads: int = 4, read_ahead: int = 8,
                 progress: Progress | None = None) -> dict[str, Any]:
    """Encodes `samples` cuts of a source (0: each item once) into a new folder of latents.

    encode may return a device array: the next clip is dispatched before the last one is fetched.
    progress: called with (done, samples) after each clip. Returns the index (see write_latents).
    """
    samples = samples or len(source)
    indices = grain.MapDataset.range(samples).map(lambda index: source[int(index)])
    clips = indices.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead))

    def items() -> Iterator[Sample]:
        for done, item in enumerate(_encoded(clips, encode), start=1):
            yield item
            if progress is not None:
                progress(done, samples)

    return write_latents(path, items(), vae=vae, dtype=dtype)


def _encoded(clips: grain.IterDataset, encode: Encode) -> Iterator[Sample]:
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
