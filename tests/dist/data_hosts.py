"""One of several processes that read latents, or encode them: `read FOLDER PLACE BATCHES`, `encode RUN`."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax.linen import meta

from tests.conftest import TINY
from vdit.checkpoint import Checkpointer
from vdit.config import apply_overrides
from vdit.data import DataConfig, LatentStore, ProcessShard, TokenSpec, row_iterator, write_latents
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.dist.multihost import initialize
from vdit.dist.mesh import host_share
from vdit.dist.multihost import on_primary_host, wait_for_all
from vdit.errors import TextError, VditError
from vdit.quickstart.config import experiment as quickstart_experiment
from vdit.train.stages import Logging, run
from vdit.train.workspace import Workspace
from vdit.models.vae import VAE

ITEMS, BATCH, PASSES = 70, 8, 4
LATENTS = apply_overrides(quickstart_experiment(), (*TINY, "latents.samples=40", "latents.dtype=float32"))


def write_store(folder):
    """Latents of several sizes; item i has the label i + 1."""
    rng = np.random.default_rng(0)
    shapes = [(int(rng.integers(1, 4)), *(int(v) for v in 2 * rng.integers(1, 4, 2)), 2) for _ in range(ITEMS)]
    write_latents(folder, ({"latent": rng.normal(size=shape), "captions": ["a"], "label": i + 1}
                           for i, shape in enumerate(shapes)))


class Letters:
    max_length = 8

    def encode(self, text):
        return [1, *map(ord, text)]


def rows_of(folder, share):
    config = DataConfig(row_tokens=32, max_text_per_row=16, max_frames_per_row=12, max_clips_per_row=6, buffer_clips=5, threads=1, epochs=PASSES)
    return row_iterator(config, LatentStore(folder), Letters(), TokenSpec(patch=(1, 2, 2)), seed=3, batch_rows=BATCH,
                        shard=ProcessShard(index=share.index, count=share.count))


def described(rows):
    """Each row as (labels, digest of all it holds)."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(rows)]
    digests = [hashlib.sha256(b"".join(leaf[b].tobytes() for leaf in leaves)) for b in range(len(leaves[0]))]
    return [[[int(v) for v in labels if v], digest.hexdigest()] for labels, digest in zip(rows.cond["label"], digests)]


def merged(files):
    """The place of a run from those of its hosts, as the checkpointer makes it."""
    places = [json.loads(Path(file).read_text()) for file in files]
    return places[0] | {"streams": {key: value for place in places for key, value in place["streams"].items()}}


def read(folder, place, batches):
    """From the place (a file, or "start"), with each host's own rows, and with hosts two by two on the same rows."""
    found = {}
    hosts = jax.process_count()
    for name, config in (("own", MeshConfig()), ("pairs", MeshConfig(sequence=2))):
        share = host_share(make_mesh(config))
        iterator = rows_of(folder, share)
        if place != "start":
            iterator.set_state(json.loads(Path(place).read_text()))
        rows = [described(next(iterator)) for _ in range(int(batches))]
        found[name] = {"share": [share.index, share.count], "rows": rows, "place": iterator.get_state()}
        iterator.close()
    return found | {"hosts": hosts}


def begin_run(folder):
    """A run whose VAE is drawn at random."""
    workspace = Workspace(folder)
    video = np.zeros((1, 5, 32, 32, 3), np.float32)
    params = meta.unbox(jax.jit(VAE(LATENTS.vae).init)(jax.random.key(0), video)["params"])
    with Checkpointer(workspace.vae) as checkpointer:
        checkpointer.save(1, {"params": {"vae": params}})
    return workspace


def encode(folder):
    """The stages that several hosts share out, and what they hear of each other."""
    workspace = Workspace(folder)
    run(LATENTS, workspace, stages=("latents", "tokenizer"), logging=Logging(tensorboard=False))
    made = []
    on_primary_host(lambda: made.append("once"), "a turn")
    wait_for_all("all")

    def fail():
        raise TextError("no captions: give some")

    try:
        on_primary_host(fail, "a turn that fails")
    except VditError as error:
        return {"made": made, "error": type(error).__name__, "said": str(error)}


if __name__ == "__main__":
    initialize()
    action = {"read": read, "encode": encode}[sys.argv[1]]
    print("ANSWER " + json.dumps(action(*sys.argv[2:])), flush=True)
