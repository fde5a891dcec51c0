"""From a DataConfig to the source that it names."""

from __future__ import annotations

from collections.abc import Collection

from vdit.data.clips import Clips
from vdit.data.config import DataConfig
from vdit.data.latents import LatentStore
from vdit.data.sources import Source
from vdit.errors import ConfigError


def open_source(config: DataConfig, *, seed: int = 0, exclude: Collection[str] = ()) -> Source:
    """LatentStore for "latents", else Clips; exclude: ids (files of a folder) that are left out."""
    if config.source != "worlds" and not config.path:
        raise ConfigError(f"data.source={config.source!r} needs data.path")
    if exclude and config.source != "folder":
        raise ConfigError(f"only a folder's files can be excluded, data.source is {config.source!r}")
    if config.source == "latents":
        return LatentStore(config.path)
    if config.source == "folder":
        from vdit.data.folder import FolderDataset

        library = FolderDataset(config.path, config.captions, exclude=exclude, threads=config.threads)
    elif config.source == "tfds":
        from vdit.data.tfds_library import TfdsDataset

        library = TfdsDataset.of(config)
    else:
        from vdit.data.worlds import WorldDataset

        library = WorldDataset.of(config, seed=seed)
    return Clips(library, config, seed=seed)
