"""Sources of samples, packing, and the iterators that training loops take."""

from __future__ import annotations

import importlib
from typing import Any

# Imported on first use: who needs only patches or the config does not wait for grain.
_HOME = {
    "Clips": "clips",
    "DataConfig": "config",
    "DataSummary": "sources",
    "FolderDataset": "folder",
    "LatentStore": "latents",
    "RowShape": "packing",
    "Sample": "sources",
    "Source": "sources",
    "TfdsDataset": "tfds_library",
    "PackItem": "packing",
    "WorldDataset": "worlds",
    "build_rows": "packing",
    "encode_clips": "encode",
    "grid_position": "patches",
    "group_actions": "actions",
    "open_source": "open",
    "read_captions": "captions",
    "patchify": "patches",
    "row_iterator": "pipeline",
    "row_use": "pipeline",
    "token_grid": "patches",
    "unpatchify": "patches",
    "useful": "pipeline",
    "video_batches": "pipeline",
    "write_latents": "latents",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
