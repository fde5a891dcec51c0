"""Everything of vdit that the stages call: what is renamed there is changed here."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdit.config import load_config
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.models.dit.config import DiTConfig, preset
from vdit.nn.attention import attention
from vdit.nn.conv import conv
from vdit.nn.layers import Linear
from vdit.nn.quantise import quantise
from vdit.plan.programs import Program, train_program
from vdit.plan.roofline import times
from vdit.plan.topology import Chip, Topology

ROOT = Path(__file__).resolve().parents[3]
GPU = jax.default_backend() == "gpu"
FRAMES, WORDS = 8, 64  # of a clip

__all__ = [
    "GPU",
    "ROOT",
    "Chip",
    "attention",
    "conv",
    "dit",
    "linear",
    "one_device",
    "roofline",
    "training",
    "training_program",
]


def stand_in() -> bool:
    """Where PyAV is missing, as it is too large to travel, lets vdit be imported: no video is read or written then."""
    if importlib.util.find_spec("av") is not None:
        return False

    class Anything(types.ModuleType):
        __path__: tuple[str, ...] = ()

        def __getattr__(self, name: str) -> Anything:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(f"{self.__name__}.{name}")

        def __or__(self, other: Any) -> Anything:
            return self

    for name in ("av", "av.video", "av.video.reformatter", "av.sidedata", "av.sidedata.sidedata", "av.filter"):
        sys.modules[name] = Anything(name)
    return True


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(), devices=jax.devices()[:1])


def roofline(chip: Chip, *, flops: float, bytes: float) -> float:
    """Seconds that the work takes at the least."""
    return times(Topology(name=chip.name, chip=chip, shape=(1,)), flops=flops, hbm=bytes, lines=()).overlapped


def dit(size: str, *, dry: bool, **changes: Any) -> DiTConfig:
    """ "XL", or "1.3B" for a transformer of the shape of Wan's; in bfloat16. dry: a tiny one."""
    name = {"XL": "XL", "1.3B": "wan2.1-t2v-1.3b"}[size]
    small = {"width": 64, "depth": 2, "heads": 2, "mlp_width": 96} if dry else {}
    return preset(name, text_width=None, dtype="float32" if dry else "bfloat16", **{**small, **changes})


def training_program(config: DiTConfig, *, row: int, clips: int, rows: int = 1, mesh: jax.sharding.Mesh) -> Program:
    """The step of `vdit train` for rows of so many tokens, each of so many clips, traced."""
    base = load_config(str(ROOT / "experiments" / "worlds_small.py"))
    data = dataclasses.replace(
        base.data,
        row_tokens=row,
        max_text_per_row=WORDS * clips,
        max_frames_per_row=FRAMES * clips,
        max_clips_per_row=clips,
    )
    train = dataclasses.replace(base.dit_train, batch_size=rows)
    return train_program(dataclasses.replace(base, backbone=config, data=data, dit_train=train), mesh)


def training(config: DiTConfig, *, row: int, clips: int, rows: int = 1) -> tuple[Program, Any]:
    """The traced program with its arguments, (state, batch), of random numbers; the state is donated."""
    program = training_program(config, row=row, clips=clips, rows=rows, mesh=one_device())
    lengths = {"tokens": row, "text": WORDS * clips, "frames": FRAMES * clips}

    def fill(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-1]
        shape, dtype = leaf.shape, leaf.dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if jnp.issubdtype(dtype, jnp.floating):  # moments must not be negative
            return _positive(jax.random.key(len(jax.tree_util.keystr(path))), shape, dtype)
        return (
            jnp.asarray(np.broadcast_to(_whole_numbers(name, lengths, clips), shape), dtype)
            if shape
            else (jnp.zeros(shape, dtype))
        )

    (arguments, _) = jax.tree_util.tree_map_with_path(fill, program.traced.args_info)
    return program, arguments


@functools.partial(jax.jit, static_argnums=(1, 2))
def _positive(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.abs(jax.random.normal(key, shape, jnp.float32) * 0.02).astype(dtype)


def _whole_numbers(name: str, lengths: dict[str, int], clips: int) -> np.ndarray:
    """A field of vdit.types.Row in which every clip has the same number of tokens, frames and words."""
    of = {"segment_ids": "tokens", "frame_index": "tokens", "position": "tokens", "frame_segment_ids": "frames"}
    count = lengths[of.get(name, "text")]
    index, each = np.arange(count), count // clips
    clip = np.minimum(index // each, clips - 1)
    inside = index - clip * each
    frame = np.minimum(inside * FRAMES // each, FRAMES - 1)
    if name in ("segment_ids", "frame_segment_ids", "text_segment_ids"):
        return clip + 1
    if name == "frame_index":
        return clip * FRAMES + frame
    if name == "position":
        space = inside - frame * each // FRAMES
        side = max(int(np.sqrt(each // FRAMES)), 1)
        return np.stack([frame, space // side, space % side], axis=-1)
    return inside % 50 if name == "text_position" else 1 + inside % 50 if name == "text" else np.zeros((), int)


def linear(kind: str | None, features: int, x: jax.Array) -> tuple[Any, Any]:
    """(function of parameters and x, parameters) of a dense layer whose kernel is held as bf16, int8 or fp8."""
    layer = Linear(features, dtype=x.dtype)
    params = jax.tree.map(
        lambda leaf: leaf.unbox() if hasattr(leaf, "unbox") else leaf,
        layer.init(jax.random.key(0), x[:1])["params"],
        is_leaf=lambda leaf: hasattr(leaf, "unbox"),
    )
    held = quantise({"layer": params}, kind)["layer"] if kind else jax.tree.map(lambda y: y.astype(x.dtype), params)
    return (lambda params, x: layer.apply({"params": params}, x)), held
