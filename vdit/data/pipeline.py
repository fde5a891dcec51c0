"""From a source of samples to what the training loops take: packed rows, or videos of one size."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import grain
import numpy as np

from vdit.data.clips import Clips
from vdit.data.config import DataConfig
from vdit.data.packer import PackedRows
from vdit.data.packing import RowLimits, TokenClip
from vdit.data.patches import Patch, patchify, token_grid
from vdit.data.sources import Sample, Source, draws
from vdit.errors import ConfigError, DataError
from vdit.types import Row

CAPTION_DRAW = 1  # see sources.draws


class Tokenizer(Protocol):
    """Text to token ids. The first id is always BOS, so that it alone is the empty prompt."""

    max_length: int

    def encode(self, text: str) -> list[int]: ...


class ToTokenClip:
    """Sample with a latent -> TokenClip: normalise, patchify, choose a caption, tokenise it.

    truncated: captions cut to the tokenizer's max_length (or the row's text) so far.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, patch: Patch, config: DataConfig, *, seed: int,
                 mean: np.ndarray | None = None, std: np.ndarray | None = None):
        if (mean is None) != (std is None):
            raise ConfigError("latents are normalised by mean and std together: give both or neither")
        self.source = source
        self.tokenizer = tokenizer
        self.patch = patch
        self.seed = seed
        self.detailed = config.detailed
        self.mean = None if mean is None else np.asarray(mean, np.float32)
        self.std = None if std is None else np.asarray(std, np.float32)
        self.text_limit = min(tokenizer.max_length, config.row_text)
        self.truncated = 0
        self._lock = threading.Lock()

    def __call__(self, index: int, place: int) -> TokenClip:
        sample = self.source[index]
        if "latent" not in sample:
            raise DataError(f"{type(self.source).__name__} gives videos, packed rows are made of latents: "
                            "encode it first (data_pipelines/encode_latents.py) and use source='latents'")
        latent = sample["latent"]
        if self.mean is not None:
            latent = (latent.astype(np.float32) - self.mean) / self.std
        return TokenClip(values=patchify(latent, self.patch), grid=token_grid(latent.shape, self.patch),
                         text=self._text(sample, index), label=int(sample.get("label", 0)), place=place,
                         name=str(sample.get("id", index)))

    def _text(self, sample: Sample, index: int) -> np.ndarray:
        captions = sample.get("captions") or [""]
        rng = draws(self.seed, index, CAPTION_DRAW)
        pick = 0
        if len(captions) > 1 and rng.random() < self.detailed:
            pick = int(rng.integers(1, len(captions)))
        ids = self.tokenizer.encode(captions[pick])
        if len(ids) > self.text_limit:
            with self._lock:
                self.truncated += 1
        return np.asarray(ids[: self.text_limit], np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which one host reads: a new shuffle each pass, its own share of each shuffle.

    Over all hosts, every item is read exactly once in each pass.
    """

    items: int
    seed: int
    shard_index: int = 0
    shard_count: int = 1
    epochs: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.shard_index < self.shard_count:
            raise ConfigError(f"shard_index={self.shard_index}: must be 0 to shard_count - 1 "
                              f"({self.shard_count - 1})")
        if self.items < self.shard_count:
            raise DataError(f"the source has {self.items} items for {self.shard_count} hosts: each needs at "
                            "least one; use fewer hosts or more data")

    def dataset(self) -> grain.MapDataset:
        """Source indices (item + pass * items) by place in this host's order."""
        share = grain.MapDataset.range(self.items).shuffle(seed=self.seed % 2**32)
        share = share[self.shard_index :: self.shard_count]
        length, items = len(share), self.items
        share = share.repeat(self.epochs or None)
        return share.map_with_index(lambda place, item: int(item) + place // length * items)

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "epochs"}


def row_iterator(config: DataConfig, source: Source, tokenizer: Tokenizer, patch: Patch, *, seed: int,
                 batch_rows: int, shard_index: int = 0, shard_count: int = 1,
                 mean: np.ndarray | None = None, std: np.ndarray | None = None) -> RowIterator:
    """Iterator of packed rows: vdit.types.Row of NumPy arrays [batch_rows ...].

    source: gives latents, for instance LatentStore.
    patch: latent frames, rows, columns of a token.
    seed: of the order and of the choice of captions; the source has its own.
    shard_index, shard_count: this host's share.
    mean, std: float [c]; latents become (latent - mean) / std.
    The iterator has get_state() (JSON-able) and set_state(state); a restored one goes on bit for bit.
    """
    order = Order(items=len(source), seed=seed, shard_index=shard_index, shard_count=shard_count,
                  epochs=config.epochs)
    convert = ToTokenClip(source, tokenizer, tuple(patch), config, seed=seed, mean=mean, std=std)
    limits = RowLimits.of(config)
    clips = order.dataset().map_with_index(lambda place, index: convert(index, place))
    identity = order.identity() | dataclasses.asdict(limits) | {
        "patch": list(patch), "batch_rows": batch_rows, "buffer_rows": config.buffer_rows,
        "buffer_clips": config.buffer_clips, "detailed": config.detailed}
    rows = PackedRows(clips, limits, batch_rows=batch_rows, buffer_rows=config.buffer_rows,
                      buffer_clips=config.buffer_clips, threads=config.threads,
                      read_ahead=config.read_ahead, identity=identity)
    return RowIterator(iter(rows), config.prefetch, convert)


def video_batches(config: DataConfig, source: Clips, *, size: tuple[int, int], frames: int, batch_size: int,
                  seed: int, shard_index: int = 0, shard_count: int = 1) -> grain.DatasetIterator:
    """Iterator of {"video": uint8 [b t h w 3]}: random windows of `size` (h, w) and `frames`, to train a VAE.

    Which item comes when depends on `seed`; which window of it, on the source's seed. The iterator can be
    saved and restored like that of row_iterator. The last batch of a finite pass is dropped when partial.
    """
    order = Order(items=len(source), seed=seed, shard_index=shard_index, shard_count=shard_count,
                  epochs=config.epochs)

    def crop(index: int) -> dict[str, np.ndarray]:
        return {"video": source.crop(index, size=size, frames=frames)["video"]}

    videos = order.dataset().map(crop)
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.read_ahead)
    batches = videos.to_iter_dataset(options).batch(batch_size, drop_remainder=True)
    return Prefetch(iter(batches), config.prefetch)


class Prefetch(grain.experimental.ThreadPrefetchDatasetIterator):
    """Finished batches kept ready by a thread. Closes without noise when Python shuts down first."""

    def close(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():
            super().close()


class RowIterator(Prefetch):
    """What row_iterator returns."""

    def __init__(self, rows: grain.DatasetIterator, prefetch: int, convert: ToTokenClip):
        super().__init__(rows, prefetch)
        self._convert = convert

    @property
    def truncated(self) -> int:
        """Captions cut so far to the tokenizer's max_length (or to data.row_text)."""
        return self._convert.truncated


def useful(rows: Row) -> float:
    """Share of the tokens of rows [b ...] that belong to a clip."""
    return float((np.asarray(rows.clip) > 0).mean())


def row_use(rows: Row) -> dict[str, float]:
    """Share of each budget of rows [b ...] in use: where tokens are low, the fullest other one binds."""
    clips = np.asarray(rows.clip).max(axis=1)
    return {"tokens": useful(rows), "text": float((np.asarray(rows.text_clip) > 0).mean()),
            "slots": float((np.asarray(rows.slot_clip) > 0).mean()),
            "clips": float(clips.mean() / rows.label.shape[1])}
