"""Run by test_generator.py in a process of its own: python mesh_run.py RUN OUT.npy FSDP."""

import sys

import jax
import numpy as np

import vdit
from vdit.dist.mesh import MeshConfig, make_mesh

run, out, fsdp = sys.argv[1], sys.argv[2], int(sys.argv[3])
mesh = make_mesh(MeshConfig(data=-1, fsdp=fsdp))
generator = vdit.load(run, mesh)
prompts = ["a red circle moves to the left", "a blue square", "a green cross moves up"]
videos = generator(prompts, frames=5, size=(32, 32), seed=1, steps=2, guidance=2.0)
parts = {leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in jax.tree.leaves(generator.params)}
np.save(out, np.asarray(videos))
print("devices", len(mesh.devices.flat), "sharded", True in parts, "types", videos.dtype)
