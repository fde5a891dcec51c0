"""What the data is, which sizes are drawn from it, and how rows are packed."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, Literal

from vdit.errors import ConfigError
from vdit.reprs import short_repr


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from, the sizes drawn from them, and the shape of a packed row.

    Source:
        source: "folder" (video files), "worlds" (rendered), "latents" (from encode_latents), "tfds".
        path: the folder, the latents folder, or the TFDS data set's directory or name.
        captions: captions file of a folder (.jsonl, .csv, or prompt.txt with videos.txt beside it); None looks for
            the usual ones, then a .txt beside each video (vdit.data.captions).
        split, video_feature, caption_feature, label_feature, fps_feature: for "tfds" only. An empty
            feature name means that the data set has none; then `default_fps` is the frame rate.
        world, world_count, world_options ("key=value" each): for "worlds" only. "moving+occluder" mixes worlds
            evenly; an option is for each of them that has it, "occluder.hiding=..." for one (vdit.worlds.make).

    Sizes (a clip keeps its aspect ratio: see vdit.data.cuts.fit_size):
        areas: pixel budgets, one drawn for each sample among those not above the video's own.
        size_multiple: height and width are multiples of this (VAE stride x patch).
        frames: durations in frames, each 1 + frame_multiple * k; one drawn among those that fit.
        fps: frame rates, one drawn among those not above the video's own.
        aspects: width / height of worlds, which have no size of their own.
        hflip: probability of a mirror image, only where no caption names a side or a direction.
        detailed: probability of a caption other than the first (the short one), where there is one.
        actions: numbers that say what is done in each video frame (vdit.data.actions); 0 for none.

    Rows:
        row_tokens, row_text, row_slots, row_clips: n, m, k and s of vdit.types.Row.
        buffer_rows: each stream's packer looks ahead over this many rows' worth of tokens ...
        buffer_tokens: ... or, where that is fewer, this many tokens (and 8 rows at least) ...
        buffer_clips: ... and at most this many clips; a clip waits at most this many rows.
            A host holds the look-ahead of each of its streams in memory: 64 MiB for each with tokens of 64 values,
            more where rows are above 32k tokens.

    Reading:
        streams: into how many independent orders, each with its packer, the data is dealt out. Any number of hosts
            that divides it reads the same batches, and goes on where another number stopped; it is fixed for a run.
            0: the largest divisor of the batch size up to 16. More hosts than that need a number of streams that
            they divide, and that divides the batch size; fewer streams take less memory.
        epochs: passes over the data; 0 repeats for ever.
        threads, read_ahead: reading threads, and samples read ahead by them.
        prefetch: finished batches kept ready.
    """

    source: Literal["folder", "worlds", "latents", "tfds"] = "worlds"
    path: str = ""
    captions: str | None = None
    split: str = "train"
    video_feature: str = "video"
    caption_feature: str = "caption"
    label_feature: str = "label"
    fps_feature: str = ""
    default_fps: float = 8.0
    world: str = "moving"
    world_count: int = 4096
    world_options: tuple[str, ...] = ()

    areas: tuple[int, ...] = (64 * 64,)
    size_multiple: int = 16
    frames: tuple[int, ...] = (17,)
    frame_multiple: int = 4
    fps: tuple[float, ...] = (8.0,)
    aspects: tuple[float, ...] = (1.0,)
    hflip: float = 0.0
    detailed: float = 0.5
    actions: int = 0

    row_tokens: int = 1024
    row_text: int = 256
    row_slots: int = 128
    row_clips: int = 32
    buffer_rows: int = 64
    buffer_tokens: int = 1 << 18
    buffer_clips: int = 256

    streams: int = 0
    epochs: int = 0
    threads: int = 4
    read_ahead: int = 8
    prefetch: int = 2

    def __post_init__(self) -> None:
        for name in ("areas", "frames", "fps", "aspects"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ConfigError(f"data.{name}={values}: needs at least one value, all above 0")
        for name in ("size_multiple", "frame_multiple", "world_count", "row_tokens", "row_text",
                     "row_slots", "row_clips", "buffer_rows", "buffer_tokens", "buffer_clips"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}={getattr(self, name)}: must be at least 1")
        for name in ("actions", "streams", "epochs", "threads", "read_ahead", "prefetch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name}={getattr(self, name)}: must be 0 or more")
        for name in ("hflip", "detailed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}={getattr(self, name)}: a probability, give 0 to 1")
        for count in self.frames:
            if (count - 1) % self.frame_multiple:
                near = 1 + self.frame_multiple * round((count - 1) / self.frame_multiple)
                raise ConfigError(f"data.frames has {count}: each must be 1 + {self.frame_multiple} * k, "
                                  f"give {near} (data.frame_multiple is the VAE's stride in time)")
        smallest = min(self.areas)
        if smallest < self.size_multiple**2:
            raise ConfigError(f"data.areas has {smallest}: must be at least data.size_multiple squared, "
                              f"{self.size_multiple**2}")
        self.world_arguments()

    def look_ahead(self) -> int:
        """Tokens that each stream's packer looks ahead over."""
        return min(self.buffer_rows * self.row_tokens, max(self.buffer_tokens, 8 * self.row_tokens))

    def world_arguments(self) -> dict[str, Any]:
        """`world_options` as keyword arguments: "gravity=9.8" gives {"gravity": 9.8}."""
        arguments = {}
        for option in self.world_options:
            key, equals, value = option.partition("=")
            if not equals or not all(part.isidentifier() for part in key.split(".")):
                raise ConfigError(f"data.world_options has {option!r}: write key=value")
            try:
                arguments[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                arguments[key] = value
        return arguments
