"""A plan for people: less effort is said, ranges run upwards, and the command says what it does."""

import io
import re

import pytest
from rich.console import Console

from vdit.cli.main import main
from vdit.plan.plan import Plan, ProgramPlan
from vdit.plan.show import print_plan, save_plan

TIMES = {"arithmetic": 0.2, "hbm": 0.3, "network": 0.1, "overlapped": 0.3, "serial": 0.5}


def made(effort: str) -> Plan:
    program = ProgramPlan(
        name="train", fits=True, memory={"parameters": 2**30}, total=2**30, capacity=2**34, flops=2e14,
        model_flops=1e14, tokens=10_000, video_seconds=3.0, hbm=2**31, times=TIMES,
    )  # fmt: skip
    mesh = {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
    return Plan(
        experiment="one", topology="v5p:2x2x2", chips=8, devices=8, mesh=mesh, programs=(program,), effort=effort
    )


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_table_and_page_say_with_which_effort_it_was_compiled(tmp_path, effort):
    out = io.StringIO()
    print_plan(made(effort), Console(file=out, width=120))
    page = save_plan(made(effort), tmp_path).read_text()
    assert ("--quick" in out.getvalue(), "--quick" in page) == (effort == "quick", effort == "quick")
    ranges = re.findall(r"([\d.]+)\s*(?:%|s|[kMGT])?\s+to\s+([\d.]+)", out.getvalue())
    assert len(ranges) >= 4, "time, MFU, HFU, tokens, seconds of video"
    assert all(float(low) <= float(high) for low, high in ranges)


def test_the_command_says_what_it_does_while_it_does_it(tmp_path, monkeypatch, capsys):
    def plan(experiment, topology, *, programs, effort, progress):
        for name in programs:
            progress(f"compiling {name}")
        return made(effort)

    monkeypatch.setattr("vdit.plan.plan.plan", plan)
    command = ["plan", "experiments/pod_tiny.py", "--quick", "--topology", "v5p:2x2x2", "--out", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err.index("v5p:2x2x2: 8 chips") < said.err.index("compiling train") < said.err.index("compiling decode")
    assert "plan.html" in said.out
