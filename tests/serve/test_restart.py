"""What was accepted ends, whatever ends the server; what is finished is there, until it expires."""

import sqlite3
import time

import pytest

pytest.importorskip("fastapi")

from tests.serve.serving import make_service, quick
from vdit.errors import ConfigError
from vdit.serve.queue import FairQueue, Waiting
from vdit.serve.schema import VideoRequest
from vdit.serve.service import MOST_STARTS

ASKED = {"client": "one"}


def until(service, id, *, status, timeout=30.0):
    end = time.monotonic() + timeout
    while service.job(id).status not in status:
        assert time.monotonic() < end, service.job(id)
        time.sleep(0.01)
    return service.job(id)


def test_jobs_go_on_where_a_server_ended(tmp_path):
    first = make_service(tmp_path, quick(pause=0.05))
    [done] = first.submit(VideoRequest(num_inference_steps=1), **ASKED)
    until(first, done.id, status=["completed"])
    [half] = first.submit(VideoRequest(num_inference_steps=100), **ASKED)
    [waits] = first.submit(VideoRequest(num_frames=9), **ASKED)
    until(first, half.id, status=["in_progress"])
    first.close()
    second = make_service(tmp_path)
    try:
        for id in (done.id, half.id, waits.id):
            job = until(second, id, status=["completed"])
            assert second.given(id).path.is_file()
        assert job.seed == waits.seed
        assert second.job(half.id).starts == 2
    finally:
        second.close()


def test_a_job_that_ends_the_server_every_time_is_given_up(tmp_path):
    service = make_service(tmp_path, quick(pause=0.05))
    [job] = service.submit(VideoRequest(num_inference_steps=100), **ASKED)
    until(service, job.id, status=["in_progress"])
    service.close()
    base = sqlite3.connect(tmp_path / "jobs.sqlite")
    body = base.execute("select body from jobs").fetchone()[0].replace('"starts": 1', f'"starts": {MOST_STARTS}')
    with base:
        base.execute("update jobs set body = ?", (body,))
    base.close()
    service = make_service(tmp_path)
    try:
        assert service.job(job.id).status == "failed"
        assert "times" in service.job(job.id).error["message"]
    finally:
        service.close()


def test_two_servers_do_not_share_a_folder(tmp_path):
    service = make_service(tmp_path)
    try:
        with pytest.raises(ConfigError, match="--data"):
            make_service(tmp_path)
    finally:
        service.close()


def test_results_expire_and_leave_no_file(tmp_path):
    service = make_service(tmp_path, keep_seconds=1000.0)
    try:
        [job] = service.submit(VideoRequest(num_inference_steps=1), **ASKED)
        until(service, job.id, status=["completed"])
        assert service.store.expire(time.time() + 900) == []
        assert service.store.expire(time.time() + 1100) == [job.id]
        assert service.job(job.id) is None
        assert list(service.store.results.iterdir()) == []
    finally:
        service.close()


def test_a_failed_job_says_why_and_the_next_one_is_made(tmp_path):
    service = make_service(tmp_path)
    try:
        broken = quick()
        service.generator = broken
        object.__setattr__(broken, "vae", None)
        [job] = service.submit(VideoRequest(task="rollout", num_frames=40), **ASKED)
        job = until(service, job.id, status=["failed"])
        assert job.error["type"] == "server_error"
        assert "NoneType" not in job.error["message"]  # the inside is for the log
        service.generator = quick()
        [job] = service.submit(VideoRequest(), **ASKED)
        until(service, job.id, status=["completed"])
    finally:
        service.close()


def waiting(id, client="a", address="x", **more):
    return Waiting(**{"id": id, "client": client, "address": address, "priority": 0, "work": 1.0, **more})


def order(queue):
    taken = []
    while one := queue.take(lambda first: 1):
        taken += [w.id for w in one]
    return taken


def test_clients_take_turns_and_priority_is_among_ones_own():
    queue = FairQueue()
    for k in range(3):
        queue.put([waiting(f"a{k}", "a")])
    queue.put([waiting("a9", "a", priority=5)])
    for k in range(2):
        queue.put([waiting(f"b{k}", "b", priority=-10)])
    assert order(queue) == ["a9", "b0", "a0", "b1", "a1", "a2"]


def test_turns_are_by_work_and_by_address():
    queue = FairQueue()
    for k in range(4):
        queue.put([waiting(f"big{k}", "a", work=10.0)])
        queue.put([waiting(f"small{k}", "b", address="y", work=5.0)])
    assert order(queue)[:4] == ["big0", "small0", "small1", "big1"]
    queue = FairQueue()  # many names at one address share its turn
    for k in range(6):
        queue.put([waiting(f"m{k}", f"name{k}", address="x")])
    queue.put([waiting("other", "c", address="y")])
    assert order(queue).index("other") == 1


def test_jobs_of_one_key_go_together():
    queue = FairQueue()
    for id, key in [("1", "k"), ("2", None), ("3", "k"), ("4", "other"), ("5", "k")]:
        queue.put([waiting(id, id, key=key)])
    assert [w.id for w in queue.take(lambda first: 2)] == ["1", "3"]
    assert [w.id for w in queue.take(lambda first: 8)] == ["2"]
    assert not queue.remove("1")
    assert queue.remove("4")
    assert [w.id for w in queue.take(lambda first: 8)] == ["5"]
    assert queue.take(lambda first: 8) == []
