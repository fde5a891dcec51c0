"""Host memory that a command needs for its video, measured and as predicted.

    python -m tools.host_memory

Each row is a process of its own that reads a generated video, makes something of it with a model that is noise, and
writes the result, as the command of that name does. It prints the highest resident memory beyond what the process held
before, for each size and length, and what `needed_memory` says. Weights and what a device computes are not in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

import vdit
from tests import tiny
from vdit.cli import reconstruct
from vdit.generate.host_memory import needed_memory
from vdit.generate.inputs import read_input
from vdit.video.read import write_video

MIB = 1 << 20
NEW = 8  # frames that are made beside those that are given
FPS = 8
SMALL = (16, 16)
CASES = ((160, (88, 160)), (320, (88, 160)), (160, (176, 320)), (320, (176, 320)))


def nothing(task, mesh, params, vae, statistics, prompts, negative, key, noise, given) -> np.ndarray:
    """In the place of vdit.sampling.programs.draw."""
    return np.zeros(given.canvas.latents.shape, np.float32)


def video(path: Path, frames: int, size: tuple[int, int]) -> None:
    write_video(path, (np.full((*size, 3), k % 256, np.uint8) for k in range(frames)), fps=FPS)


def work(name: str, path: Path, out: Path, size: tuple[int, int]) -> Callable[[], object]:
    """What the command `name` does after its model is loaded."""
    if name == "reconstruct":
        vae = mock.Mock(config=mock.Mock(spatial_stride=8, temporal_stride=4))
        vae.encode = lambda frames, latent_frames: frames.shape
        vae.decode = lambda shape, latent_frames: np.zeros(shape, np.float32)
        return lambda: reconstruct._reconstruct(vae, path, out, area=size[0] * size[1], fps=None, frames=None)
    network = name in ("edit", "edit a part", "inpaint", "rollout")
    generator = tiny.generator(window=9) if network else tiny.Noise(tiny.experiment())
    mask = np.zeros(size, bool)
    mask[: size[0] // 2, : size[1] // 2] = True
    verbs = {
        "extend": lambda frames: vdit.extend(generator, "", frames, after=NEW),
        "loop": lambda frames: vdit.loop(generator, "", frames, passage=NEW),
        "connect": lambda frames: vdit.connect(generator, "", frames, read_input(path, size=size).frames, frames=NEW),
        "edit": lambda frames: vdit.edit(generator, "", frames),
        "edit a part": lambda frames: vdit.edit(generator, "", frames, mask=mask),
        "inpaint": lambda frames: vdit.inpaint(generator, "", frames, mask),
        "rollout": lambda frames: vdit.rollout(generator, "", video=frames, frames=len(frames) + NEW),
    }

    def run() -> None:
        given = read_input(path, size=size)
        made = verbs[name](given.frames)
        write_video(out, made if name == "rollout" else made[0], fps=FPS)

    return run


def measure(name: str, path: Path, out: Path, size: tuple[int, int]) -> int:
    """Bytes, in this process, which has done the same with a small video before: what that imports does not count."""
    with mock.patch("vdit.generate.sliding.draw", nothing), mock.patch("vdit.generate.verbs.draw", nothing):
        small = out.with_name("small.mp4")
        video(small, 16, SMALL)
        work(name, small, out, SMALL)()
        run, before = work(name, path, out, size), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("extend", "loop", "connect", "edit", "edit a part", "inpaint", "rollout", "reconstruct")
    parser.add_argument("names", nargs="*", default=names, help=f"default: {', '.join(names)}")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many sizes; default: %(default)s")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    context = multiprocessing.get_context("spawn")
    print(f"{'command':12}  {'frames':>6}  {'size':>9}  {'video MiB':>9}  {'measured MiB':>12}  {'said MiB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            for frames, size in CASES[: options.cases]:
                path = Path(folder) / f"{frames}-{size[1]}x{size[0]}.mp4"
                if not path.exists():
                    video(path, frames, size)
                whole = 2 * frames + NEW if name == "connect" else frames
                whole += NEW if name in ("extend", "loop") else 0
                pool = context.Pool(1)
                taken = pool.apply(measure, (name, path, Path(folder) / f"{name} {frames} {size[0]}.mp4", size)) / MIB
                pool.close()
                pool.join()
                length, said = whole * size[0] * size[1] * 3 / MIB, needed_memory(name, whole, size) / MIB
                shape = f"{size[1]}x{size[0]}"
                print(f"{name:12}  {whole:6}  {shape:>9}  {length:9.1f}  {taken:12.0f}  {said:8.0f}", flush=True)


if __name__ == "__main__":
    main()
