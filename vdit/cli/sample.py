"""`vdit sample`: videos from prompts, by a trained run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from vdit.cli.parser import UsageError, at_least, nearest, size
from vdit.cli.prompts import read_prompts
from vdit.errors import ConfigError

SUMMARY = "make videos of prompts with a trained run, or with public weights"
DESCRIPTION = """\
Writes one video for each prompt, by a run (its averaged parameters), an imported model, or, with --model, a folder
of public weights: Wan 2.1 and 2.2, DiT. What is not given (frames, size, steps, guidance, sampler) is as in the run's
own `sample` config, or as the public model is meant to be sampled. The same seed, prompts and sizes give the same
videos; each number of prompts at once, size and duration compiles once."""
EPILOG = """\
examples:
  vdit sample runs/mine "a dog runs" --out dog.mp4
  vdit sample runs/mine "a dog runs" "a cat sleeps" --out samples --frames 33 --size 64x96
  vdit sample runs/mine --prompts prompts.txt --out samples --guidance 5 --negative "blurred" --steps 50
  vdit sample runs/mine "a dog" --frames 1 --out dog.png
  vdit sample --model Wan2.1-T2V-1.3B-Diffusers "a dog runs" --out dog.mp4 --weights int8
  vdit sample --model Wan2.2-TI2V-5B "the dog runs" --image dog.jpg --out dog.mp4 --lora style.safetensors:0.8
  vdit sample --model DiT-XL-2-256 207 "golden retriever" --out dogs
  vdit sample runs/mine "a long walk" --frames 1441 --mesh sequence=8 --out walk.mp4      one video by 8 devices

On several hosts, start the same command on each, as `vdit train` (see its --help); the first writes the files.
--out is a file for one prompt (.mp4, .webm, .gif; .png for one frame), or a folder."""
TAKES_OVERRIDES = False

VIDEO, IMAGE = (".mp4", ".webm", ".gif"), (".png", ".jpg")
# As in vdit.samplers, which is not imported here: help must be quick. A test compares them.
SAMPLERS = ("ddim", "ddpm", "dpmpp2m", "euler", "heun", "unipc")
WEIGHTS, COMPUTE = ("float32", "bfloat16", "int8", "fp8"), ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="RUN PROMPT", help="the folder of a run, then texts; quote them")
    parser.add_argument("--model", metavar="FOLDER", help="public weights, in the place of RUN")
    parser.add_argument("--prompts", dest="file", metavar="FILE", help="prompts, as .txt (one a line), .jsonl or .csv")
    parser.add_argument("--out", default="samples", metavar="PATH", help="a file or a folder; default: %(default)s")
    parser.add_argument("--image", metavar="FILE", help="the first frame; scaled to cover the size, and cut around")
    parser.add_argument("--frames", type=at_least(1), metavar="N", help="1 + a multiple of the VAE's stride in time")
    parser.add_argument("--size", metavar="HxW", help="height x width in pixels, as in 64x96")
    parser.add_argument("--fps", type=at_least(0.1, float), help="of the files; default: the run's own")
    parser.add_argument("--seed", type=at_least(0), default=0, help="default: 0")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="sampler steps")
    parser.add_argument("--guidance", type=at_least(0, float), metavar="SCALE", help="1 for none")
    parser.add_argument("--negative", default="", metavar="TEXT", help="a prompt to guide away from")
    parser.add_argument("--sampler", metavar="NAME", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help="may be repeated")
    parser.add_argument("--weights", choices=WEIGHTS, help="how weights are held; default: as they are stored")
    parser.add_argument("--compute", choices=COMPUTE, help="type of products; default: the run's; public: by device")
    parser.add_argument(
        "--mesh", metavar="AXES", help="how devices share the work, as in fsdp=2,sequence=4; default: data=-1"
    )
    parser.add_argument("--batch", type=at_least(1), default=8, metavar="N", help="videos made at once; default: 8")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    if not options.words and not options.model:
        raise UsageError("no model: give RUN, the folder of a run, or --model FOLDER (see vdit sample --help)")
    folder, *texts = options.words if options.model is None else [options.model, *options.words]
    prompts = [*texts, *(read_prompts(options.file) if options.file else ())]
    if not prompts:
        raise UsageError("nothing to sample: give a PROMPT, or --prompts FILE (see vdit sample --help)")
    if options.sampler is not None and options.sampler not in SAMPLERS:
        hint = nearest(options.sampler, SAMPLERS)
        raise UsageError(f"sampler {options.sampler!r} is unknown{hint} (samplers: {', '.join(SAMPLERS)})")
    wanted_size = None if options.size is None else size(options.size)
    _check_out(Path(options.out), len(prompts), options.frames)

    from vdit.cli.hosts import joined

    asked = {name: value for name, value in vars(options).items() if name not in ("run", "parser")}
    with joined({"the command": str(asked)}):
        _sample(options, folder, prompts, wanted_size)
    return 0


def _sample(options: argparse.Namespace, folder: str, prompts: list[str], wanted_size: tuple[int, int] | None) -> None:
    from vdit.cli.cache import keep_compiled
    from vdit.dist.mesh import make_mesh
    from vdit.dist.multihost import is_first
    from vdit.infer import load
    from vdit.infer.images import read_image

    keep_compiled()
    mesh = make_mesh(_mesh(options.mesh))
    image = None if options.image is None else read_image(options.image)
    generator = load(folder, mesh, compute=options.compute, weights=options.weights, lora=options.lora)
    defaults = generator.experiment.sample
    frames = options.frames or defaults.frames
    paths = _paths(Path(options.out), prompts, frames)
    batch = min(options.batch, len(prompts))
    for start in range(0, len(prompts), batch):
        texts = prompts[start : start + batch]
        padded = texts + [""] * (batch - len(texts))  # one compilation serves the last batch too
        videos = generator(
            padded,
            image=image,
            frames=frames,
            size=wanted_size,
            seed=options.seed + start,
            steps=options.steps,
            guidance=options.guidance,
            negative=options.negative,
            sampler=options.sampler,
        )
        for path, video in zip(paths[start:], videos[: len(texts)]) if is_first() else ():
            _write(path, video, options.fps or defaults.fps)
            print(path, flush=True)


def _mesh(text: str | None):
    """"fsdp=2,sequence=4" -> MeshConfig, in which what is not named is 1, or all that are left along data."""
    from vdit.config import apply_overrides
    from vdit.dist.mesh import MeshConfig

    try:
        return apply_overrides(MeshConfig(), [] if text is None else text.split(","))
    except ConfigError as error:
        raise UsageError(f"--mesh {text}: {error}") from None


def _check_out(out: Path, count: int, frames: int | None) -> None:
    """Before anything is loaded: can the prompts go there?"""
    if not out.suffix or out.is_dir():
        return
    if out.suffix.lower() not in VIDEO + IMAGE:
        raise UsageError(f"--out {out}: ends in {out.suffix!r}; use {', '.join(VIDEO + IMAGE)}, or a folder")
    if count > 1:
        raise UsageError(f"--out {out}: is one file for {count} prompts; give a folder")
    if out.suffix.lower() in IMAGE and frames != 1:
        raise UsageError(f"--out {out}: is an image; add --frames 1, or use {', '.join(VIDEO)}")


def _paths(out: Path, prompts: list[str], frames: int) -> list[Path]:
    """A file for each prompt, in a folder that exists by now."""
    if out.suffix and not out.is_dir():
        out.parent.mkdir(parents=True, exist_ok=True)
        return [out]
    out.mkdir(parents=True, exist_ok=True)
    suffix = ".png" if frames == 1 else ".mp4"
    return [out / f"{number:03}-{_slug(prompt)}{suffix}" for number, prompt in enumerate(prompts)]


def _slug(prompt: str) -> str:
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48].strip("-") or "empty"


def _write(path: Path, video, fps: float) -> None:
    """video: float32 [t h w 3] in [-1, 1]."""
    import numpy as np

    from vdit.video_io import write_video

    video = np.asarray(video)
    if path.suffix.lower() not in IMAGE:
        write_video(path, video, fps=fps)
        return
    from PIL import Image

    Image.fromarray(np.round((video[0] + 1) * 127.5).astype(np.uint8)).save(path)
