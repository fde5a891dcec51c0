"""Checkpoints in buckets: what holds on a disk holds there, through Orbax for gs:// and by upload for s3://."""

import json
import os
import socket
import time

import pytest

from tests.checkpoint.runs import abstract, assert_same, trees
from tests.loopback import serve_buckets
from vdit import buckets, paths
from vdit.checkpoint import MANIFEST, Checkpointer, RunLock, hosts, load_meta, load_params
from vdit.errors import CheckpointError

NAME = "vdit-test"
server = pytest.fixture(scope="module")(serve_buckets)


@pytest.fixture(params=["gs", "s3"])
def run(request, server, tmp_path, monkeypatch):
    """The URL of an empty run's checkpoints."""
    monkeypatch.setenv("VDIT_FILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "_PAUSE", 0.01)
    server.reset()
    return f"{request.param}://{NAME}/run/dit"


def steps(server):
    return sorted({key.split("/")[2] for key in server.names_of(NAME, "run/dit/")})


def test_what_is_saved_is_restored(run, server):
    with Checkpointer(run, keep=2, meta={"stage": "dit"}) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, trees(step), iterator_state={"at": step})
    assert steps(server) == ["2", "3"]
    with Checkpointer(run) as checkpointer:
        assert checkpointer.latest_step() == 3
        assert_same(checkpointer.restore(abstract(trees()), step=2), trees(2))
    assert load_meta(run) == {"stage": "dit"}
    assert_same(load_params(run, ema=False), trees(3)["params"])


def test_the_checksums_come_last(run, server):
    with Checkpointer(run) as checkpointer:
        checkpointer.save(1, trees(), iterator_state=None)
    written = [key for method, key in server.asked if method == "PUT" and key.startswith("run/dit/1/")]
    assert written[-1] == f"run/dit/1/{MANIFEST}"


def test_a_step_that_was_cut_short_is_none_and_goes(run, server):
    with Checkpointer(run) as checkpointer:
        checkpointer.save(1, trees(), iterator_state=None)
    for key in server.names_of(NAME, "run/dit/1/"):  # as a kill in the middle of step 2 leaves it
        if not key.endswith((MANIFEST, "commit_success.txt")):
            server.put(NAME, key.replace("/1/", "/2/"), server.objects[NAME, key])
    with Checkpointer(run) as checkpointer:
        assert checkpointer.latest_step() == 1
    assert steps(server) == ["1"]


def test_a_flipped_bit_is_found_and_the_step_set_aside(run, server, capsys):
    with Checkpointer(run) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, trees(step), iterator_state=None)
    key = next(key for key in server.names_of(NAME, "run/dit/2/") if "/d/" in key)
    data = bytearray(server.objects[NAME, key])
    data[len(data) // 2] ^= 1
    server.put(NAME, key, bytes(data))
    with Checkpointer(run) as checkpointer:
        assert checkpointer.latest_step() == 1
    assert steps(server) == ["1", "2.damaged"]
    assert "step 2 is damaged" in capsys.readouterr().err


def test_a_right_that_is_taken_away_fails_a_save_and_not_the_run(run, server, capsys):
    with Checkpointer(run) as checkpointer:
        checkpointer.save(1, trees(1), iterator_state=None)
        checkpointer.latest_step()
        server.deny = lambda method, key: method in ("PUT", "POST") and "/2" in key
        checkpointer.save(2, trees(2), iterator_state=None)
        assert checkpointer.latest_step() == 1
        server.deny = lambda method, key: False
        checkpointer.save(3, trees(3), iterator_state=None)
    assert steps(server)[-1] == "3"
    assert capsys.readouterr().err.count("not saved") == 1


def test_a_connection_that_breaks_loses_nothing(run, server):
    with Checkpointer(run) as checkpointer:
        server.cut = 2
        checkpointer.save(1, trees(1), iterator_state=None)
    server.cut = 1
    assert_same(load_params(run, ema=False), trees(1)["params"])
    assert server.cut == 0


def test_a_missing_bucket_is_named_before_training(run):
    with pytest.raises((CheckpointError, OSError), match="no-such-bucket"):
        Checkpointer(run.replace(NAME, "no-such-bucket")).save(1, trees(), iterator_state=None)


def test_one_run_at_a_time(run, monkeypatch):
    monkeypatch.setattr(hosts, "LEASE", 0.4)
    with RunLock(run), pytest.raises(CheckpointError, match=f"pid {os.getpid()}"), RunLock(run):
        pass
    with RunLock(run):
        pass


@pytest.mark.parametrize("holder", ["dead", "elsewhere"])
def test_a_lock_of_a_run_that_ended_is_taken_over(run, monkeypatch, holder):
    monkeypatch.setattr(hosts, "LEASE", 0.3)
    host = socket.gethostname() if holder == "dead" else "another"
    pid = 2**22 - 1 if holder == "dead" else 1
    paths.write_atomic(f"{run}/run.lock", json.dumps({"host": host, "pid": pid, "started": "now", "token": "x"}))
    began = time.monotonic()
    with RunLock(run):
        assert (time.monotonic() - began > 0.3) == (holder == "elsewhere")
