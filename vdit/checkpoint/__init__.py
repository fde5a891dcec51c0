"""Checkpoints: save in the background, restore onto any mesh, check what was read.

A step is a folder `<directory>/<step>` that exists only when it is complete. Its parts are stored
under names of their own (`params`, `ema`, `optimizer`, ...), so that inference reads the parameters
without knowing the optimizer. Beside them lie `data` (the data iterator's place, one for each host)
and `meta` (the config that built it). A sha256 of every file is written after the save: Orbax itself
reads a flipped bit back without a word.
"""

from vdit.checkpoint.files import MANIFEST, META
from vdit.checkpoint.steps import (
    Checkpointer,
    DataIterator,
    check_config,
    find_step,
    load_meta,
    load_params,
    load_trees,
)
from vdit.checkpoint.stream import StreamedLeaf, save_streamed

__all__ = [
    "MANIFEST",
    "META",
    "Checkpointer",
    "DataIterator",
    "StreamedLeaf",
    "check_config",
    "find_step",
    "load_meta",
    "load_params",
    "load_trees",
    "save_streamed",
]
