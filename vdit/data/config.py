"""What the data is, which sizes are drawn from it, and how rows are packed."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from vdit.data.data_source import DataSource, WorldsSource
from vdit.errors import ConfigError
from vdit.registry import OneOf
from vdit.reprs import short_repr


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from, the sizes drawn from them, and the shape of a packed row.

    Source:
        source: any registered data source (vdit.data.data_source): "folder", "curated", "worlds",
            "episodes", "latents", "tfds".

    Sizes (a clip keeps its aspect ratio: see vdit.data.clips.fit_size):
        pixel_budgets: pixel budgets, one drawn for each sample among those not above the video's own.
        size_multiple: height and width are multiples of this (VAE stride x patch).
        frames: durations in frames, each 1 + frame_multiple * k; one drawn among those that fit.
        fps: frame rates, one drawn among those not above the video's own.
        aspects: width / height of worlds, which have no size of their own.
        hflip: probability of a mirror image, only where no caption names a side or a direction.
        long_caption_prob: probability of a caption other than the first (the short one), where there is one.
        synthetic_prob: probability of a caption that a model wrote (vdit caption), where a video has others too.
        actions: numbers of an action in each video frame (vdit.data.conditions); 0 for none.

    Rows:
        row_tokens, max_text_per_row, max_frames_per_row, max_clips_per_row: n, m, k and s of vdit.types.Row. Every
            token is multiplied with all k frames of its row to find its own: a k far above what rows hold costs time.
        buffer_rows: each stream's packer looks ahead over this many rows' worth of tokens ...
        buffer_tokens: ... or, where that is fewer, this many tokens (and 8 rows at least) ...
        buffer_clips: ... and at most this many clips; a clip waits at most this many rows.
            A host holds the look-ahead of each of its streams in memory: 64 MiB for each with tokens of 64 values,
            more where rows are above 32k tokens.

        balance_rows: each stream packs so many rows ahead and orders them by cost, and all streams give rows of the
            same rank, so that the rows of a batch cost nearly the same (vdit.data.packing). 1: rows as they are packed.
            A host holds that many rows of each of its streams in memory.

    Reading:
        streams: into how many independent orders, each with its packer, the data is dealt out. Any number of hosts
            that divides it reads the same batches, and resumes where another number stopped; it is fixed for a run.
            0: the largest divisor of the batch size up to 16. More hosts than that need a number of streams that
            they divide, and that divides the batch size; fewer streams take less memory.
        epochs: passes over the data; 0 repeats for ever.
        threads, read_ahead: reading threads, and samples read ahead by them.
        prefetch: finished batches kept ready.
    """

    source: Annotated[DataSource, OneOf("data_source")] = WorldsSource()

    pixel_budgets: tuple[int, ...] = (64 * 64,)
    size_multiple: int = 16
    frames: tuple[int, ...] = (17,)
    frame_multiple: int = 4
    fps: tuple[float, ...] = (8.0,)
    aspects: tuple[float, ...] = (1.0,)
    hflip: float = 0.0
    long_caption_prob: float = 0.5
    synthetic_prob: float = 0.95
    actions: int = 0

    row_tokens: int = 1024
    max_text_per_row: int = 256
    max_frames_per_row: int = 128
    max_clips_per_row: int = 32
    buffer_rows: int = 64
    buffer_tokens: int = 1 << 18
    buffer_clips: int = 256
    balance_rows: int = 1

    streams: int = 0
    epochs: int = 0
    threads: int = 4
    read_ahead: int = 8
    prefetch: int = 2

    def __post_init__(self) -> None:
        for name in ("pixel_budgets", "frames", "fps", "aspects"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ConfigError(f"data.{name}={values}: needs at least one value, all above 0")
        for name in ("size_multiple", "frame_multiple", "row_tokens", "max_text_per_row",
                     "max_frames_per_row", "max_clips_per_row", "buffer_rows", "buffer_tokens", "buffer_clips",
                     "balance_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}={getattr(self, name)}: must be at least 1")
        for name in ("actions", "streams", "epochs", "threads", "read_ahead", "prefetch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name}={getattr(self, name)}: must be 0 or more")
        for name in ("hflip", "long_caption_prob", "synthetic_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}={getattr(self, name)}: a probability, give 0 to 1")
        for count in self.frames:
            if (count - 1) % self.frame_multiple:
                near = 1 + self.frame_multiple * round((count - 1) / self.frame_multiple)
                raise ConfigError(f"data.frames has {count}: each must be 1 + {self.frame_multiple} * k, "
                                  f"give {near} (data.frame_multiple is the VAE's stride in time)")
        smallest = min(self.pixel_budgets)
        if smallest < self.size_multiple**2:
            raise ConfigError(f"data.pixel_budgets has {smallest}: must be at least data.size_multiple squared, "
                              f"{self.size_multiple**2}")

    @property
    def path(self) -> str | None:
        """The folder that the source reads, if it reads one."""
        return getattr(self.source, "path", None) or None

    def look_ahead(self) -> int:
        """Tokens that each stream's packer looks ahead over."""
        return min(self.buffer_rows * self.row_tokens, max(self.buffer_tokens, 8 * self.row_tokens))
