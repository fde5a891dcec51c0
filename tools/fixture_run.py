"""Makes tests/fixtures/run_v1: runs of the code of version 0.1.0 (commit 8c566ba), and what its commands made of them.

    git worktree add ../v1 8c566ba
    cp tools/fixture_run.py ../v1/tools/ && cd ../v1 && python tools/fixture_run.py OUT

tests/test_fixture_run.py holds newer code against it: old runs load, go on training, and give the same videos.
OUT gets two files:

    runs.tar.xz   folders of runs, as `vdit train`, `vdit import` and `vdit export` leave them:
        clips     text to video, trained on canvases of every kind; latents of 1, 5 and 9 frames
        steer     a causal transformer with actions, each latent frame a video frame
        lora      a LoRA on top of clips
        exported  a diffusers folder: a toy Wan with random weights, imported and exported
    golden.npz    frames (uint8 [t h w 3]) and numbers, by the names of CASES and MEASURED

Each run's last checkpoint is removed, so that the steps to it can be trained again (RESUMED).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STEPS, RESUMED = 200, 2  # the DiT's steps, and how many of them are trained again from the checkpoint
MAX_SIZE = 2_000_000  # bytes, of both files

OPTIMIZER = ("learning_rate=0.004", "warmup_steps=2", "schedule=constant", "b2=0.95")
TRAINING = (
    "log_every=1", "sample_every=0", "ema_decay=0.8", "keep=2", f"save_every={STEPS - RESUMED}",
    *(f"optimizer.{option}" for option in OPTIMIZER),
)  # fmt: skip
VAE = (
    "latent_channels=4", "base_channels=8", "channel_mults=(1,)", "spatial_down=()", "temporal_down=()", "patch=4",
    "blocks_per_level=1", "middle=none", "decoder_extra_blocks=0", "block_kernel=(1,1,1)", "edge_kernel=(3,1,1)",
)  # fmt: skip
COMMON = (
    *(f"vae.{option}" for option in VAE), "vae_loss.reconstruction=mse", "vae_loss.kl_weight=1e-6",
    *(f"vae_train.{option}" for option in (*TRAINING, "steps=400", "batch_size=4", "save_every=400")),
    *(f"dit_train.{option}" for option in (*TRAINING, f"steps={STEPS}", "batch_size=2")),
    "data.world_count=16", "latents.samples=16", "data.areas=(256,)", "data.size_multiple=8", "data.aspects=(1.0,)",
    "data.row_text=96", "data.row_slots=24", "data.row_clips=8", "data.buffer_rows=4", "data.buffer_clips=8",
    "data.fps=(8.0,)", "data.threads=0", "vae_clips.size=(16,16)",
    "text.width=16", "text.heads=2", "text.depth=0", "text.max_length=40", "text.vocab_size=300",
    "dit.in_channels=4", "dit.width=24", "dit.heads=2",
    "sample.size=(16,16)", "sample.steps=3", "sample.fps=8.0",
)  # fmt: skip
CLIPS = (
    "name=clips", "dit.depth=2", "dit.scan=true",
    "data.world=moving", "data.world_options=()", "data.frames=(1,5,9)", "data.row_tokens=32",
    "data.detailed=0.3", "vae.patch_frames=4", "vae_clips.frames=5", "sample.frames=9", "sample.sampler=euler",
    "sample.guidance=3.0", "sample.interval=(0.1,0.9)", "sample.context_guidance=1.5", "canvases.none=0.4",
    "canvases.first=0.2", "canvases.head=0.2", "canvases.mask=0.2", "canvases.window=0.3", "canvases.context_noise=0.1",
)  # fmt: skip
STEER = (
    "name=steer", "dit.depth=1", "data.frames=(9,)", "data.row_tokens=80", "vae_clips.frames=3", "sample.frames=9",
    "sample.guidance=1.0", "dit.patch=(1,2,2)",
)  # fmt: skip
LORA = ("name=lora", "start_from=clips", "lora.rank=2", "lora.alpha=4", "dit_train.steps=4", "dit_train.save_every=4")

# Name -> the command line, in a folder that holds the runs and the inputs. {out} is where its video goes. All frames of
# these come from one canvas, whose noise is given by the seed alone.
CASES = {
    "sample": "sample clips|a red circle moves up|--seed|3|--out|{out}",
    "sample_lora": "sample lora|a red circle moves up|--seed|3|--out|{out}",
    "sample_exported": "sample --model|exported|a red dog|--size|32x32|--frames|5|--steps|2|--out|{out}",
    "animate": "animate clips|first.png|a circle|--frames|9|--out|{out}",
    "extend": "extend clips|clip.mkv|a circle|--after|4|--window|9|--out|{out}",
    "loop": "loop clips|clip.mkv|a circle|--passage|4|--out|{out}",
    "connect": "connect clips|clip.mkv|other.mkv|a circle|--frames|4|--out|{out}",
    "edit": "edit clips|long.mkv|a circle|--strength|0.6|--seed|5|--out|{out}",
    "edit_inverted": "edit clips|long.mkv|a circle|--strength|0.6|--invert|--source|a cross|--out|{out}",
    "edit_structure": "edit clips|long.mkv|a circle|--structure|2@0.1|--out|{out}",
    "inpaint": "inpaint clips|long.mkv|a circle|--box|0,0,8,8|--out|{out}",
    "outpaint": "inpaint clips|long.mkv|a circle|--outpaint|16x24|--out|{out}",
    "rollout": "rollout clips|a circle|--frames|9|--out|{out}",
    "simulate": "simulate steer|a red circle that is steered|--keys|d|--out|{out}",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sliding:
    """A case that is made piece by piece: which noise a piece gets may change, so nothing is recorded of it.

    frames: how long its video is. given: the input whose frames are kept in it, from frame `first` on.
    """

    case: str
    frames: int
    given: str | None = None
    first: int = 0


_STEERED = "a red circle that is steered"
SLIDING = {
    "extend": Sliding(
        case="extend clips|clip.mkv|a circle|--after|8|--before|4|--out|{out}", frames=17, given="clip", first=4
    ),
    "rollout": Sliding(
        case="rollout clips|clip.mkv|a circle|--frames|25|--prompt-at|1.5s|a cross|--out|{out}", frames=25, given="clip"
    ),
    "edit": Sliding(case="edit clips|far.mkv|a circle|--strength|0.6|--out|{out}", frames=25),
    "rollout_causal": Sliding(
        case=f"rollout steer|long.mkv|{_STEERED}|--frames|21|--out|{{out}}", frames=21, given="long"
    ),
    "simulate": Sliding(case=f"simulate steer|long.mkv|{_STEERED}|--keys|ddss|--out|{{out}}", frames=13, given="long"),
}
RECONSTRUCTED = "reconstruct clips|long.mkv|--out|{out}"


def make_inputs(folder: Path) -> None:
    """clip.mkv (5 frames of 16 x 16 at 8 fps), other.mkv, long.mkv (9 frames), far.mkv (25), first.png."""
    from vdit import write_video

    for seed, (name, frames) in enumerate({"clip": 5, "other": 5, "long": 9, "far": 25}.items()):
        write_video(folder / f"{name}.mkv", input_frames(frames, seed), fps=8)
    from PIL import Image

    Image.fromarray(input_frames(1, 4)[0]).save(folder / "first.png")


def input_frames(frames: int, seed: int) -> np.ndarray:
    """uint8 [t 16 16 3]: a bright square that moves over a grey ramp."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(40, 160, 16)[:, None, None] * np.ones((1, 16, 3)) + random.uniform(-20, 20, 3)
    video = np.repeat(ramp[None], frames, axis=0)
    y, x = random.integers(0, 10, 2)
    colour = random.uniform(0, 255, 3)
    for t in range(frames):
        left = (x + t) % 11
        video[t, y : y + 5, left : left + 5] = colour
    return video.clip(0, 255).astype(np.uint8)


def words(case: str, out: Path | str) -> list[str]:
    """The command line of a case."""
    command, *rest = case.split("|")
    return [*command.split(" "), *(word.format(out=out) for word in rest)]


def resumed_losses(log: Path) -> list[float]:
    """Losses of the last steps in a run's logs/dit.jsonl."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses[-RESUMED:]


def vdit(*arguments: str) -> None:
    from vdit.cli.main import main

    code = main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(f"vdit {' '.join(map(str, arguments))}: exit code {code}")


def make_runs(folder: Path) -> dict[str, np.ndarray]:
    """Trains and exports in `folder`, the current one. Returns the losses of the steps that are removed again."""
    overrides = lambda *options: [f"--cfg.{option}" for option in options]  # noqa: E731
    quiet = ["--no-tensorboard"]
    losses = {}
    for name, base, own in (("clips", "worlds_small", CLIPS), ("steer", "worlds_steer", STEER)):
        vdit("train", base, "--workdir", name, *quiet, *overrides(*COMMON, *own))
        losses[f"losses_{name}"] = np.array(resumed_losses(folder / name / "logs" / "dit.jsonl"))
        shutil.rmtree(folder / name / "dit" / str(STEPS))
        log = folder / name / "logs" / "dit.jsonl"
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines if json.loads(line)["step"] <= STEPS - RESUMED))
    stages = ["--stage", "tokenizer", "--stage", "dit"]
    shutil.copytree(folder / "clips" / "latents", folder / "lora" / "latents")
    vdit("train", "clips", "--workdir", "lora", *quiet, *stages, *overrides(*LORA))
    shutil.rmtree(folder / "lora" / "latents")

    from tests.pretrained import public_folders

    public_folders.wan(folder / "public", vae=public_folders.wan_vae(base_dim=4))
    vdit("import", "public", "imported")
    vdit("export", "imported", "exported", "--dtype", "bfloat16")
    shutil.rmtree(folder / "public")
    shutil.rmtree(folder / "imported")
    return losses


def golden(folder: Path) -> dict[str, np.ndarray]:
    """What each command makes of the runs."""
    from vdit import read_video

    made = {}
    for name, case in CASES.items():
        vdit(*words(case, folder / "out.mkv"))
        made[name] = read_video(folder / "out.mkv").frames
    vdit(*words(RECONSTRUCTED, folder / "again"))
    report = json.loads((folder / "again" / "reconstruct.json").read_text())
    made["psnr"] = np.array(report["mean"]["psnr"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder for the two files")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        folder = Path(temporary)
        arrays = make_runs(folder)
        with tarfile.open(out / "runs.tar.xz", "w:xz", preset=9) as archive:
            for name in sorted(path.name for path in folder.iterdir()):
                archive.add(folder / name, name, filter=_anonymous)
        make_inputs(folder)
        arrays |= golden(folder)
    np.savez_compressed(out / "golden.npz", **arrays)
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    print(sizes)
    if sum(sizes.values()) > MAX_SIZE:
        raise SystemExit(f"{out}: {sum(sizes.values())} bytes, at most {MAX_SIZE}")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
