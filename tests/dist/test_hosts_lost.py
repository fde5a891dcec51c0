"""However a host ends, the others end soon after it, with a line that names it and an exit code for the launcher."""

import os
import signal
import subprocess
import sys

import pytest

from tests.dist.job import ROOT, free_port, last_line

HEARTBEAT = 2
JOBS = (("killed", 0), ("stands", 1), ("mend", 1), ("fault", 0), ("sigterm", 2), ("starting", 0), ("last", 1))


@pytest.fixture(scope="module")
def endings():
    """(how, who) -> host -> (exit code, stderr), of jobs of three that run side by side."""
    jobs = {}
    for how, who in JOBS:
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        env |= {"VDIT_COORDINATOR": f"127.0.0.1:{free_port()}", "VDIT_PROCESSES": "3", "VDIT_HEARTBEAT": str(HEARTBEAT)}
        command = [sys.executable, str(ROOT / "tests/dist/hosts_lost.py"), how, str(who)]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        jobs[how, who] = [subprocess.Popen(command, env=env | {"VDIT_PROCESS_ID": str(i)}, **pipes) for i in range(3)]
    endings = {}
    try:
        for (how, who), hosts in jobs.items():
            others = [i for i in range(3) if i != who or how != "stands"]
            told = {i: hosts[i].communicate(timeout=60)[1] for i in others}
            endings[how, who] = {i: (errors, hosts[i].returncode) for i, errors in told.items()}
    finally:
        for host in (host for hosts in jobs.values() for host in hosts):
            host.kill()
            host.communicate()
    return endings


def others(ending, who):
    return [(last_line(errors), code) for host, (errors, code) in ending.items() if host != who]


def test_a_machine_that_vanishes_is_missed(endings):
    for line, code in others(endings["stands", 1], 1):
        assert code == 75
        assert line.startswith("vdit: host 1 (")
        assert f"was lost (no heartbeat for {HEARTBEAT} s) at step" in line
        assert line.endswith("(counting): start the same command again; it goes on from step 7")


def test_the_first_host_is_named_though_it_held_the_service(endings):
    assert endings["killed", 0][0][1] == -signal.SIGKILL
    for line, code in others(endings["killed", 0], 0):
        assert code == 75
        assert "host 0, which holds the coordination service, was lost" in line
        assert line.endswith("it goes on from step 7")


def test_an_error_that_must_be_mended_ends_all_with_its_words(endings):
    errors, code = endings["mend", 1][1]
    assert (last_line(errors), code) == ("vdit: clip 7 is broken: remove it", 2)
    for line, code in others(endings["mend", 1], 1):
        assert code == 2, "a launcher must not start it again"
        assert "ended with an error: clip 7 is broken: remove it (fix that first)" in line


def test_a_fault_shows_its_traceback_where_it_was_and_its_name_elsewhere(endings):
    errors, code = endings["fault", 0][0]
    assert code == 1
    assert 'raise ZeroDivisionError("by me")' in errors
    for line, code in others(endings["fault", 0], 0):
        assert code == 1
        assert "host 0 (" in line
        assert "ended with an error: ZeroDivisionError: by me (see its log)" in line


@pytest.mark.parametrize(("how", "who"), [("sigterm", 2), ("starting", 0)])
def test_sigterm_where_nothing_is_to_be_saved_ends_all_at_once(endings, how, who):
    errors, code = endings[how, who][who]
    assert code == 75
    assert "stopped by SIGTERM" in last_line(errors)
    for line, code in others(endings[how, who], who):
        assert code == 75
        assert f"host {who} (" in line
        assert "stopped by SIGTERM" in line


def test_sigterm_when_all_is_done_does_not_keep_the_others_waiting(endings):
    assert [code for _, code in endings["last", 1].values()] == [0, 0, 0]
