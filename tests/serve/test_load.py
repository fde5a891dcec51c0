"""Many clients at once, and a server that is killed in the middle: nothing that was accepted is lost.

The generator makes noise; tools/bench/serve.py does the same with a model.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from tests import tiny
from tests.serve.serving import Client, make_service, quick, serving

ENDED = ("completed", "failed", "cancelled")
H, W = tiny.SIZE
ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((9, f"{W}x{H}"), (13, f"{W}x{H}"), (9, f"{W + 8}x{H}"), (1, "8x8"))


def memory() -> int:
    """MiB that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.mark.slow
def test_200_jobs_of_20_clients_all_end(tmp_path):
    """Mixed sizes, a tenth of them cancelled; memory stays flat."""
    generator = quick(pause=0.02)
    service = make_service(tmp_path, generator, waiting=300)
    states, took, sizes, lock = {}, [], [], threading.Lock()

    def work(client: Client, seed: int) -> None:
        rng, mine = random.Random(seed), {}
        for _ in range(10):
            frames, size = rng.choice(SHAPES)
            answer = client.post("/v1/videos", {"num_frames": frames, "size": size, "num_inference_steps": 4})
            assert answer.status == 200, answer
            mine[answer.json["id"]] = time.monotonic()
            if rng.random() < 0.1:
                client.post(f"/v1/videos/{answer.json['id']}/cancel")
        for id, began in mine.items():
            job = client.ended(id, 600)
            with lock:
                states[id] = job["status"]
                took.append(time.monotonic() - began)
                sizes.append(memory())

    with serving(service) as client:
        began = time.monotonic()
        threads = [threading.Thread(target=work, args=(Client(client.port, f"c{k}"), k)) for k in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.monotonic() - began
    counts = Counter(states.values())
    assert len(states) == 200
    assert set(counts) <= {"completed", "cancelled"}
    assert counts["completed"] >= 170
    assert max(sizes[-60:]) < max(sizes[:60]) + 64
    calls = len(generator.packed) + sum(count > 1 for _, count in generator.asked)
    took.sort()
    print(f"200 jobs, {dict(counts)}, {wall:.1f} s, {calls} calls of several; latency p50 {took[100]:.1f} p95 "
          f"{took[190]:.1f} s; memory {sizes[0]} to {sizes[-1]} MiB")  # fmt: skip


@pytest.mark.slow
def test_what_was_accepted_outlives_a_kill(tmp_path):
    """SIGKILL three times in the middle of the load; every accepted job ends, and every result is whole."""
    ids: list[str] = []
    for turn in range(4):
        command = [sys.executable, "-m", "tests.serve.load_server", str(tmp_path / "data")]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as server:
            try:
                client = Client(int(server.stdout.readline()))
                while client.port:
                    try:
                        client.get("/health")
                        break
                    except ConnectionError:
                        time.sleep(0.1)
                if turn == 3:
                    jobs = [client.ended(id, 600) for id in ids]
                    assert {job["status"] for job in jobs} == {"completed"}
                    for id in ids:
                        assert client.get(f"/v1/videos/{id}/content").status == 200
                    assert list((tmp_path / "data" / "partial").iterdir()) == []
                    break
                for k in range(30):
                    frames, size = SHAPES[k % len(SHAPES)]
                    ids.append(client.post("/v1/videos", {"num_frames": frames, "size": size}).json["id"])
                while sum(client.get(f"/v1/videos/{id}").json["status"] in ENDED for id in ids) < 12 * (turn + 1):
                    time.sleep(0.05)
            finally:
                server.kill()
