"""From a source of samples to what the training loops take: packed rows, or videos of one size."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from vdit.data.actions import check_actions
from vdit.data.clips import Clips
from vdit.data.conditions import clip_conditions, data_conditions
from vdit.data.config import DataConfig
from vdit.data.packing import Balance, PackedRows, PackItem, RowShape
from vdit.data.patches import Patch, patchify, token_grid
from vdit.data.sources import Sample, Source, draws
from vdit.data.streams import (
    Order,
    Reader,
    close_readers,
    make_place,
    make_pool,
    own_rows,
    own_streams,
    read_place,
    stream_count,
)
from vdit.data.texts import CachedTokenizer
from vdit.errors import ConfigError, DataError
from vdit.models.conditioner import Conditioner
from vdit.models.vae.statistics import normalise
from vdit.types import Row

Compose = Callable[[Sequence[str]], str | None]
CAPTION_DRAW = 1  # see sources.draws


class Tokenizer(Protocol):
    """Text to token ids. The first id is always BOS, so that it alone is the empty prompt."""

    max_length: int

    def encode(self, text: str) -> list[int]: ...


class ToPackItem:
    """Sample with a latent -> PackItem: normalise, patchify, choose a caption, tokenise it, arrange its conditions.

    conditions: those that rows carry.
    stride: video frames that a latent frame stands for, all but the first, which stands for one.
    truncated: captions cut to the tokenizer's max_length (or the row's text) so far.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, patch: Patch, config: DataConfig, *, seed: int,
                 conditions: Sequence[Conditioner] = (), stride: int = 1, mean: np.ndarray | None = None,
                 std: np.ndarray | None = None, compose: Compose | None = None):
        if (mean is None) != (std is None):
            raise ConfigError("latents are normalised by mean and std together: give both or neither")
        self.source = source
        self.tokenizer = tokenizer
        self.compose = compose
        self.patch = patch
        self.seed = seed
        self.long_caption_prob, self.synthetic_prob = config.long_caption_prob, config.synthetic_prob
        self.actions, self.conditions, self.stride = config.actions, tuple(conditions), stride
        self.mean = None if mean is None else np.asarray(mean, np.float32)
        self.std = None if std is None else np.asarray(std, np.float32)
        self.text_limit = min(tokenizer.max_length, config.max_text_per_row)
        self.truncated = 0
        self._lock = threading.Lock()

    def __call__(self, index: int, place: int) -> PackItem:
        sample = self.source[index]
        if "latent" not in sample:
            raise DataError(f"{type(self.source).__name__} gives videos, packed rows are made of latents: "
                            "encode it first (python -m data_pipelines.encode) and use source='latents'")
        check_actions(sample, self.actions)
        latent = sample["latent"]
        if self.mean is not None:
            latent = normalise(latent.astype(np.float32), {"mean": self.mean, "std": self.std})
        grid = token_grid(latent.shape, self.patch)
        caption = self._caption(sample, index)
        text = self._text(caption)
        if isinstance(self.tokenizer, CachedTokenizer):
            sample = {**sample, **self.tokenizer.read(caption, len(text))}
        return PackItem(values=patchify(latent, self.patch), grid=grid, text=text,
                        cond=clip_conditions(self.conditions, sample, grid, self.patch, self.stride), place=place,
                        name=str(sample.get("id", index)))

    def _caption(self, sample: Sample, index: int) -> str:
        captions = sample.get("captions") or [""]
        composed = None if self.compose is None else self.compose(captions)
        if composed is not None:
            return composed
        rng = draws(self.seed, index, CAPTION_DRAW)
        written = int(sample.get("synthetic", 0))
        if 0 < written < len(captions):  # both are there
            own = len(captions) - written
            captions = captions[own:] if rng.random() < self.synthetic_prob else captions[:own]
        pick = 0
        if len(captions) > 1 and rng.random() < self.long_caption_prob:
            pick = int(rng.integers(1, len(captions)))
        return captions[pick]

    def _text(self, caption: str) -> np.ndarray:
        ids = self.tokenizer.encode(caption)
        if len(ids) > self.text_limit:
            with self._lock:
                self.truncated += 1
        return np.asarray(ids[: self.text_limit], np.int32)


def row_iterator(config: DataConfig, source: Source, tokenizer: Tokenizer, patch: Patch, *, seed: int,
                 batch_rows: int, shard_index: int = 0, shard_count: int = 1, stride: int = 1,
                 mean: np.ndarray | None = None, std: np.ndarray | None = None,
                 conditions: Sequence[Conditioner] = (), compose: Compose | None = None) -> RowIterator:
    """Batches of packed rows, to train a diffusion transformer.

    Args:
        config: shape of a row, packing and reading.
        source: samples with latents, for instance a `LatentStore`.
        tokenizer: for captions; with a `CachedTokenizer` rows carry encoded captions.
        patch: latent frames, rows and columns of a token.
        seed: of the order and of the choice of captions; the source has a seed of its own.
        batch_rows: rows of a batch over all hosts.
        shard_index: this host's number, from 0.
        shard_count: number of hosts. A host gets the rows [shard_index * batch_rows / shard_count, ...) of each batch;
            the batches are the same for any number of hosts.
        stride: video frames of a latent frame (the VAE's stride in time); used where config.actions is not 0.
        mean: float [c], subtracted from latents; None with std=None leaves them.
        std: float [c], which latents are then divided by.
        conditions: those of the model, beside the class label and the actions, which the config has of its own.
        compose: captions of a clip -> its text, or None to pick one of them.

    Returns:
        An iterator of `Row` of NumPy arrays [batch_rows / shard_count ...]. It has get_state() (JSON) and
        set_state(state); the merged states of all hosts continue on any number of hosts that divides the streams, bit
        for bit. A finite pass (config.epochs) ends for each host with its own streams.
    """
    streams = stream_count(config.streams, batch_rows=batch_rows, items=len(source))
    own = own_streams(streams, shard_index, shard_count, batch_rows=batch_rows)
    order = Order(items=len(source), seed=seed, streams=streams, epochs=config.epochs)
    patch = tuple(patch)
    cached = tokenizer.conditions if isinstance(tokenizer, CachedTokenizer) else ()
    conditions = data_conditions(config, (*conditions, *cached), patch=patch, stride=stride)
    convert = ToPackItem(source, tokenizer, patch, config, seed=seed, conditions=conditions, stride=stride,
                         mean=mean, std=std, compose=compose)
    limits = RowShape.of(config, conditions, patch)
    tokens = config.look_ahead()
    sizes = {"tokens": limits.tokens, "text": limits.text, "slots": limits.frames, "clips": limits.clips}
    identity = order.identity() | sizes | {
        "patch": list(patch), "batch_rows": batch_rows, "look_ahead": tokens,
        "buffer_clips": config.buffer_clips, "detailed": config.long_caption_prob}
    if config.synthetic_prob != DataConfig().synthetic_prob:
        identity |= {"synthetic": config.synthetic_prob}
    if config.actions:  # not otherwise: places saved before there were actions stay good
        identity |= {"actions": config.actions, "stride": stride}
    balance = None
    if config.balance_rows > 1:
        balance, identity = Balance(rows=config.balance_rows, seed=seed), identity | {"balance": config.balance_rows}
    rows = PackedRows({stream: order.dataset(stream) for stream in own}, convert, limits,
                      rows_each=batch_rows // streams, most_tokens=tokens, most_clips=config.buffer_clips,
                      threads=config.threads, read_ahead=config.read_ahead, identity=identity, balance=balance)
    return RowIterator(rows, config.prefetch, convert)


def video_batches(config: DataConfig, source: Clips, *, size: tuple[int, int], frames: int, batch_size: int,
                  seed: int, shard_index: int = 0, shard_count: int = 1) -> grain.DatasetIterator:
    """Batches of random windows of videos, to train a VAE.

    Args:
        config: threads, epochs and the other settings of reading.
        source: videos.
        size: (height, width) of a window in pixels.
        frames: of a window.
        batch_size: over all hosts.
        seed: of the order of the videos; the source has a seed of its own for the windows.
        shard_index: this host's number, from 0.
        shard_count: number of hosts. A host reads its rows of each batch.

    Returns:
        An iterator of {"video": uint8 [b t h w 3]} with b = batch_size / shard_count. It can be saved and restored like
        that of `row_iterator`. The last batch of a finite pass is dropped when partial.
    """
    def crop(index: int, place: int) -> dict[str, np.ndarray]:
        return {"video": source.crop(index, size=size, frames=frames)["video"]}

    rows = own_rows(batch_size, shard_index, shard_count)
    order = Order(items=len(source), seed=seed, epochs=config.epochs)
    identity = order.identity() | {"batch_size": batch_size, "size": list(size), "frames": frames}
    batches = VideoBatches(order.dataset(), crop, rows=rows, batch_size=batch_size, threads=config.threads,
                           read_ahead=config.read_ahead, identity=identity)
    return Prefetch(batches, config.prefetch)


class VideoBatches(grain.DatasetIterator):
    """One host's rows of batches of samples: batch k is the places [k * batch_size, (k + 1) * batch_size) of an order.

    order: source indices by place. read: (index, place) -> dict of arrays. The others as in PackedRows.
    """

    def __init__(self, order: grain.MapDataset, read: Callable[[int, int], dict[str, np.ndarray]], *, rows: range,
                 batch_size: int, threads: int, read_ahead: int, identity: dict[str, Any]):
        super().__init__()
        self._size, self._identity = len(rows), identity

        def index(place: int) -> int:
            return order[place // len(rows) * batch_size + rows[place % len(rows)]]

        own = grain.MapDataset.range(len(order) // batch_size * len(rows)).map(index)
        self._pool = make_pool(threads)
        self._reader = Reader(own, read, self._pool, read_ahead)

    def __next__(self) -> dict[str, np.ndarray]:
        samples = [next(self._reader) for _ in range(self._size)]
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def get_state(self) -> dict[str, Any]:
        return make_place({0: {"batches": self._reader.place // self._size}}, self._identity)

    def set_state(self, state: dict[str, Any]) -> None:
        self._reader.move(read_place(state, [0], self._identity)[0]["batches"] * self._size)

    def close(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():  # the names that this module imports may be gone then
            super().close()
            close_readers([self._reader], self._pool)


class Prefetch(grain.experimental.ThreadPrefetchDatasetIterator):
    """Finished batches kept ready by a thread. Closes without noise when Python shuts down first."""

    def close(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():
            super().close()


class RowIterator(Prefetch):
    """What row_iterator returns."""

    def __init__(self, rows: grain.DatasetIterator, prefetch: int, convert: ToPackItem):
        super().__init__(rows, prefetch)
        self._convert = convert

    @property
    def truncated(self) -> int:
        """Captions cut so far to the tokenizer's max_length (or to data.max_text_per_row)."""
        return self._convert.truncated


def useful(rows: Row) -> float:
    """The fraction of tokens that belong to a clip.

    Args:
        rows: packed rows [b ...].

    Returns:
        A number from 0 to 1; the rest is padding.
    """
    return float((np.asarray(rows.segment_ids) > 0).mean())


def row_use(rows: Row) -> dict[str, float]:
    """How full each budget of packed rows is. Where "tokens" is low, the fullest other budget is the bottleneck.

    Args:
        rows: packed rows [b ...].

    Returns:
        Budget -> fraction in use, from 0 to 1.
    """
    clips = np.asarray(rows.segment_ids).max(axis=1)
    return {"tokens": useful(rows), "text": float((np.asarray(rows.text_segment_ids) > 0).mean()),
            "frames": float((np.asarray(rows.frame_segment_ids) > 0).mean()),
            "clips": float(clips.mean() / rows.max_clips)}
