"""Sources of samples, packing, and the iterators that training loops take."""

from vdit.data.clips import Clips
from vdit.data.config import DataConfig
from vdit.data.latents import LatentStore, write_latents
from vdit.data.packing import RowLimits, TokenClip, build_rows
from vdit.data.patches import grid_position, patchify, token_grid, unpatchify
from vdit.data.pipeline import row_iterator, useful, video_batches
from vdit.data.sources import Sample, Source
from vdit.data.worlds import WorldLibrary

__all__ = ["Clips", "DataConfig", "LatentStore", "RowLimits", "Sample", "Source", "TokenClip", "WorldLibrary",
           "build_rows", "grid_position", "patchify", "row_iterator", "token_grid", "unpatchify", "useful",
           "video_batches", "write_latents"]
