"""Stage 5: the shipped model on worlds at 96x96, trained on prepared latents until the time is up, and its samples.

cat results/model.tar.* | tar x -C runs/         # the trained run, for vdit sample runs/worlds96
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import signal
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from accel.record import Probe
from accel.timing import healthy, memory

__all__ = ["healthy", "probes"]

PART = 15_000_000  # bytes of one file that comes back
PARTS = 3  # with the page, its pictures, the record and the log 8 files
NAME = "worlds96"
KEEP = 20.0  # seconds for the samples, of the stage's time


def probes(dry: bool, out: Path, until: float) -> list[Probe]:
    folder = Path(tempfile.gettempdir()) / "vdit-accelerator" / f"{'dry-' if dry else ''}run-{os.getuid()}"
    return [
        Probe(
            name="training",
            what=f"{NAME}: text to video, 17 frames of 96x96, from scratch",
            run=functools.partial(train, dry, folder, until),
            needs=2 if dry else 30,
        ),
        Probe(
            name="samples",
            after="training",
            what="prompts sampled by it",
            run=functools.partial(samples, dry, folder, out),
            needs=2,
        ),
        Probe(
            name="checkpoint",
            after="training",
            what=f"the trained run, in files of at most {PART // 10**6} MB",
            run=functools.partial(pack, folder, out),
            needs=1,
        ),
    ]


def experiment(dry: bool) -> Any:
    """The quickstart's world at 96x96, and a model that 3 parts of 15 MB can bring back; dry: the smallest there is."""
    from vdit.config import apply_overrides
    from vdit.quickstart.config import experiment as quickstart

    base = dataclasses.replace(quickstart(), name=NAME)
    large = (
        "data.pixel_budgets=9216",
        "data.frames=(1,17,17,17)",
        "data.row_tokens=1440",
        "data.threads=8",
        "data.max_text_per_row=512",
        "data.max_frames_per_row=160",
        "data.max_clips_per_row=48",
        "backbone.width=384",
        "backbone.depth=7",
        "backbone.heads=6",
        "backbone.dtype=bfloat16",
        "backbone.scan=True",
        "dit_train.batch_size=16",
        "dit_train.steps=1000000",
        "dit_train.ema_decay=0.999",
        "dit_train.save_every=1000000",
        "dit_train.optimizer.learning_rate=0.0006",
        "dit_train.optimizer.schedule=constant",
        "dit_train.optimizer.warmup_steps=300",
        "sample.size=(96,96)",
        "vae_clips.size=(64,64)",
    )
    tiny = (
        "vae.base_channels=8",
        "vae_train.steps=2",
        "vae_train.batch_size=1",
        "vae_train.optimizer.warmup_steps=0",
        "vae_clips.size=(32,32)",
        "data.pixel_budgets=1024",
        "data.aspects=1.0",
        "data.frames=(1,5)",
        "data.source.count=24",
        "data.row_tokens=16",
        "data.max_frames_per_row=8",
        "data.max_clips_per_row=4",
        "data.max_text_per_row=96",
        "data.buffer_rows=4",
        "data.buffer_clips=8",
        "text.width=16",
        "text.heads=1",
        "text.max_length=48",
        "text.vocab_size=300",
        "backbone.width=16",
        "backbone.depth=1",
        "backbone.heads=1",
        "dit_train.batch_size=1",
        "dit_train.steps=3",
        "dit_train.log_every=1",
        "dit_train.optimizer.warmup_steps=0",
        "sample.frames=5",
        "sample.size=(32,32)",
        "sample.steps=2",
        "sample.sampler=euler",
        "sample.guidance=1",
    )
    return apply_overrides(base, list(tiny if dry else large))


def prepare_run(folder: Path, *, dry: bool, clips: int) -> None:
    """Trains the VAE, encodes the latents and fits the tokenizer, on a CPU; then drops what need not travel."""
    from vdit.config import apply_overrides
    from vdit.train.stages import run
    from vdit.train.workspace import Workspace

    made = apply_overrides(experiment(dry), [f"latents.samples={clips}", "vae_train.keep=1"])
    run(made, Workspace(folder), stages=("vae", "latents", "tokenizer"))
    _slim(folder / "vae")
    shutil.rmtree(folder / "logs", ignore_errors=True)


def _slim(checkpoints: Path, dtype: str = "float32") -> None:
    """Writes the newest checkpoint again with averaged parameters alone, in `dtype`."""
    import jax

    from vdit.checkpoint import Checkpointer, load_meta, load_params
    from vdit.checkpoint.files import steps_in

    step, meta, params = max(steps_in(checkpoints)), load_meta(checkpoints), load_params(checkpoints)
    other = checkpoints.with_name(f"{checkpoints.name}.slim")
    shutil.rmtree(other, ignore_errors=True)
    with Checkpointer(other, keep=1, meta=meta) as checkpointer:
        checkpointer.save(step, {"params": jax.tree.map(lambda leaf: leaf.astype(dtype), params)})
    shutil.rmtree(checkpoints)
    other.rename(checkpoints)


def train(dry: bool, folder: Path, until: float) -> dict[str, Any]:
    """`vdit train` on the prepared run, stopped as a preempted machine is: by SIGTERM, with a checkpoint."""
    from vdit.errors import Preempted
    from vdit.train.logging import read_json_lines
    from vdit.train.stages import run
    from vdit.train.workspace import Workspace

    carried = Path(os.environ["VDIT_ACCELERATOR_CARRIED"]) / "run"
    if not folder.exists():
        if not carried.is_dir():
            raise FileNotFoundError(f"{carried}: no prepared run: accelerator.py --carry makes one")
        shutil.copytree(carried, folder)
    left = until - time.time() - (3 if dry else KEEP)
    timer = threading.Timer(max(left, 1), lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    began, space, stopped = time.time(), Workspace(folder), False
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(
            dataclasses.replace(
                experiment(dry), latents=space.experiment().latents, vae_train=space.experiment().vae_train
            ),
            space,
            stages=("dit",),
        )
    except Preempted:
        stopped = True
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
    lines = [line for line in read_json_lines(space.logs / "dit.jsonl") if "loss" in line]
    if not lines:
        raise RuntimeError(f"no step was done in {time.time() - began:.0f} s: it was still compiling; run it again")
    losses = [line["loss"] for line in lines]
    speed = [line["speed/tokens_per_second"] for line in lines if "speed/tokens_per_second" in line]
    tail = losses[-10:]
    return {
        "steps": lines[-1]["step"],
        "loss_first": losses[0],
        "loss_last": sum(tail) / len(tail),
        "stopped": stopped,
        "trained_seconds": time.time() - began,
        "tokens_per_second": max(speed, default=0.0),
        **memory(),
        "mfu": max((line.get("speed/mfu", 0.0) for line in lines), default=0.0),
        "note": f"{lines[-1]['step']} steps, loss {losses[0]:.3f} to {sum(tail) / len(tail):.3f}",
    }


def samples(dry: bool, folder: Path, out: Path) -> dict[str, Any]:
    """Videos of held-out prompts, one a line of a picture, and how many show what was asked for."""
    import numpy as np
    from PIL import Image

    from accel import entry

    entry.stand_in()
    import vdit
    from vdit.eval.detectors import detect
    from vdit.quickstart.config import held_out
    from vdit.quickstart.score import PARTS as QUALITIES
    from vdit.quickstart.score import hits, shares

    generator = vdit.load(folder)
    wanted = held_out(experiment(dry), 2 if dry else 16)
    began = time.perf_counter()
    videos = np.asarray(generator([one.prompt for one in wanted], seed=0))
    took = time.perf_counter() - began
    found = shares(hits([detect(video) for video in videos], wanted))
    pixels = np.round((videos + 1) * 127.5).astype(np.uint8)
    sheet = np.concatenate([np.concatenate(list(video), axis=1) for video in pixels])  # a video a line
    Image.fromarray(sheet).save(out / "samples.png")
    return {
        "videos": len(videos),
        "sampling_seconds": took,
        "size": str(videos.shape[1:]),
        "prompts": [one.prompt for one in wanted],
        "right": {name: found[name] for name in (*QUALITIES, "all")},
        "note": f"{found['all']:.0%} all right, " + ", ".join(f"{n} {found[n]:.0%}" for n in QUALITIES),
    }


def pack(folder: Path, out: Path) -> dict[str, Any]:
    """A copy of the run with averaged parameters alone, as a tar in parts."""
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work) / NAME
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("latents", "logs", "*.lock"))
        _slim(copy / "dit", "bfloat16")
        archive = Path(work) / "model.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(copy, arcname=NAME)
        size = archive.stat().st_size
        if size > PART * PARTS:
            raise RuntimeError(f"the run is {size / 1e6:.1f} MB, more than {PARTS} parts of {PART / 1e6:.0f} MB")
        for old in out.glob("model.tar.*"):
            old.unlink()
        with archive.open("rb") as file:
            for number in range(-(-size // PART)):
                (out / f"model.tar.{number}").write_bytes(file.read(PART))
    return {"megabytes": size / 1e6, "parts": -(-size // PART), "note": f"{size / 1e6:.1f} MB"}
