"""Layouts to try: which there are, which are ruled out and why, how results are ranked; nothing is compiled here."""

import dataclasses
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from vdit.config import load_config
from vdit.dist.mesh import MeshConfig
from vdit.errors import ConfigError
from vdit.plan import search as searching
from vdit.plan.plan import Plan, ProgramPlan
from vdit.plan.search import Candidate, candidates, meshes, search, spread
from vdit.plan.show import left_out, print_search, rows, save_search
from vdit.plan.topology import parse_topology

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGY = parse_topology("v5p:4x4x4")


@pytest.fixture(scope="module")
def pod():
    return load_config(ROOT / "experiments" / "t2v_3b_pod.py")


@pytest.fixture(scope="module")
def found(pod):
    return candidates(pod, TOPOLOGY)


def test_meshes_are_all_the_ways_to_multiply():
    assert len(meshes(8)) == len(set(meshes(8))) == 20  # compositions of 3 twos over 4 axes
    assert all(math.prod(sizes) == 12 for sizes in meshes(12))


def test_candidates_divide_what_they_share_out(pod, found):
    for one in found:
        mesh, pieces = one.mesh, one.accumulation
        assert math.prod((mesh.data, mesh.fsdp, mesh.sequence, mesh.tensor)) == 64
        assert pod.dit_train.batch_size % (mesh.data * mesh.fsdp * pieces) == 0
        assert pod.data.row_tokens % mesh.sequence == 0
        assert pod.backbone.heads % mesh.tensor == 0
        assert one.of(pod).backbone.remat == one.remat
    shipped = {(one.mesh, one.remat, one.accumulation) for one in found if one.reason is None}
    assert (pod.mesh, pod.backbone.remat, pod.dit_train.accumulation) in shipped


def test_what_cannot_fit_is_ruled_out_with_the_reason(found):
    alone = {"remat": "none", "accumulation": 1, "mesh": MeshConfig(data=32, fsdp=1, sequence=2)}
    whole = [one for one in found if all(getattr(one, key) == value for key, value in alone.items())]
    assert whole
    assert all("GiB a device" in one.reason for one in whole)
    known = [one.reason for one in found]
    assert known.index(next(filter(None, known))) == known.count(None)  # the hopeful ones come first


def test_the_state_is_counted_as_the_table_shares_it_out(found):
    sizes = {one.mesh: one.bytes for one in found if one.remat == "full" and one.accumulation == 1}
    few, many = sizes[MeshConfig(data=1, fsdp=2, sequence=32)], sizes[MeshConfig(data=1, fsdp=16, sequence=4)]
    assert few > many  # the same tokens a device, eight times the state


def test_the_limit_is_spread_over_meshes(found):
    hopeful = [one for one in found if one.reason is None]
    chosen = spread(hopeful, 8)
    assert len(chosen) == 8
    assert chosen[0] == hopeful[0]
    assert max(sum(other.mesh == one.mesh for other in chosen) for one in chosen) <= 2
    assert spread(hopeful[:1], 8) == hopeful[:1]


def told(one: Candidate, seconds: float | None, total: float) -> Plan:
    times = None
    if seconds is not None:
        times = {"arithmetic": seconds / 2, "hbm": seconds / 4, "network": seconds / 2, "serial": seconds,
                 "overlapped": seconds / 2}  # fmt: skip
    program = ProgramPlan(name="train", fits=seconds is not None and total < 90e9, memory={}, total=total,
                          capacity=90e9, flops=4.0, model_flops=3.0, tokens=1, video_seconds=1.0, times=times,
                          notes=() if seconds else ("RESOURCE_EXHAUSTED",))  # fmt: skip
    return Plan(experiment="e", topology=TOPOLOGY.name, chips=64, devices=64, mesh={}, programs=(program,))


def test_trials_are_ranked_by_time_among_those_that_fit(pod, found, monkeypatch, tmp_path):
    hopeful = [one for one in found if one.reason is None]
    answers = iter([(3.0, 50e9), (2.0, 95e9), (1.0, 60e9), (None, 99e9)])
    tried = []

    def plan(experiment, topology, **options):
        assert options == {"programs": ("train",), "effort": "quick"}
        tried.append(experiment.mesh)
        return told(None, *next(answers))

    monkeypatch.setattr(searching, "plan", plan)
    events = []
    result = search(pod, TOPOLOGY, limit=4, progress=events.append)
    assert tried[0] == pod.mesh  # what is shipped is measured first
    rest = [one for one in hopeful if (one.mesh, one.remat, one.accumulation) != (pod.mesh, pod.backbone.remat, 1)]
    assert tried[1:] == [one.mesh for one in spread(rest, 3)]
    assert [trial.fits for trial in result.trials] == [True, True, False, False]
    assert (result.best.seconds, result.trials[1].seconds) == (1.0, 3.0)
    assert len(events) == 8
    assert len(result.left) == len(hopeful) - 4
    assert "does not fit" in rows(result)[2][-1] + rows(result)[3][-1]
    assert any("ruled out" in line for line in left_out(result))
    console = Console(width=160, file=io.StringIO())
    print_search(result, console)
    assert f"--cfg.mesh.fsdp={result.best.candidate.mesh.fsdp}" in console.file.getvalue()
    assert "layouts" in save_search(result, tmp_path).read_text()


def test_what_can_never_fit_is_said(pod):
    huge = dataclasses.replace(pod, backbone=dataclasses.replace(pod.backbone, depth=4000))
    with pytest.raises(ConfigError, match="comes near to fitting"):
        search(huge, parse_topology("v5e:2x2"), limit=1)
    with pytest.raises(ConfigError, match="simulated devices"):
        search(pod, parse_topology("cpu:8"))
