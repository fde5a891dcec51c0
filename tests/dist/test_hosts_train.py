"""Real processes run `vdit train` together: the same bits on any number of them, and a good end to any end."""

import shutil
import signal

import jax
import numpy as np
import pytest

from tests.dist.job import LONG, Job, last_line, losses, make_run, saved_steps
from vdit.checkpoint import load_params
from vdit.train.logging import read_json_lines

STEPS = 8
# The steps to train to, the processes that do it, and the devices of each: always one mesh of 4 devices.
CHAIN = ((2, 2, 2), (4, 4, 1), (8, 1, 4))


def train(folder, cache, steps, processes, devices, *arguments):
    with Job(folder, cache, processes, devices, f"--cfg.dit_train.steps={steps}", *arguments) as job:
        job.done()


def arrays(folder, step):
    trees = {ema: load_params(folder / "dit", step=step, ema=ema) for ema in (False, True)}
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(trees)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, compile_cache):
    """Runs of 8 steps: "straight" by one process, "chain" as CHAIN says, "other" on another mesh; "stopped" has 4."""
    base = tmp_path_factory.mktemp("hosts")
    fresh = make_run(base / "fresh")
    folders = {}
    for name in ("straight", "chain", "other", "stopped"):
        folders[name] = shutil.copytree(fresh, base / name)
        shutil.copy(fresh.with_suffix(".py"), folders[name].with_suffix(".py"))
    train(folders["straight"], compile_cache, STEPS, 1, 4)
    for steps, processes, devices in CHAIN:
        train(folders["chain"], compile_cache, steps, processes, devices)
        if steps == 4:
            shutil.copytree(folders["chain"], folders["other"], dirs_exist_ok=True)
            shutil.copytree(folders["chain"], folders["stopped"], dirs_exist_ok=True)
    # not told of others: XLA adds up within the process, in another order than between processes
    train(folders["other"], compile_cache, STEPS, 0, 4, "--cfg.mesh.fsdp=1")
    return folders


def test_resumed_on_other_numbers_of_hosts_a_run_has_the_same_bits(runs):
    assert len(losses(runs["straight"])) == STEPS
    assert losses(runs["chain"]) == losses(runs["straight"])
    chain, straight = arrays(runs["chain"], STEPS), arrays(runs["straight"], STEPS)
    assert list(chain) == list(straight)
    for name, value in straight.items():
        np.testing.assert_array_equal(chain[name], value, err_msg=name)


def test_on_another_mesh_it_has_the_same_numbers(runs):
    ours, theirs = losses(runs["other"]), losses(runs["straight"])
    assert {step: ours[step] for step in range(1, 5)} == {step: theirs[step] for step in range(1, 5)}, "before"
    np.testing.assert_allclose([ours[s] for s in range(5, 9)], [theirs[s] for s in range(5, 9)], rtol=1e-6)
    other, straight = (arrays(runs[name], STEPS) for name in ("other", "straight"))
    for name, value in straight.items():
        np.testing.assert_allclose(other[name], value, atol=1e-6, err_msg=name)


def test_a_line_of_metrics_says_where_the_time_went(runs):
    lines = read_json_lines(runs["straight"] / "logs" / "dit.jsonl")
    shares = [{key: value for key, value in line.items() if key.startswith("time/")} for line in lines[1:]]
    for share in shares:
        assert set(share) == {"time/input", "time/compute", "time/checkpoint", "time/sample", "time/other"}
        assert sum(share.values()) == pytest.approx(1.0)
    after_saves = [share["time/checkpoint"] for line, share in zip(lines[1:], shares) if line["step"] % 2]
    assert min(after_saves) > 0, "steps 2, 4 and 6 were saved before steps 3, 5 and 7"


def test_every_host_has_a_log_and_the_first_a_summary(runs):
    logs = {file.name: file.read_text() for file in (runs["chain"] / "logs" / "hosts").iterdir()}
    assert sorted(logs) == [f"host_{i}.log" for i in range(4)]
    assert "as host 3 of 4; mesh data=2 fsdp=2" in logs["host_3.log"]
    assert "data share 3 of 4" in logs["host_3.log"]
    assert all("ended: done" in log for log in logs.values())
    assert "hosts: a step takes" in logs["host_0.log"]
    assert "hosts: a step takes" not in logs["host_1.log"]


def test_sigterm_on_one_host_stops_all_at_one_step(runs, compile_cache):
    folder, straight = runs["stopped"], losses(runs["straight"])
    options = (f"--cfg.dit_train.steps={LONG}", f"--cfg.dit_train.save_every={LONG}")
    with Job(folder, compile_cache, 2, 2, *options) as job:
        job.reach(6)
        job.signal(1, signal.SIGTERM)
        ended = job.end()
    assert {code for code, _ in ended.values()} == {75}, ended
    for _, errors in ended.values():
        assert "stopped by SIGTERM; the same command goes on" in last_line(errors)
    *before, saved = saved_steps(folder)
    assert before == [2, 4], "saved once"
    assert sorted(losses(folder)) == list(range(1, saved + 1)), "at the last step of both"
    both = range(1, min(saved, STEPS) + 1)
    assert [losses(folder)[step] for step in both] == [straight[step] for step in both], "on 4 hosts, then 2"
