"""A whole DiT on 8 devices: every layout gives one device's numbers, and splits what the table of rules splits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOAT = 4  # bytes

# What one device holds of layers of q [2, 72, 72] and MLP columns [2, 72, 104], and of the text's table [136, 40].
SHARES = {
    "data=8": ([2, 72, 72], [2, 72, 104], [136, 40]),
    "fsdp=8": ([2, 9, 72], [2, 9, 104], [136, 5]),
    "tensor=2 x fsdp=4": ([2, 18, 36], [2, 18, 52], [68, 10]),
    "tensor=4 x data=2": ([2, 72, 18], [2, 72, 26], [34, 40]),
    "data=2 x fsdp=2 x tensor=2": ([2, 36, 36], [2, 36, 52], [68, 20]),
    "sequence=8": ([2, 72, 72], [2, 72, 104], [136, 40]),
    "sequence=4 x fsdp=2": ([2, 36, 72], [2, 36, 104], [136, 20]),
    "sequence=4 x tensor=2": ([2, 72, 36], [2, 72, 52], [68, 40]),
    "sequence=2 x tensor=2 x fsdp=2": ([2, 36, 36], [2, 36, 52], [68, 20]),
    "data=2 x fsdp=2 x sequence=2": ([2, 36, 72], [2, 36, 104], [136, 20]),
}
ARRAYS = ("dit/blocks/attention/q/kernel", "dit/blocks/mlp/up/kernel", "text/embed/embedding")
COPIES = ("gradient", "square", "parameters", "average")
# On the layouts above, and how else the step may be computed.
EXACT = [*SHARES, "accumulation=2", "remat=full", "remat=dots", "classes"]
CASES = [*EXACT, "bfloat16"]


@pytest.fixture(scope="module")
def results():
    command = [sys.executable, str(ROOT / "tests/dist/dit_layouts.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {"stderr": done.stderr} | {one["name"]: one for one in found}


def sent(result, kind=None, axis=None):
    """The collectives of a kind, of those that an axis takes part in."""
    lines = [dict(zip(("kind", "axes", "count", "bytes", "payload"), line)) for line in result["collectives"]]
    return [line for line in lines if kind in (None, line["kind"]) and (axis is None or axis in line["axes"])]


@pytest.mark.parametrize("name", EXACT)
def test_loss_gradients_and_the_state_after_a_step_are_those_of_one_device(results, name, record_property):
    errors = results[name]["errors"]
    by_axis = {}
    for line in sent(results[name]):
        label = f"{line['kind']} {'*'.join(line['axes'])}"
        by_axis[label] = by_axis.get(label, 0) + line["bytes"]
    sizes = [f"{label} {size / 1024:.0f}" for label, size in by_axis.items()]
    record_property("layout", "|".join([name, *(f"{errors[copy][0]:.1e}" for copy in (*COPIES, "metrics")),
                                        ", ".join(sizes)]))  # fmt: skip
    assert {copy: error for copy, error in errors.items() if not error[0] <= 1e-5} == {}


def test_in_bfloat16_the_numbers_differ_by_its_rounding(results):
    errors = results["bfloat16"]["errors"]
    assert errors["metrics"][0] < 2e-3
    assert 1e-6 < max(error for error, _ in errors.values()) < 0.05


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("source", ["compiled", "held"])
def test_parameters_average_and_moments_are_split_as_the_table_says(results, name, source):
    shares = dict(zip(ARRAYS, SHARES[name]))
    found = results[name]["held"][source]
    assert {key: found[key] for key in (f"{copy}/{path}" for copy in COPIES for path in ARRAYS)} == {
        f"{copy}/{path}": share for copy in COPIES for path, share in shares.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_every_array_of_the_state_lies_where_it_was_planned(results, name):
    assert results[name]["as planned"]
    assert results[name]["held"]["compiled"] == results[name]["held"]["held"]
    assert results[name]["report"] == [], "all of these sizes divide"


def test_with_fsdp_alone_no_matrix_is_whole(results):
    held, whole = results["fsdp=8"]["held"]["held"], results["fsdp=8"]["held"]["whole"]
    matrices = [path for path, shape in whole.items() if len(shape) - ("blocks" in path) == 2]
    assert len(matrices) > 4 * 20
    assert [path for path in matrices if held[path] == whole[path]] == []


@pytest.mark.parametrize("name", CASES)
def test_no_activation_is_whole_that_the_table_splits(results, name):
    """But clip ids and masks, and the rows of a few heads that attention has exchanged for tokens."""
    assert results[name]["whole"] == {"tokens": [], "rows": [], "hidden": []}


def test_xla_nowhere_gives_up_and_replicates(results):
    assert "rematerialization" not in results["stderr"]


def test_copies_of_the_model_exchange_gradients_alone(results):
    (line,) = sent(results["data=8"])
    held = results["data=8"]["held"]["whole"]
    parameters = sum(size_of(shape) for path, shape in held.items() if path.startswith("parameters/"))
    assert line["kind"] == "all-reduce"
    assert parameters <= line["payload"] / FLOAT < 1.01 * parameters + 100  # and the sums of the metrics


def size_of(shape):
    size = 1
    for side in shape:
        size *= side
    return size


def test_fsdp_gathers_a_layer_at_a_time_and_each_weight_twice(results):
    result = results["fsdp=8"]
    assert {line["kind"] for line in sent(result)} == {"all-gather", "all-reduce", "all-to-all"}
    assert result["largest"]["all-gather"] == 72 * 6 * 72 * FLOAT  # of time, outside of the layers: one for all
    whole = result["held"]["whole"]
    kernels = sum(size_of(whole[path]) for path in whole if path.startswith("parameters/") and path.endswith("kernel"))
    gathered = sum(line["payload"] for line in sent(result, "all-gather")) / FLOAT
    assert kernels < gathered < 2.1 * kernels  # those that meet no gradient of their input need it once
    table = 8 * 46 * 40 * FLOAT / 8  # the text's look-ups, there and back
    assert sum(line["payload"] for line in sent(result, "all-to-all")) == 2 * table


@pytest.mark.parametrize("name", [name for name in SHARES if "sequence" in name])
def test_tokens_stay_where_they_are_but_in_attention(results, name):
    """Over sequence go heads for tokens and a ring's keys; whole rows only of clip ids; sums of gradients."""
    result = results[name]
    assert sent(result, "all-to-all", "sequence"), "heads are exchanged"
    assert bool(ring(result)) == (name in ("sequence=8", "sequence=4 x tensor=2")), "a ring where they run out"
    ids = sum(line["payload"] for line in sent(result, "all-gather", "sequence"))
    assert ids <= 2 * 88 * FLOAT


def ring(result):
    """Exchanges of neighbours in sequence alone (those with fsdp move shares of weights' gradients)."""
    return [line for line in sent(result, "collective-permute") if line["axes"] == ["sequence"]]


@pytest.mark.parametrize("name", ["tensor=2 x fsdp=4", "tensor=4 x data=2", "data=2 x fsdp=2 x tensor=2"])
def test_tensor_sums_activations_and_moves_no_weights(results, name):
    result = results[name]
    gathered = sum(line["payload"] for line in sent(result, "all-gather", "tensor"))
    rows = {"tensor=4 x data=2": 4}.get(name, 2)
    slots = 2 * 7  # of what is known and what is not, in each frame
    assert gathered == rows * slots * 6 * 72 * FLOAT, "what the noise levels give, once"
    assert sent(result, "all-reduce", "tensor")
