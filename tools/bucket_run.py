"""Trains, is killed, resumes, and samples with everything in a bucket that a server on loopback stands for.

    python tools/bucket_run.py                  # gs://, two minutes on 2 cores
    python tools/bucket_run.py --scheme s3

Every step is a `vdit` command in a process of its own, whose working folder and cache are thrown away after it, as a
new machine of a pod would have them. The first training gets SIGKILL when the first checkpoint of the transformer is
complete; the same command then goes on. Ends with status 1 if a command fails, a step of the log is missing or there
twice, or a file was written into a local folder of the URL's name.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

NAME = "vdit-test"
SMALL = """
vae.base_channels=8 vae.channel_mults=1,1,1 vae.blocks_per_level=1 vae_train.batch_size=1 vae_train.steps=2
vae_train.optimizer.warmup_steps=0 vae_clips.frames=9 vae_clips.size=32,32 data.pixel_budgets=1024 data.frames=9
data.size_multiple=16 data.fps=8.0 data.row_tokens=64 data.max_text_per_row=64 data.max_frames_per_row=16
data.max_clips_per_row=4 latents.samples=8 text.vocab_size=300 text.width=32 text.depth=1 backbone.width=32
backbone.depth=1 backbone.heads=2 dit_train.batch_size=1 dit_train.steps=200 dit_train.save_every=5
dit_train.log_every=1 dit_train.optimizer.warmup_steps=0 sample.size=32,32 sample.frames=9 sample.steps=2
""".split()  # noqa: SIM905


class Commands:
    """`vdit` commands against the server, each on a machine of its own."""

    def __init__(self, environment: dict[str, str]):
        self._environment = os.environ | environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def start(self, *words: str) -> tuple[subprocess.Popen, tempfile.TemporaryDirectory]:
        print("$ vdit", " ".join(word for word in words if not word.startswith("--cfg")), flush=True)
        machine = tempfile.TemporaryDirectory()
        environment = self._environment | {"VDIT_FILE_CACHE": f"{machine.name}/cache"}
        command = [sys.executable, "-m", "vdit.cli.main", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=machine.name, env=environment, **pipes), machine

    def run(self, *words: str, fails: bool = False) -> str:
        process, machine = self.start(*words)
        with machine:
            text = process.communicate(timeout=900)[0]
            local = [name for name in os.listdir(machine.name) if name.endswith(":")]
        if (process.returncode != 0) != fails or local:
            raise SystemExit(f"exit code {process.returncode}, local folders {local}:\n{text}")
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", choices=("gs", "s3"), default="gs")
    options = parser.parse_args()
    from tests.loopback import Buckets
    from vdit import paths, write_video

    with Buckets(NAME) as server:
        os.environ.update(server.environment())
        root, commands = f"{options.scheme}://{NAME}", Commands(server.environment())
        rng, captions = np.random.default_rng(0), ["file,caption"]
        for i in range(4):
            write_video(f"{root}/videos/{i}.mp4", rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8), fps=8)
            captions.append(f"{i}.mp4,a red ball number {i} moves")
        paths.write_atomic(f"{root}/videos/captions.csv", "\n".join(captions) + "\n")
        train = ["train", "--data", f"{root}/videos", "--workdir", f"{root}/run", *(f"--cfg.{key}" for key in SMALL)]
        process, machine = commands.start(*train)
        sealed = lambda: [key for key in server.names_of(NAME, "run/dit/") if key.endswith("sha256.json")]  # noqa: E731
        while not sealed() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        text = process.communicate()[0]
        machine.cleanup()
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the first training ended with {process.returncode} before it was killed:\n{text}")
        steps = sorted(int(key.split("/")[2]) for key in sealed())
        print(f"killed; in the bucket are checkpoints of steps {steps}")
        began = steps[-1]
        words = [word.replace("dit_train.steps=200", f"dit_train.steps={began + 10}") for word in train]
        print(commands.run(*words).splitlines()[-1])
        lines = server.objects[NAME, "run/logs/dit.jsonl"].decode().splitlines()
        seen = [json.loads(line)["step"] for line in lines]
        if seen != list(range(1, began + 11)):
            raise SystemExit(f"the log holds the steps {seen}, must hold 1 to {began + 10} once each")
        commands.run("sample", f"{root}/run", "a red ball", "--out", f"{root}/samples/ball.mp4")
        commands.run("reconstruct", f"{root}/run", f"{root}/videos/0.mp4", "--out", f"{root}/samples/")
        made = [key for key in server.names_of(NAME, "samples/") if key.endswith(".mp4")]
        print(f"made: {made}")
        if len(made) < 2:
            raise SystemExit("samples are missing")
        elsewhere = f"{options.scheme}://no-such-bucket/run"
        missing = commands.run("sample", elsewhere, "a ball", "--out", "a.mp4", fails=True)
        print(missing.strip().splitlines()[-1])
        held = sum(map(len, server.objects.values())) / 1e6
        print(f"done: {len(server.asked)} requests, {held:.1f} MB in the bucket")


if __name__ == "__main__":
    main()
