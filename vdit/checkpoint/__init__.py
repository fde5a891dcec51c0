"""Checkpoints: save in the background, restore onto any mesh, use nothing but what is as it was written.

A step is a folder `<directory>/<step>`, on a disk or in a bucket. Its parts are stored under names of their own
(`params`, `ema`, `optimizer`, ...), so that inference reads the parameters without knowing the optimizer. Beside them
lie `data` (the state of the data iterator, one file for each host) and `meta` (the config that built it). Orbax ends a
save with the step's name, or in a bucket with a file. Then the sha256 of every file is written, which finalizes it.

    checkpointer   Checkpointer, BestStep            hosts      what hosts tell each other, RunLock
    restore        which step to use, reading it     files      folders, small files, failures
    integrity      checksums                         stream     writing a step piece by piece
"""

from vdit.checkpoint.checkpointer import BestStep, Checkpointer, DataIterator, best_step
from vdit.checkpoint.files import META
from vdit.checkpoint.hosts import RunLock
from vdit.checkpoint.integrity import MANIFEST, checksums, damage, write_manifest
from vdit.checkpoint.restore import check_config, find_step, load_meta, load_params, load_progress, load_trees, say_once
from vdit.checkpoint.stream import StreamedLeaf, save_streamed

__all__ = [
    "MANIFEST",
    "META",
    "BestStep",
    "Checkpointer",
    "DataIterator",
    "RunLock",
    "StreamedLeaf",
    "best_step",
    "check_config",
    "checksums",
    "damage",
    "find_step",
    "load_meta",
    "load_params",
    "load_progress",
    "load_trees",
    "save_streamed",
    "say_once",
    "write_manifest",
]
