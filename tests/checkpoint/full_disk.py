"""Saves while files may not grow: prints what was said, and what was there after each save."""

import json
import resource
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vdit.checkpoint import Checkpointer
from vdit.errors import CheckpointError

COUNT = 50_000  # numbers that compress badly


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main(directory, bytes_left):
    said, there, raised = [], {}, []
    numbers = {"params": {"w": jnp.asarray(np.random.default_rng(0).standard_normal(COUNT, np.float32))}}
    names = lambda: sorted(entry.name for entry in Path(directory).iterdir())  # noqa: E731
    checkpointer = Checkpointer(directory, warn=said.append)
    for step in range(1, 8):
        limit_files(bytes_left if step in (3, 5, 6, 7) else resource.RLIM_INFINITY)
        checkpointer.save(step, numbers, iterator_state={"at": step})
        checkpointer._settle()
        limit_files(resource.RLIM_INFINITY)
        there[step] = names()
    for last_word in (lambda: checkpointer.save(8, numbers), checkpointer.close):
        try:
            last_word()
        except CheckpointError as error:
            raised.append(str(error))
    checkpointer.save(9, numbers)
    checkpointer.close()
    limit_files(bytes_left)
    checkpointer.save(10, numbers)
    try:
        checkpointer.close()
    except CheckpointError as error:
        raised.append(str(error))
    limit_files(resource.RLIM_INFINITY)
    print(json.dumps({"said": said, "there": there, "raised": raised, "end": names()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
