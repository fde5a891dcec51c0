"""A save that fails leaves nothing, loses nothing, and stops nothing, until it is the last or one too many."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.checkpoint import (
    MANIFEST,
    Checkpointer,
    StreamedLeaf,
    files,
    hosts,
    load_params,
    save_streamed,
    stream,
)
from vdit.checkpoint import (
    checkpointer as checkpointer_module,
)
from vdit.errors import CheckpointError, HostsError

ROOT = Path(__file__).resolve().parents[2]


def fails_with(error):
    def fail(*_):
        raise error

    return fail


TREE = {"params": {"w": jnp.ones(4)}}


@pytest.fixture(scope="module", params=[100_000, 300], ids=["arrays do not fit", "nothing fits"])
def full(request, tmp_path_factory):
    """(what full_disk.py said, its log): files may not grow past so many bytes in some of its saves."""
    directory = tmp_path_factory.mktemp("run")
    command = [sys.executable, str(ROOT / "tests/checkpoint/full_disk.py"), str(directory), str(request.param)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_full_disk_is_told_in_one_line_and_the_next_save_tries_again(full):
    answer, log = full
    assert [line.partition(": not saved")[0].rpartition("/")[2] for line in answer["said"]] == ["3", "5", "6", "7"]
    for line in answer["said"]:
        assert "\n" not in line
        assert "a file may not grow that large here (about 195 KiB are needed, " in line
        assert line.endswith("raise the limit (ulimit -f); training goes on, the next save tries again")
    assert "Traceback" not in log


def test_a_full_disk_costs_no_older_step_and_leaves_no_remains(full):
    there = full[0]["there"]
    assert there == {"1": ["1"], "2": ["1", "2"], "3": ["1", "2"], "4": ["2", "4"]} | {key: ["2", "4"] for key in "567"}


def test_three_failures_in_a_row_and_that_of_the_last_save_end_a_run(full):
    answer = full[0]
    in_a_row, last = answer["raised"]
    assert in_a_row.startswith("3 saves in a row have failed: ")
    assert "/7: not saved: a file may not grow" in in_a_row
    assert "/10: not saved: a file may not grow" in last
    assert answer["end"] == ["4", "9"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_when_the_sums_are_written_counts_as_a_failed_save(tmp_path, monkeypatch, number):
    heard = []
    with Checkpointer(tmp_path, keep=1, warn=heard.append) as checkpointer:
        checkpointer.save(1, TREE)
        checkpointer.wait()
        monkeypatch.setattr(checkpointer_module, "write_manifest", fails_with(OSError(number, "no")))
        checkpointer.save(2, TREE)
        checkpointer._settle()
        assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
        monkeypatch.undo()
        checkpointer.save(3, TREE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["3"]
    assert len(heard) == 1
    words = {errno.ENOSPC: "the disk is full (about 16 bytes are needed, ", errno.EDQUOT: "the quota is used up ("}
    assert words[number] in heard[0]


def test_an_old_step_goes_only_after_the_new_one_is_sealed(tmp_path, monkeypatch):
    seen = []

    def remove(folder):
        names = sorted(entry.name for entry in tmp_path.iterdir())
        seen.append((folder.name, names, (tmp_path / names[-1] / MANIFEST).exists()))
        files.remove_step(folder)

    monkeypatch.setattr(checkpointer_module, "remove_step", remove)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3, 4):
            checkpointer.save(step, TREE)
    assert seen == [("1", ["1", "2", "3"], True), ("2", ["2", "3", "4"], True)]


def test_a_step_that_is_deleted_is_none_before_its_first_file_goes(tmp_path, monkeypatch):
    real = files.shutil.rmtree

    def die(folder, **how):
        if not folder.name.startswith("1") or how:
            return real(folder, **how)
        assert [entry.name for entry in tmp_path.iterdir() if entry.name.isdigit()] == ["2"]
        raise OSError("killed")

    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, TREE)
        checkpointer.wait()
        monkeypatch.setattr(files.shutil, "rmtree", die)
        checkpointer.save(2, TREE)
        checkpointer.wait()
        monkeypatch.undo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1.deleting", "2"]


def test_a_step_on_its_way_out_is_none_and_is_cleared(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, TREE)
    (tmp_path / "1").rename(tmp_path / "1.deleting")
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        load_params(tmp_path)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() is None
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_there_already_is_not_overwritten(tmp_path):
    with Checkpointer(tmp_path, warn=str) as checkpointer:
        checkpointer.save(1, TREE)
        checkpointer.wait()
        checkpointer.save(1, {"params": {"w": jnp.zeros(4)}})
        with pytest.raises(CheckpointError, match=r"1: not saved: .*already"):
            checkpointer.wait()
    np.testing.assert_array_equal(load_params(tmp_path)["w"], 1.0)


def test_an_import_that_finds_no_room_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "write_manifest", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no")))
    leaf = StreamedLeaf(shape=(4,), dtype=np.dtype(np.float32))
    with pytest.raises(CheckpointError, match="0: not saved: the disk is full"):
        save_streamed(tmp_path, {"params": {"w": leaf}}, {"params": lambda put: put("w", None, np.ones(4, np.float32))})
    assert list(tmp_path.iterdir()) == []


def fail_to_seal(*_):
    raise OSError(errno.ENOSPC, "no")


def save_and(then, directory):
    with Checkpointer(directory, warn=str) as checkpointer:
        checkpointer.save(1, TREE)
        then()


def interrupt():
    raise KeyboardInterrupt


def test_an_error_on_its_way_is_not_hidden_by_that_of_a_save(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointer_module, "write_manifest", fail_to_seal)
    with pytest.raises(KeyboardInterrupt):
        save_and(interrupt, tmp_path)
    with pytest.raises(CheckpointError, match="disk is full"):
        save_and(lambda: None, tmp_path)


def test_a_lost_host_is_no_failure_of_the_save(tmp_path, monkeypatch):
    """It is not for the user to mend: the run ends, to be started again."""

    def lose_host(*_):
        with hosts._asking("host 1"):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")

    heard = []
    checkpointer = Checkpointer(tmp_path, warn=heard.append)
    monkeypatch.setattr(hosts.Exchange, "agree", lose_host)
    checkpointer.save(1, TREE)
    with pytest.raises(HostsError, match="host 1 gave no answer"):
        checkpointer.close()
    assert heard == []
