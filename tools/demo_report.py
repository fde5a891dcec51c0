"""The shipped model, or another of rendered worlds, measured and shown: a table, a contact sheet, figures as JSON.

    python -m tools.demo_report demo_report
    python -m tools.demo_report demo_report --model runs/demo --count 128

Prompts of the world "moving" have exact answers: the colour, shape and direction that a sample shows are detected. The
VAE passes scenes of each world that training never saw. Two cores need about 5 minutes for 64 prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

import vdit
from tools.contact_sheet import sheet
from vdit import worlds
from vdit.data.data_source import WorldsSource
from vdit.eval.detectors import detect
from vdit.eval.metrics import psnr
from vdit.generate import Generator
from vdit.quickstart import config
from vdit.quickstart.score import PARTS, hits, sample_videos, shares

PROMPTS = (
    "a red circle moves to the left",
    "a blue cross moves up",
    "a green square moves to the right",
    "an orange triangle moves down",
    "a cyan ball and a red ball move and bounce off the walls in a box",
    "a yellow circle moves to the right behind a grey wall and comes out",
    "a blue sphere and a red sphere on a chequered floor, the camera orbits to the right",
    "a green square that is steered",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--model", default="demo", help="a run or an exported model; default: %(default)s")
    parser.add_argument("--count", type=int, default=64, help="prompts; default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="videos at once; default: %(default)s")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    generator = vdit.load(options.model)
    began = time.perf_counter()
    shown = generator(list(PROMPTS), seed=0)
    print(f"{len(PROMPTS)} videos with compilation: {time.perf_counter() - began:.0f} s", flush=True)
    sheet(list(to_bytes(shown)), list(PROMPTS), shown=8).save(options.out / "demo.png", optimize=True)
    figures = {"right": right(generator, options.count, options.batch), "psnr": autoencoded(generator)}
    (options.out / "demo.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, group in figures.items():
        print(name + ": " + ", ".join(f"{key} {value:.3g}" for key, value in group.items()))
    print(options.out / "demo.png")


def right(generator: Generator, count: int, batch: int) -> dict[str, float]:
    """Shares of samples with the right colour, shape and direction, all three, and each shape where it is asked for."""
    own = [option.partition(".")[2] for option in generator.experiment.data.source.options if "moving." in option]
    source = WorldsSource(world="moving", options=tuple(own))
    moving = dataclasses.replace(
        generator.experiment, data=dataclasses.replace(generator.experiment.data, source=source)
    )
    wanted = config.held_out(moving, count)
    videos = sample_videos(generator, [each.prompt for each in wanted], batch=batch, progress=lambda done: None)
    found = hits([detect(video) for video in videos], wanted)
    asked = np.array([each.shape for each in wanted])
    of_shape = {shape: found[asked == shape, PARTS.index("shape")].mean() for shape in np.unique(asked)}
    return {str(name): float(value) for name, value in {**shares(found), **of_shape}.items()}


def autoencoded(generator: Generator, count: int = 16) -> dict[str, float]:
    """World -> PSNR in dB of scenes from a seed that training never saw, through the VAE and back."""
    sample, found = generator.experiment.sample, {}
    for name in generator.experiment.data.source.world.split("+"):
        world = worlds.make(name, seed=config.HELD_OUT_SEED, count=count, size=sample.size, frames=sample.frames,
                            fps=sample.fps)  # fmt: skip
        videos = np.stack([world[index].video for index in range(count)])
        again = to_bytes(np.asarray(generator.vae.decode(generator.vae.encode(videos))))
        found[name] = float(psnr(videos, again))
    return found


def to_bytes(videos: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] -> uint8."""
    return np.clip(np.round((np.asarray(videos) + 1) * 127.5), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
