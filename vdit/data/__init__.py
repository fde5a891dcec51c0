"""Sources of samples, packing, and the iterators that training loops take."""

from vdit.lazy import exports

# Imported on first use, so that a config alone does not wait for jax, grain or flax.
_HOMES = {
    "Clips": "clips",
    "DataConfig": "config",
    "ClipView": "clips",
    "CuratedDataset": "curated",
    "CuratedSource": "data_source",
    "DataSource": "data_source",
    "DecodedClip": "clips",
    "DataSummary": "sources",
    "FolderDataset": "folder",
    "FolderSource": "data_source",
    "LatentStore": "latents",
    "LatentsSource": "data_source",
    "RowShape": "packing",
    "Sample": "sources",
    "Source": "sources",
    "TfdsDataset": "tfds_library",
    "TfdsSource": "data_source",
    "PackItem": "packing",
    "WorldDataset": "worlds",
    "WorldsSource": "data_source",
    "VideoDataset": "clips",
    "VideoHandle": "clips",
    "build_rows": "packing",
    "clips_of": "data_source",
    "encode_clips": "encode",
    "grid_position": "patches",
    "group_actions": "actions",
    "open_source": "data_source",
    "read_captions": "captions",
    "patchify": "patches",
    "row_iterator": "pipeline",
    "row_use": "pipeline",
    "to_latent_grid": "conditions",
    "token_grid": "patches",
    "unpatchify": "patches",
    "useful": "pipeline",
    "video_batches": "pipeline",
    "write_latents": "latents",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = exports(__name__, _HOMES)
