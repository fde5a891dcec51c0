"""Checkpoints: save in the background, restore onto any mesh, use nothing but what is as it was written.

A step is a folder `<directory>/<step>`. Its parts are stored under names of their own (`params`, `ema`, `optimizer`,
...), so that inference reads the parameters without knowing the optimizer. Beside them lie `data` (the data's place,
one file for each host) and `meta` (the config that built it). A step gets its name from Orbax when all of it is
written, and then its seal: the sha256 of every file.

    agree    what hosts tell each other        sums     the seal, and comparing it      steps   which step to use
    files    folders, small files, failures    trees    arrays of one step              saver   Checkpointer
    places   the data's place                  lock     one run in a folder             load    reading for inference
    best     the best step by a figure
                                                                                        stream  writing piece by piece
"""

from vdit.checkpoint.best import BestStep, best_step
from vdit.checkpoint.checksums import MANIFEST, damage, sums, write_manifest
from vdit.checkpoint.files import META
from vdit.checkpoint.load import check_config, load_meta, load_params, load_progress, load_trees
from vdit.checkpoint.lock import RunLock
from vdit.checkpoint.saver import Checkpointer, DataIterator
from vdit.checkpoint.steps import find_step, say_once
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
    "damage",
    "find_step",
    "load_meta",
    "load_params",
    "load_progress",
    "load_trees",
    "save_streamed",
    "say_once",
    "sums",
    "write_manifest",
]
