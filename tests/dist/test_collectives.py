"""What is read of a compiled program's collectives, against programs that say what they send."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from vdit.dist.collectives import collectives, totals
from vdit.dist.collectives import shape_bytes

ROOT = Path(__file__).resolve().parents[2]
TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other tests may compile at the same time
}
# x has 2 devices, y 4; a device's part of [256, 512] is [128, 128].
PART = 128 * 128 * 4
KNOWN = {
    "sum x": ["all-reduce", ["x"], 1, 2 * 1 / 2 * PART, PART],
    "sum xy": ["all-reduce", ["x", "y"], 1, 2 * 7 / 8 * PART, PART],
    "scatter": ["reduce-scatter", ["y"], 1, 3 / 4 * 256 * 512 * 4, 256 * 512 * 4],
    "exchange": ["all-to-all", ["y"], 1, 3 / 4 * PART, PART],
    "shift": ["collective-permute", ["y"], 1, PART, PART],
}


@pytest.fixture(scope="module", params=["cpu", "tpu"])
def found(request):
    if request.param == "tpu" and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[test]'")
    command = [sys.executable, str(ROOT / "tests/dist/known_collectives.py"), request.param]
    env = os.environ | TPU | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"platform": request.param} | json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", KNOWN)
def test_one_collective_is_read_as_it_was_written(found, name):
    assert found[name] == [KNOWN[name]]


def test_a_gather_counts_its_result(found):
    """On a CPU bfloat16 travels as float32."""
    (line,) = found["gather"]
    size = 512 * 128 * (4 if found["platform"] == "cpu" else 2)
    assert line == ["all-gather", ["y"], 1, 3 / 4 * size, size]


def test_loops_in_loops_are_counted_through(found):
    lines = {line[0]: line[1:] for line in found["loops"]}
    assert lines == {
        "all-reduce": [["y"], 15, 15 * 2 * 3 / 4 * PART, 15 * PART],
        "collective-permute": [["x"], 3, 3 * PART, 3 * PART],
    }


def test_layers_gather_weights_and_share_out_their_gradients(found):
    """The TPU's program has asynchronous gathers, spread over fusions, and a reduce-scatter made of two operations."""
    tpu = found["platform"] == "tpu"
    weights = 512 * 512  # one layer's, split over y
    gathers = [line for line in found["layers"] if line[0] == "all-gather"]
    assert {tuple(line[1]) for line in gathers} == {("x",)}
    assert all(line[2] == 6 and line[4] == 6 * weights * (2 if tpu else 4) for line in gathers)
    assert len(gathers) == (3 if tpu else 4)
    sums = [line for line in found["layers"] if line[1] == ["x"] and line[0] != "all-gather"]
    # The two uses of a weight: added up before they are sent on a TPU, sent beside each other on a CPU.
    assert sums == [["reduce-scatter" if tpu else "all-reduce", ["x"], 6, 6 * weights * 4 * (1 / 2 if tpu else 2),
                     6 * weights * 4 * (1 if tpu else 2)]]  # fmt: skip


TEXT = """HloModule written

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%inside (p: bf16[8,16]) -> bf16[32,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %g = bf16[32,16]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %v = f32[8]{0} get-tuple-element(%t), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %r = (f32[8]{0}, pred[4]{0}) all-reduce(%v, %v), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %k = f32[8]{0} custom-call(%v), custom_call_target="kernel", backend_config={"text":"
}}, x"}
  ROOT %out = (s32[], f32[8]{0}) tuple(%next, %v)
}

%condition (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8], y: bf16[8,16]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = bf16[8,16]{1,0} parameter(1)
  %start = s32[] constant(1)
  %state = (s32[], f32[8]{0}) tuple(%start, %x)
  %w = (s32[], f32[8]{0}) while(%state), condition=%condition, body=%body
  %go = ((bf16[8,16]{1,0}), bf16[32,16]{1,0}, u32[]) async-start(%y), calls=%inside
  %done = bf16[32,16]{1,0} async-done(%go), calls=%inside
  %s = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0},{2,2}}
  %sd = f32[4]{0} collective-permute-done(%s)
  %n = f32[8]{0} all-to-all(%x), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,2,2]T(0,2,1)) {'a':(2)2}
  %all = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
  %none = f32[8]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %e = f32[8]{0} get-tuple-element(%w), index=1
}
"""


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices() * 8)[:8].reshape(2, 4), ("x", "y"))


def test_every_form_of_groups_and_of_asynchronous_operations(mesh):
    found = {(c.kind, c.axes): (c.count, c.payload) for c in collectives(TEXT, mesh)}
    assert found == {
        ("all-reduce", ("x",)): (4, 4 * (8 * 4 + 4)),  # i = 1, 3, 5, 7; a tuple of two arrays
        ("all-gather", ("y",)): (1, 32 * 16 * 2),
        ("collective-permute", ("y",)): (1, 4 * 4),
        ("all-to-all", ("y",)): (1, 8 * 4),
        ("all-reduce", ("x", "y")): (1, 8 * 4),
    }


def test_totals_add_up_lines_of_a_kind(mesh):
    once, lines = collectives(TEXT, mesh), totals(collectives(TEXT, mesh) * 2)
    assert sum(line.bytes for line in lines) == 2 * sum(line.bytes for line in once)
    assert len(lines) == 5
    assert [line.bytes for line in lines] == sorted((line.bytes for line in lines), reverse=True)


@pytest.mark.parametrize(
    ("text", "size"),
    [("f32[2,3]{1,0}", 24), ("bf16[4]{0:T(8,128)(2,1)S(1)}", 8), ("f8e4m3fn[5]", 5), ("s4[6]", 3), ("pred[]", 1),
     ("(f32[2], (u32[], c64[2]))", 28), ("token[]", 0)],
)  # fmt: skip
def test_bytes_of_types(text, size):
    assert shape_bytes(text) == size
