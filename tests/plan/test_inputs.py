"""Planned arrays are those of a run: rows as the packer makes them, FLOPs by formula, kernels by their grid."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from vdit.config import load_config
from vdit.data.conditions import data_conditions
from vdit.data.packing import RowShape, empty_rows
from vdit.nn.attention import splash
from vdit.plan.memory import kernel_bytes
from vdit.plan.programs import abstract_rows, train_flops
from vdit.plan.topology import parse_topology
from vdit.train.flops import jaxpr_flops

ROOT = Path(__file__).resolve().parents[2]
ALL = {path.stem: load_config(path) for path in sorted((ROOT / "experiments").glob("*.py"))}
PODS = {name: experiment for name, experiment in ALL.items() if experiment.topology}


def test_there_are_pods_from_tiny_to_a_minute_of_1080p():
    chips = {name: parse_topology(experiment.topology).chips for name, experiment in PODS.items()}
    assert min(chips.values()) <= 8
    assert chips["sora_10b_minute"] == 512
    minute = PODS["sora_10b_minute"]
    assert minute.sample.frames / minute.sample.fps == pytest.approx(60, abs=0.1)
    for name, experiment in PODS.items():
        experiment.mesh.shape(parse_topology(experiment.topology).devices)
        assert experiment.data.row_tokens >= largest_clip(experiment), name


def largest_clip(experiment) -> int:
    """Tokens of the longest clip that the experiment draws, at the size at which it samples."""
    shape = experiment.vae.latent_shape(max(experiment.data.frames), *experiment.sample.size)
    return math.prod(shape[:3]) // math.prod(experiment.backbone.patch)


@pytest.mark.parametrize("actions", [0, 2])
def test_planned_rows_are_those_that_the_packer_makes(actions):
    experiment = PODS["pod_tiny"]
    width = actions * experiment.vae.temporal_stride * experiment.backbone.patch[0]
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, actions=actions),
        backbone=dataclasses.replace(experiment.backbone, action_width=width),
    )
    patch, stride = experiment.backbone.patch, experiment.vae.temporal_stride
    conditions = data_conditions(experiment.data, experiment.network.spec.conditions, patch=patch, stride=stride)
    real = empty_rows(3, experiment.backbone.token_values, RowShape.of(experiment.data, conditions, patch))
    planned = abstract_rows(experiment, rows=3)
    assert jax.tree.map(lambda x: (x.shape, str(x.dtype)), real) == jax.tree.map(
        lambda x: (x.shape, str(x.dtype)), planned
    )
    pieces = dataclasses.replace(experiment, dit_train=dataclasses.replace(experiment.dit_train, accumulation=4))
    assert abstract_rows(pieces).segment_ids.shape == (
        4,
        experiment.dit_train.batch_size // 4,
        experiment.data.row_tokens,
    )


@pytest.mark.parametrize("name", sorted(PODS))
def test_model_flops_are_the_formulas(name):
    """Within 2% of DiTConfig.flops plus the text encoder, three times, with every row one clip; and of
    2 L (k d^2 N + 2 N^2 d), k = 12 and cross-attention, where attention and the blocks are nearly all."""
    experiment = PODS[name]
    dit, text, data = experiment.backbone, experiment.text, experiment.data
    n, m, rows = data.row_tokens, data.max_text_per_row, experiment.dit_train.batch_size
    counted = train_flops(experiment)
    encoder = 2 * m * text.depth * (12 * text.width**2 + 2 * m * text.width)
    keys = 2 * m * dit.depth * 2 * dit.width**2  # of the captions, which DiTConfig.flops leaves out
    formula = 3 * rows * (dit.flops(n, n, m) + encoder + keys)
    assert counted == pytest.approx(formula, rel=0.02)
    blocks = 3 * rows * 2 * dit.depth * ((12 + 2) * dit.width**2 * n + 2 * n**2 * dit.width + 2 * n * m * dit.width)
    assert counted == pytest.approx(blocks, rel=0.05)


def test_a_splash_kernel_counts_as_attention_does():
    b, h, n, m, d = 2, 3, 1024, 2048, 128
    q, k = (jax.ShapeDtypeStruct((b, h, size, d), jnp.bfloat16) for size in (n, m))
    q_ids, k_ids = (jax.ShapeDtypeStruct((b, size), jnp.int32) for size in (n, m))
    forward = jax.make_jaxpr(splash.forward)(q, k, k, q_ids, k_ids).jaxpr
    assert jaxpr_flops(forward) == 4 * b * h * n * m * d
    least = b * h * d * 2 * (2 * n + 2 * m)  # q, k and v once, the output
    assert least <= kernel_bytes(forward) <= 4 * least


def test_blocks_move_when_their_place_changes():
    """x [4 blocks] stays while the inner dimension of the grid turns, y [6 blocks] comes anew each time."""

    def kernel(x, y, out):
        out[...] = x[...] + y[...]

    call = pl.pallas_call(
        kernel,
        grid=(4, 6),
        in_specs=[pl.BlockSpec((8, 128), lambda i, j: (i, 0)), pl.BlockSpec((8, 128), lambda i, j: (j, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i, j: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((32, 128), jnp.float32),
        interpret=True,
    )
    arguments = jax.ShapeDtypeStruct((32, 128), jnp.float32), jax.ShapeDtypeStruct((48, 128), jnp.float32)
    block = 8 * 128 * 4
    assert kernel_bytes(jax.make_jaxpr(call)(*arguments).jaxpr) == (4 + 24 + 4) * block
    looped = lambda x, y: jax.lax.scan(lambda c, _: (call(c, y), None), x, length=3)[0]  # noqa: E731
    assert kernel_bytes(jax.make_jaxpr(looped)(*arguments).jaxpr) == 3 * (4 + 24 + 4) * block
