"""The kernels of TPUs and GPUs compile for them where there is none, and know their devices' neighbours."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from vdit.nn.attention import triton
from vdit.nn.attention.kernel import delta_of

ROOT = Path(__file__).resolve().parents[2]
TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other tests may compile at the same time
}


@pytest.fixture(scope="module")
def compiled():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[test]'")
    command = [sys.executable, str(ROOT / "tests/nn/attention_for_tpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | TPU | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["one chip", "cross", "ulysses", "ring", "times"])
def test_splash_compiles_forward_and_backward(compiled, case):
    kernels = compiled[case]["kernels"]
    assert all(any(part in kernel for kernel in kernels) for part in ("fwd", "dq", "dkv")), kernels


def test_no_score_matrix_on_a_tpu(compiled):
    for case, found in compiled.items():
        assert found["temporaries"] < found["scores"] / 4, case


def test_keys_travel_while_the_kernel_runs(compiled):
    assert compiled["ring"]["overlap"]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "keys", "times"),
    [("bfloat16", 128, 1024, False), ("float32", 72, 77, False), ("bfloat16", 64, 2048, True)],
)
def test_triton_is_lowered_for_a_gpu(dtype, head_dim, keys, times):
    q, k = (jax.ShapeDtypeStruct((1, 2, n, head_dim), dtype) for n in (1024, keys))
    clips = [jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (1024, keys)]

    def run(q, k, v, q_ids, k_ids, do):
        q_from = q_ids - 3 if times else None
        out, lse = triton.forward(q, k, v, q_ids, k_ids, q_from)
        return out, triton.backward(q, k, v, q_ids, k_ids, lse, delta_of(out, do), do, q_from)

    # jax 0.11 asks the mesh which GPU it is, where there is none
    gpu = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=gpu)):
        lowered = jax.jit(run).trace(q, k, k, *clips, q).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("xla.gpu.triton") == 3
