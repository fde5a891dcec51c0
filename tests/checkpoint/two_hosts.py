"""One of two processes that save together: what befalls one host's part of a checkpoint, all hosts learn alike."""

import json
import resource
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdit.checkpoint import Checkpointer, RunLock, load_params
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.dist.multihost import initialize
from vdit.dist.rules import replicated
from vdit.errors import CheckpointError

ROWS, COLUMNS = 8, 50_000


class Source:
    """This host's two streams of four."""

    def get_state(self):
        first = 2 * jax.process_index()
        return {"streams": {str(number): {"read": 10 + number} for number in (first, first + 1)}}

    def set_state(self, place):
        self.place = place


def values(scale):
    return np.random.default_rng(scale).standard_normal((ROWS, COLUMNS)).astype(np.float32)  # compresses badly


def tree(mesh, scale):
    kernel = jax.make_array_from_callback((ROWS, COLUMNS), NamedSharding(mesh, P("fsdp")), values(scale).__getitem__)
    step = jax.make_array_from_callback((), replicated(mesh), np.int32(scale).__getitem__)
    return {"params": {"kernel": kernel, "step": step}}


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main(directory):
    initialize()
    mesh, host, answer = make_mesh(MeshConfig(fsdp=2)), jax.process_index(), {"warnings": []}
    with RunLock(directory), Checkpointer(directory, warn=answer["warnings"].append) as checkpointer:
        checkpointer.save(1, tree(mesh, 1), iterator_state=Source().get_state())
        checkpointer.wait()
        began = time.monotonic()
        if host == 1:
            limit_files(20_000)
        checkpointer.save(2, tree(mesh, 2), iterator_state=Source().get_state())
        try:
            checkpointer.wait()
        except CheckpointError as error:
            answer["failure"] = str(error)
        limit_files(resource.RLIM_INFINITY)
        answer["seconds"] = time.monotonic() - began
        checkpointer.save(3, tree(mesh, 3), iterator_state=Source().get_state())
        checkpointer.wait()
        answer["steps"] = sorted(entry.name for entry in Path(directory).iterdir() if entry.is_dir())
        file = max((f for f in Path(directory, "3/params").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        multihost_utils.sync_global_devices("look")
        if host == 0:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        multihost_utils.sync_global_devices("flipped")
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree(mesh, 0))
        read = load_params(directory, ema=False, abstract=shapes["params"])
        answer["read"] = int(read["step"])
        source = Source()
        answer["latest"] = checkpointer.latest_step()
        got = checkpointer.restore(shapes, data=source)["params"]
        shard = got["kernel"].addressable_shards[0]
        answer["exact"] = bool((np.asarray(shard.data) == values(1)[shard.index]).all())
        answer["place"] = source.place
        try:
            with RunLock(directory, patience=0.0):
                pass
        except CheckpointError as error:
            answer["lock"] = str(error)
    print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
