"""The first contact with a GPU loses nothing: what fails, dies, hangs or is killed leaves all else measured."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "bench" / "accelerator.py"
FAKE = Path(__file__).with_name("fake_stage.py")
EMPTY = "nothing-carried"


def command(out, *arguments):
    return [sys.executable, str(SCRIPT), "--out", str(out), "--carried", str(out / EMPTY), *map(str, arguments)]


def run(out, *arguments, timeout=120):
    return subprocess.run(command(out, *arguments), capture_output=True, text=True, timeout=timeout, check=False)


def fake(out, **stages):
    """A file of stages: name -> (seconds, measurements)."""
    until = str(time.time() + 1000)
    rows = [
        {"name": name, "seconds": seconds,
         "command": [sys.executable, str(FAKE), str(out), name, until, str(out / "counts"), *measurements]}
        for name, (seconds, measurements) in stages.items()
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    file = out / "stages.json"
    file.write_text(json.dumps(rows))
    return file


def found(out):
    return json.loads((out / "accelerator.json").read_text())["stages"]


def statuses(out, stage):
    return {name: probe["status"] for name, probe in found(out)[stage]["probes"].items()}


def test_a_failure_of_each_kind_leaves_all_else_measured(tmp_path):
    first = ["good", "raises", "out-of-memory", "poisons", "dies", "exits", "last"]
    stages = fake(tmp_path, first=(60, first), second=(3, ["good", "hangs", "last"]), third=(60, ["good"]))
    done = run(tmp_path, "--stages", stages)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path, "first") == {
        "good": "ok", "raises": "failed", "out-of-memory": "failed", "poisons": "failed", "dies": "cut off",
        "exits": "cut off", "last": "ok",
    }  # fmt: skip
    probes = found(tmp_path)["first"]["probes"]
    assert "ValueError: kernel: shared memory exceeded" in probes["raises"]["traceback"]
    assert "in measure" in probes["raises"]["traceback"]
    assert probes["out-of-memory"]["why"] == "out of memory"
    assert "Check failed: stream != nullptr" in probes["dies"]["traceback"]
    assert "SIGABRT" in probes["dies"]["why"]
    assert statuses(tmp_path, "second") == {"good": "ok", "hangs": "cut off"}
    assert found(tmp_path)["second"]["status"] == "limit reached"
    assert statuses(tmp_path, "third") == {"good": "ok"}
    count = Counter((tmp_path / "counts").read_text().split())
    assert {name: count[name] for name in first[1:6]} == dict.fromkeys(first[1:6], 1)  # a restart tries nothing twice


def test_a_run_that_was_killed_goes_on_with_what_is_missing(tmp_path):
    stages = fake(tmp_path, first=(60, ["good"]), second=(60, ["hangs", "last"]), third=(60, ["later"]))
    process = subprocess.Popen(command(tmp_path, "--stages", stages), stdout=subprocess.DEVNULL)
    deadline = time.time() + 60
    while time.time() < deadline and not (
        (tmp_path / "counts").exists() and "hangs" in (tmp_path / "counts").read_text()
    ):
        time.sleep(0.1)
    child = child_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    os.kill(child, signal.SIGKILL)
    assert statuses(tmp_path, "first") == {"good": "ok"}
    assert "third" not in found(tmp_path)

    stages = fake(tmp_path, first=(60, ["good"]), second=(4, ["hangs", "last"]), third=(60, ["later"]))
    done = run(tmp_path, "--stages", stages)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path, "second") == {"hangs": "cut off", "last": "ok"}
    assert statuses(tmp_path, "third") == {"later": "ok"}
    count = Counter((tmp_path / "counts").read_text().split())
    assert count == {"good": 1, "hangs": 2, "last": 1, "later": 1}  # what never ran before what did not end


def child_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def test_a_stage_that_cannot_start_says_why(tmp_path):
    file = fake(tmp_path, first=(60, ["good"]))
    broken = [{"name": "broken", "seconds": 30, "command": [sys.executable, "-c", "raise ImportError('no libcuda')"]}]
    file.write_text(json.dumps(broken + json.loads(file.read_text())))
    run(tmp_path, "--stages", file)
    assert "no libcuda" in found(tmp_path)["broken"]["failure"]
    assert statuses(tmp_path, "first") == {"good": "ok"}


def test_a_stage_without_time_is_not_begun(tmp_path):
    done = run(tmp_path, "--stages", fake(tmp_path, first=(60, ["good"])), "--minutes", 0.01)
    assert done.returncode == 0
    assert found(tmp_path)["first"]["status"] == "no time"


def test_real_and_dry_results_are_kept_apart(tmp_path):
    stages = fake(tmp_path, first=(60, ["good"]))
    run(tmp_path, "--stages", stages)
    done = run(tmp_path, "--stages", stages, "--dry")
    assert done.returncode != 0
    assert "accelerator.json" in done.stderr


@pytest.mark.parametrize(("megabytes", "code"), [(1, 0), (64, 1)])
def test_what_travels_is_weighed(tmp_path, megabytes, code):
    carried = tmp_path / EMPTY / "wheels"
    carried.mkdir(parents=True)
    with (carried / "large.whl").open("wb") as file:
        file.truncate(megabytes * 10**6)
    done = run(tmp_path, "--check-size")
    assert done.returncode == code, done.stdout + done.stderr
    assert f"{megabytes:.2f} MB" in done.stdout


def test_wheels_are_pinned(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from accel import carry

    pinned = carry.pins((ROOT / "constraints.txt").read_text())
    assert set(carry.WHEELS) <= set(pinned)
    assert carry.pins("a==1 ; python_full_version < '3.12'\na==2 ; python_full_version >= '3.12'\n") == {"a": "2"}


def test_dry_run_in_short(tmp_path):
    """The beginning of the first stage and the page, as a user starts them."""
    done = run(tmp_path, "--dry", "--only", "kernels", "page", "--first", 2, timeout=120)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path, "kernels") == {"device": "ok", "matmul-bf16": "ok"}
    assert statuses(tmp_path, "page") == {"roofline": "ok", "page": "ok"}
    assert "DRY RUN" in (tmp_path / "accelerator.html").read_text()


@pytest.mark.slow
def test_dry_run_of_every_stage(tmp_path):
    prepared = run(tmp_path, "--dry", "--carry", timeout=300)
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    done = run(tmp_path, "--dry", "--minutes", 12, timeout=800)
    assert done.returncode == 0, done.stderr
    stages = found(tmp_path)
    assert set(stages) == {"kernels", "training", "peers", "tests", "model", "page"}
    wrong = {f"{stage}: {name}": probe.get("traceback", probe["status"]) for stage, values in stages.items()
             for name, probe in values["probes"].items() if probe["status"] != "ok"}  # fmt: skip
    assert not wrong
    files = [file for file in tmp_path.iterdir() if file.is_file()]
    assert len(files) <= 8
    assert max(file.stat().st_size for file in files) < 16 * 10**6
    assert {"accelerator.json", "accelerator.html", "roofline.png", "samples.png", "model.tar.0"} <= {
        file.name for file in files
    }
