"""The launchers: the one for one machine for real, the others as far as they can be read without a cluster."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dist.job import QUICK, ROOT, losses, make_run, saved_steps

LAUNCH = ROOT / "experiments" / "launch"


def load_local():
    spec = importlib.util.spec_from_file_location("launch_local", LAUNCH / "local.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def children(pid):
    """Process ids of the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_killed_process_is_noticed_and_all_start_again_and_finish(tmp_path, compile_cache):
    folder = make_run(tmp_path / "run")
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK, "VDIT_HEARTBEAT": "3",
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    steps = 40
    command = [sys.executable, str(LAUNCH / "local.py"), "--processes", "2", "--cpus-each", "2", "--restarts", "2"]
    command += ["--", sys.executable, "-m", "vdit.cli.main", "train", str(folder.with_suffix(".py"))]
    command += ["--workdir", str(folder), "--stage", "dit", "--no-tensorboard", f"--cfg.dit_train.steps={steps}"]
    launcher = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 180
        while not saved_steps(folder) and time.monotonic() < until and launcher.poll() is None:
            time.sleep(0.05)
        os.kill(children(launcher.pid)[1], signal.SIGKILL)
        _, errors = launcher.communicate(timeout=180)
    finally:
        for child in children(launcher.pid) if launcher.poll() is None else ():
            os.kill(child, signal.SIGKILL)
        launcher.kill()
        launcher.wait()
    assert launcher.returncode == 0, errors[-3000:]
    assert "[launch] process 1 ended: killed by SIGKILL" in errors
    assert re.search(r"\[0\] vdit: host 1 \(.*\) was lost .* it goes on from step \d+", errors)
    assert "[launch] process 0 ended: exit code 75 (start again)" in errors
    assert "[launch] starting again (1 of at most 2 times)" in errors
    assert sorted(losses(folder)) == list(range(1, steps + 1))
    assert max(saved_steps(folder)) == steps


@pytest.mark.parametrize(
    ("script", "code", "starts"),
    [
        ("import sys; sys.exit(0)", 0, 1),
        ("import sys; sys.exit(2)", 2, 1),
        ("import sys; sys.exit(75)", 75, 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, 3),
        ("import os, sys; sys.exit(2 if os.environ['VDIT_PROCESS_ID'] == '1' else 75)", 2, 1),
    ],
)
def test_what_is_started_again(tmp_path, script, code, starts):
    count = tmp_path / "starts"
    script = f"open({str(count)!r}, 'a').write('x'); {script}"
    command = [sys.executable, str(LAUNCH / "local.py"), "--processes", "2", "--restarts", "2"]
    command += ["--", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert len(count.read_text()) == 2 * starts


def stub(folder, name, script):
    """A program of a cluster's, in its place: notes how it was called, and does as the script says."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\necho {name} \"$@\" >> {folder}/calls\n{script}\n")
    path.chmod(0o755)


def start_script(tmp_path, script, *arguments, **variables):
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables}
    command = ["bash", str(LAUNCH / script), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done, (tmp_path / "bin" / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "restarts", "ends_with", "queued"),
    [(0, 0, 0, False), (75, 0, 0, True), (137, 0, 0, True), (2, 0, 2, False), (130, 0, 130, False), (75, 3, 75, False)],
)
def test_slurm_queues_again_what_is_to_go_on(tmp_path, code, restarts, ends_with, queued):
    stub(tmp_path / "bin", "srun", f"exit {code}")
    stub(tmp_path / "bin", "scontrol", "")
    variables = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts), "VDIT_RESTARTS": "3"}
    done, calls = start_script(tmp_path, "slurm.sbatch", "exp.py", "--workdir", "a b", **variables)
    assert done.returncode == ends_with, done.stderr
    assert calls[0] == "srun --kill-on-bad-exit=0 --wait=180 vdit train exp.py --workdir a b"
    assert calls[1:] == (["scontrol requeue 17"] if queued else [])


@pytest.mark.parametrize("at_once", [False, True])
def test_slurm_hands_sigterm_on_and_waits_for_the_save(tmp_path, at_once):
    asks = "kill -TERM $PPID; " if at_once else ""
    # bash is held up before the script knows of srun, so that the signal comes first.
    (tmp_path / "held_up.sh").write_text("trap '[[ $BASH_COMMAND != \"step=\\$!\" ]] || sleep 1' DEBUG\n")
    saves = f"trap 'sleep 0.5; echo saved; exit 75' TERM; echo up; {asks}while true; do sleep 0.1; done"
    stub(tmp_path / "bin", "srun", saves)
    stub(tmp_path / "bin", "scontrol", "")
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    env |= {"BASH_ENV": str(tmp_path / "held_up.sh")} if at_once else {}
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "exp.py"]
    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "up\n"
    if not at_once:
        job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == 0
    assert out.splitlines()[0] == "saved"
    assert "exit code 75" in out
    assert (tmp_path / "bin" / "calls").read_text().splitlines()[-1] == "scontrol requeue 17"


GCLOUD = """
case "$*" in
*describe*) echo ACTIVE ;;
*ssh*vdit*train*) echo "vdit-exit-code $(head -1 CODES)"; echo "vdit-exit-code $(head -1 CODES)"; sed -i 1d CODES ;;
esac
"""


@pytest.mark.parametrize(
    ("codes", "ends_with", "starts"), [("0", 0, 1), ("75 0", 0, 2), ("75 2", 2, 2), ("75 75", 75, 2)]
)
def test_queued_resources_start_again_what_is_to_go_on(tmp_path, codes, ends_with, starts):
    stub(tmp_path / "bin", "gcloud", GCLOUD.replace("CODES", str(tmp_path / "codes")))
    stub(tmp_path / "bin", "sleep", "")
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    variables = {"NAME": "xl", "ZONE": "z", "PROJECT": "p", "RESTARTS": "1"}
    done, calls = start_script(tmp_path, "queued_resources.sh", "train", "exp.py", "--workdir", "a b", **variables)
    assert done.returncode == ends_with, done.stderr
    runs = [call for call in calls if "ssh" in call]
    assert len(runs) == starts
    assert "vdit train exp.py --workdir a\\ b; echo vdit-exit-code" in runs[0]
    assert "--node=all --worker=all" in runs[0]
    assert "VDIT_CLUSTER=1" in runs[0]


def test_a_queued_resource_is_asked_for_with_what_it_needs(tmp_path):
    made = tmp_path / "made"
    answers = f"*describe*) [[ -e {made} ]] && echo ACTIVE || exit 1 ;; *create*) touch {made} ;;"
    stub(tmp_path / "bin", "gcloud", f'case "$*" in {answers} esac')
    variables = {"NAME": "xl", "ZONE": "z", "PROJECT": "p", "TYPE": "v5p-128", "VERSION": "v"}
    variables |= {"SPOT": "1", "NODES": "2"}
    done, calls = start_script(tmp_path, "queued_resources.sh", "up", **variables)
    assert done.returncode == 0, done.stderr
    (create,) = [call for call in calls if "create" in call]
    assert create == (
        "gcloud compute tpus queued-resources create xl --zone=z --project=p --accelerator-type=v5p-128 "
        "--runtime-version=v --node-count=2 --node-prefix=xl --spot --async --quiet"
    )


def test_xpk_restarts_on_the_code_that_says_so(tmp_path):
    stub(tmp_path / "bin", "xpk", "")
    variables = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "IMAGE": "i"}
    arguments = ("xl", "v5p-128", "2", "exp.py", "--workdir", "/mnt/xl")
    done, calls = start_script(tmp_path, "gke/xpk.sh", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    assert "--tpu-type v5p-128 --num-slices 2" in calls[0]
    assert "--restart-on-exit-codes 75" in calls[0]
    assert calls[0].endswith("--command exec vdit train exp.py --workdir /mnt/xl")


def test_the_jobset_stops_on_what_must_be_mended_only():
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "vdit", "operator": "In", "values": [1, 2]}
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never", "a pod failure policy needs it"
    assert jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


@pytest.mark.parametrize("script", ["slurm.sbatch", "queued_resources.sh", "gke/xpk.sh"])
def test_scripts_are_shell(script):
    done = subprocess.run(["bash", "-n", str(LAUNCH / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.access(LAUNCH / script, os.X_OK)


def test_processes_share_out_the_gpus():
    local = load_local()
    options = local.parse(["--processes", "2", "--gpus-each", "4", "--", "vdit", "train"])
    assert local.environment(options, 1, 0)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert local.environment(options, 1, 1)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert local.environment(options, 1, 1)["VDIT_PROCESS_ID"] == "1"
