"""Block caching between sampling steps: time saved and error caused, at several thresholds.

    python tools/reuse.py runs/quickstart
    python tools/reuse.py runs/quickstart --sampler euler --steps 40 --thresholds 0.05 0.1

The error compares with videos computed without caching from the same noise: root mean square error of the latents,
relative to the latents, and PSNR of the decoded videos. Times exclude the VAE; each is the least of several interleaved
runs, and on CPU it is process time, which other processes do not lengthen.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import jax
import numpy as np

import vdit
from vdit.samplers import Sampler, StatefulDenoiser
from vdit.sampling import programs
from vdit.sampling.config import BlockCache


@dataclasses.dataclass(frozen=True)
class Counted:
    """A sampler that notes after each call of the network how much the first block has changed: 0 where all ran."""

    inner: Sampler
    changes: list = dataclasses.field(default_factory=list, compare=False)

    def sample(self, denoise, x, **options):
        def ask(*inputs):
            output, memory = denoise.ask(*inputs)
            kept, _ = memory
            jax.debug.callback(lambda change: self.changes.append(float(change)), kept.change)
            return output, memory

        return self.inner.sample(StatefulDenoiser(ask=ask, memory=denoise.memory), x, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--videos", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args()
    model = vdit.load(options.run)
    plain = model.method(sampler=options.sampler, steps=options.steps)
    wanted = [prompt for prompt in model.experiment.sample.prompts for _ in range(options.videos)][: options.videos]
    prompts = model.tokens(wanted), model.tokens([""] * len(wanted))

    methods = {None: plain}
    for threshold in options.thresholds:
        watched = Counted(plain.sampler)
        methods[threshold] = dataclasses.replace(plain, sampler=watched, reuse=BlockCache(threshold=threshold))

    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter

    def latents_of(method):
        task = model.task(method, None, None, decode=False)
        parameters = programs.Parameters(model.params, model.vae.params, model.vae.statistics)
        began = clock()
        latents = np.asarray(programs.sample(task, model.mesh, parameters, prompts, jax.random.key(0)))
        return latents, clock() - began

    latents = {threshold: latents_of(method)[0] for threshold, method in methods.items()}  # compiles
    jax.effects_barrier()
    counts = {}
    for threshold in options.thresholds:
        changes = methods[threshold].sampler.changes
        counts[threshold] = f"{sum(change == 0 for change in changes)}/{len(changes)}"
    seconds = {threshold: np.inf for threshold in methods}
    for _ in range(options.repeats):
        for threshold, method in methods.items():
            seconds[threshold] = min(seconds[threshold], latents_of(method)[1])

    videos = {threshold: np.asarray(model.vae.decode(x)) for threshold, x in latents.items()}
    print(f"{len(wanted)} videos, {plain.grid.steps} steps of {type(plain.sampler).__name__}")
    form = "{:>9}  {:>19}  {:>7}  {:>13}  {:>6}  {:>5}"
    print(form.format("threshold", "calls of all blocks", "seconds", "times as fast", "error", "PSNR"))
    for threshold in methods:
        error = np.sqrt(np.mean((latents[threshold] - latents[None]) ** 2) / np.mean(latents[None] ** 2))
        noise = np.mean((videos[threshold] - videos[None]) ** 2)
        psnr = f"{10 * np.log10(4 / noise):.1f}" if noise else "same"
        name, took = "none" if threshold is None else f"{threshold:g}", seconds[threshold]
        faster = f"{seconds[None] / took:.2f}"
        print(form.format(name, counts.get(threshold, "all"), f"{took:.2f}", faster, f"{error:.3f}", psnr))


if __name__ == "__main__":
    main()
