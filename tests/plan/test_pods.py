"""Shipped pods compiled for the TPUs that they are for: the tiny one as it is, the largest without its text.

The compiler's lesser effort, which takes a third of the time and tells memory from above. All as they are, and with
the full effort: `pytest -m slow tests/plan`.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from vdit.cli.main import main
from vdit.config import apply_overrides, load_config
from vdit.plan.plan import Plan, plan
from vdit.plan.show import print_plan
from vdit.plan.topology import parse_topology

pytest.importorskip("libtpu")
ROOT = Path(__file__).resolve().parents[2]
PODS = ("pod_tiny", "dit_xl_pod", "t2v_3b_pod", "sora_10b_minute")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[int, Path]:
    """The exit code of `vdit plan` on the smallest pod, and the folder that it has filled."""
    folder = tmp_path_factory.mktemp("plan")
    command = ["plan", str(ROOT / "experiments" / "pod_tiny.py"), "--quick", "--out", str(folder)]
    return main([*command, "--program", "train", "--program", "decode"]), folder


def test_the_command_plans_and_saves(tiny):
    code, folder = tiny
    assert code == 0
    made = Plan.from_dict(json.loads((folder / "plan.json").read_text()))
    assert [program.name for program in made.programs] == ["train", "decode"]
    assert (made.chips, made.mesh) == (8, {"data": 1, "fsdp": 4, "sequence": 2, "tensor": 1})
    page = (folder / "plan.html").read_text()
    assert "activations kept for the backward" in page
    assert "all-to-all" in page


def test_a_plan_is_whole(tiny):
    made = Plan.from_dict(json.loads((tiny[1] / "plan.json").read_text()))
    for program in made.programs:
        assert program.fits
        assert sum(program.memory.values()) == pytest.approx(program.total)
        assert min(program.memory.values()) > 0
        assert 0 < program.times["overlapped"] <= program.times["serial"] < 60
        assert all(line["seconds"] > 0 and line["bytes"] > 0 for line in program.traffic)
    train = made.programs[0]
    assert {"parameters", "EMA", "optimizer", "batch", "temporaries"} <= set(train.memory)
    assert train.memory["EMA"] == train.memory["parameters"]
    topology = parse_topology(made.topology)
    low, high = train.utilisation(topology)["MFU"]
    assert 0.05 < low < high < train.utilisation(topology)["HFU"][1] <= 1.0 + 1e-6
    # attention runs in a kernel that the compiler cannot see into; its FLOPs are most of the step's
    assert 1.2 < train.flops / train.model_flops < 2.0
    # what fsdp gathers and sequence exchanges goes along these axes, and nothing gathers the row
    axes = {(line["kind"], tuple(line["axes"])) for line in train.traffic}
    assert ("all-gather", ("fsdp",)) in axes
    assert ("all-to-all", ("sequence",)) in axes


def test_the_minute_of_1080p_fits_its_pod():
    experiment = load_config(ROOT / "experiments" / "sora_10b_minute.py")
    short = apply_overrides(experiment, ["backbone.text=none", "backbone.text_pool=false"])
    train = plan(short, experiment.topology, programs=("train",), effort="quick").programs[0]
    assert train.fits
    assert train.total < 0.8 * train.capacity
    rows, shared = experiment.dit_train.batch_size, 512
    assert train.memory["batch"] < 1.1 * rows * experiment.data.row_tokens * (192 + 6) * 4 / shared
    stream = experiment.data.row_tokens / 32 * experiment.backbone.width * 2 * experiment.backbone.depth
    # the residual stream and the attention's output, both of a chip's tokens alone
    assert 1.9 * stream < train.memory["activations kept for the backward"] < 3.5 * stream


def test_what_does_not_fit_is_said_with_the_exit_code(tmp_path, capsys):
    """The tiny pod without remat, on rows eight times as long: refused by the compiler in its first seconds."""
    command = ["plan", str(ROOT / "experiments" / "pod_tiny.py"), "--quick", "--out", str(tmp_path)]
    cut = ["--cfg.backbone.remat=none", "--cfg.data.row_tokens=262144"]
    cut += ["--cfg.backbone.text=none", "--cfg.backbone.text_pool=false"]
    assert main([*command, "--program", "train", *cut]) == 3
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", PODS)
def test_every_pod_fits_as_it_is(name, tmp_path):
    experiment = load_config(ROOT / "experiments" / f"{name}.py")
    made = plan(experiment, experiment.topology)
    assert made.fits, [(program.name, program.total, program.notes) for program in made.programs]
    assert all(dataclasses.asdict(program)["times"] for program in made.programs)


def test_tables_show_what_a_plan_holds(tiny):
    from rich.console import Console

    made = Plan.from_dict(json.loads((tiny[1] / "plan.json").read_text()))
    console = Console(width=100, record=True, file=(tiny[1] / "shown.txt").open("w"))
    print_plan(made, console)
    text = console.export_text()
    for wanted in ("pod_tiny on v5e:2x4: 8 chips", "fits:", "parameters", "MFU", "tokens a day", "fsdp"):
        assert wanted in text
