"""From a source of samples to what the training loops take: packed rows, or videos of one size."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from vdit.data.clips import Clips
from vdit.data.conditions import clip_conditions, data_conditions
from vdit.data.config import DataConfig
from vdit.data.data_source import Sample, Source, check_actions, draws
from vdit.data.packing import Balance, PackedRows, PackItem, RowShape
from vdit.data.patches import Patch, patchify, token_grid
from vdit.data.streams import (
    Order,
    ProcessShard,
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
from vdit.reprs import short_repr
from vdit.types import Row

Compose = Callable[[Sequence[str]], str | None]
CAPTION_DRAW = 1  # see data_source.draws


class Tokenizer(Protocol):
    """Text to token ids. The first id is always BOS, so that it alone is the empty prompt."""

    max_length: int

    def encode(self, text: str) -> list[int]: ...


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """How a clip's latents become tokens of a model.

    patch: latent frames, rows and columns of a token.
    stride: video frames that a latent frame stands for, all but the first, which stands for one (the VAE's stride in
        time).
    mean: float [c], subtracted from latents. std: float [c], by which they are then divided. None for both leaves them.
    conditions: of the model, beside the class label and the actions, which a DataConfig has of its own.
    compose: captions of a clip -> its text, or None to pick one of them. None always picks one.
    """

    patch: Patch
    stride: int = 1
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    conditions: tuple[Conditioner, ...] = ()
    compose: Compose | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ConfigError("latents are normalised by mean and std together: give both or neither")

    def normalised(self, latent: np.ndarray) -> np.ndarray:
        """Latents [... c] in the units that the model sees."""
        if self.mean is None:
            return latent
        statistics = {"mean": np.asarray(self.mean, np.float32), "std": np.asarray(self.std, np.float32)}
        return normalise(latent.astype(np.float32), statistics)


class ToPackItem:
    """Sample with a latent -> PackItem: normalise, patchify, choose a caption, tokenise it, arrange its conditions.

    tokens: with all conditions that rows carry.
    truncated: captions cut to the tokenizer's max_length (or the row's text) so far.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, tokens: TokenSpec, config: DataConfig, *, seed: int):
        self.source = source
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.seed = seed
        self.long_caption_prob, self.synthetic_prob = config.long_caption_prob, config.synthetic_prob
        self.actions = config.actions
        self.text_limit = min(tokenizer.max_length, config.max_text_per_row)
        self.truncated = 0
        self._lock = threading.Lock()

    def __call__(self, index: int, place: int) -> PackItem:
        sample = self.source[index]
        if "latent" not in sample:
            raise DataError(f"{type(self.source).__name__} gives videos, packed rows are made of latents: "
                            "encode it first (python -m data_pipelines.encode) and use source='latents'")
        check_actions(sample, self.actions)
        tokens, latent = self.tokens, self.tokens.normalised(sample["latent"])
        grid = token_grid(latent.shape, tokens.patch)
        caption = self._caption(sample, index)
        text = self._text(caption)
        if isinstance(self.tokenizer, CachedTokenizer):
            sample = {**sample, **self.tokenizer.read(caption, len(text))}
        return PackItem(values=patchify(latent, tokens.patch), grid=grid, text=text,
                        cond=clip_conditions(tokens.conditions, sample, grid, tokens.patch, tokens.stride), place=place,
                        name=str(sample.get("id", index)))

    def _caption(self, sample: Sample, index: int) -> str:
        captions = sample.get("captions") or [""]
        composed = None if self.tokens.compose is None else self.tokens.compose(captions)
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


def row_iterator(config: DataConfig, source: Source, tokenizer: Tokenizer, tokens: TokenSpec, *, seed: int,
                 batch_rows: int, shard: ProcessShard | None = None) -> RowIterator:
    """Batches of packed rows, to train a diffusion transformer.

    Args:
        config: shape of a row, packing and reading.
        source: samples with latents, for instance a `LatentStore`.
        tokenizer: for captions; with a `CachedTokenizer` rows carry encoded captions.
        tokens: how latents become tokens, and which conditions rows carry.
        seed: of the order and of the choice of captions; the source has a seed of its own.
        batch_rows: rows of a batch over all hosts.
        shard: this host of how many; None: the only host. A host gets the rows [index * batch_rows / count, ...) of
            each batch; the batches are the same for any number of hosts.

    Returns:
        An iterator of `Row` of NumPy arrays [batch_rows / shard.count ...]. It has get_state() (JSON) and
        set_state(state); the merged states of all hosts continue on any number of hosts that divides the streams, bit
        for bit. A finite pass (config.epochs) ends for each host with its own streams.
    """
    streams = stream_count(config.streams, batch_rows=batch_rows, items=len(source))
    own = own_streams(streams, shard or ProcessShard(), batch_rows=batch_rows)
    order = Order(items=len(source), seed=seed, streams=streams, epochs=config.epochs)
    patch, stride = tuple(tokens.patch), tokens.stride
    cached = tokenizer.conditions if isinstance(tokenizer, CachedTokenizer) else ()
    conditions = data_conditions(config, (*tokens.conditions, *cached), patch=patch, stride=stride)
    tokens = dataclasses.replace(tokens, patch=patch, conditions=conditions)
    convert = ToPackItem(source, tokenizer, tokens, config, seed=seed)
    limits = RowShape.of(config, conditions, patch)
    sizes = {"tokens": limits.tokens, "text": limits.text, "slots": limits.frames, "clips": limits.clips}
    identity = order.identity() | sizes | {
        "patch": list(patch), "batch_rows": batch_rows, "look_ahead": config.look_ahead(),
        "buffer_clips": config.buffer_clips, "detailed": config.long_caption_prob}
    if config.synthetic_prob != DataConfig().synthetic_prob:
        identity |= {"synthetic": config.synthetic_prob}
    if config.actions:  # not otherwise: places saved before there were actions stay good
        identity |= {"actions": config.actions, "stride": stride}
    balance = None
    if config.balance_rows > 1:
        balance, identity = Balance(rows=config.balance_rows, seed=seed), identity | {"balance": config.balance_rows}
    rows = PackedRows({stream: order.dataset(stream) for stream in own}, convert, limits, config,
                      rows_each=batch_rows // streams, identity=identity, balance=balance)
    return RowIterator(rows, config.prefetch, convert)


def video_batches(config: DataConfig, source: Clips, *, size: tuple[int, int], frames: int, batch_size: int,
                  seed: int, shard: ProcessShard | None = None) -> grain.DatasetIterator:
    """Batches of random windows of videos, to train a VAE.

    Args:
        config: threads, epochs and the other settings of reading.
        source: videos.
        size: (height, width) of a window in pixels.
        frames: of a window.
        batch_size: over all hosts.
        seed: of the order of the videos; the source has a seed of its own for the windows.
        shard: this host of how many; None: the only host. A host reads its rows of each batch.

    Returns:
        An iterator of {"video": uint8 [b t h w 3]} with b = batch_size / shard.count. It can be saved and restored like
        that of `row_iterator`. The last batch of a finite pass is dropped when partial.
    """
    crops = source.crops(size=size, frames=frames)

    def read(index: int, place: int) -> dict[str, np.ndarray]:
        return {"video": crops[index]["video"]}

    rows = own_rows(batch_size, shard or ProcessShard())
    order = Order(items=len(source), seed=seed, epochs=config.epochs)
    identity = order.identity() | {"batch_size": batch_size, "size": list(size), "frames": frames}
    batches = VideoBatches(order.dataset(), read, config, rows=rows, batch_size=batch_size, identity=identity)
    return Prefetch(batches, config.prefetch)


class VideoBatches(grain.DatasetIterator):
    """One host's rows of batches of samples: batch k is the places [k * batch_size, (k + 1) * batch_size) of an order.

    order: source indices by place. read: (index, place) -> dict of arrays. The others as in PackedRows.
    """

    def __init__(self, order: grain.MapDataset, read: Callable[[int, int], dict[str, np.ndarray]], config: DataConfig,
                 *, rows: range, batch_size: int, identity: dict[str, Any]):
        super().__init__()
        self._size, self._identity = len(rows), identity

        def index(place: int) -> int:
            return order[place // len(rows) * batch_size + rows[place % len(rows)]]

        own = grain.MapDataset.range(len(order) // batch_size * len(rows)).map(index)
        self._pool = make_pool(config.threads)
        self._reader = Reader(own, read, self._pool, config.read_ahead)

    def __next__(self) -> dict[str, np.ndarray]:
        samples = list(itertools.islice(self._reader, self._size))
        if not samples:  # a pass has a whole number of batches
            raise StopIteration
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
