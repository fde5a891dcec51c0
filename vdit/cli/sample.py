"""`vdit sample`: videos from prompts, by a trained run."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from vdit.cli import output
from vdit.cli.parser import UsageError, at_least, size
from vdit.cli.prompts import Wish, read_wishes

SUMMARY = "make videos of prompts with a trained run, or with public weights"
DESCRIPTION = """\
Writes a video for each prompt, or one for each prompt and seed, by a run (its averaged parameters), an imported model,
or, with --model, a folder of public weights: Wan 2.1 and 2.2, DiT. What is not given (frames, size, steps, guidance,
sampler) is as in the run's own `sample` config, or as the public model is meant to be sampled. The same seed, prompt
and size give the same video, whatever is made beside it (ddpm: in the same command); each number of videos at once,
size and duration compiles once."""
EPILOG = """\
examples:
  vdit sample runs/mine "a dog runs" --out dog.mp4
  vdit sample runs/mine "a dog runs" "a cat sleeps" --out samples --frames 33 --size 64x96 --count 4
  vdit sample runs/mine --prompts prompts.txt --out samples --guidance 5 --negative "blurred" --steps 50
  vdit sample runs/mine "a dog" --frames 1 --out dog.png
  vdit sample --model Wan2.1-T2V-1.3B-Diffusers "a dog runs" --out dog.mp4 --weights int8
  vdit sample --model Wan2.2-TI2V-5B "the dog runs" --image dog.jpg --out dog.mp4 --lora style.safetensors:0.8
  vdit sample --model DiT-XL-2-256 207 "golden retriever" --out dogs
  vdit sample runs/mine "a long walk" --frames 1441 --mesh sequence=8 --out walk.mp4    # one video by 8 devices

A line of a .jsonl or .csv file of --prompts may say more of its own video; the rest is as the command says:
  {"prompt": "a dog runs", "negative": "blurred", "seed": 7, "frames": 33, "size": "64x96", "out": "dog.mp4"}

On several hosts, start the same command on each, as `vdit train` (see its --help); the first writes the files.
--out is a file for one prompt (.mp4, .webm, .gif, lossless .mkv; .png or .jpg for one frame), or a folder."""
TAKES_OVERRIDES = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="RUN PROMPT", help="the folder of a run, then texts; quote them")
    parser.add_argument("--prompts", dest="file", metavar="FILE", help="prompts, as .txt (one a line), .jsonl or .csv")
    parser.add_argument("--out", default="samples", metavar="PATH", help="a file or a folder; default: %(default)s")
    parser.add_argument("--image", metavar="FILE", help="the first frame; scaled to cover the size, and cut around")
    parser.add_argument("--frames", type=at_least(1), metavar="N", help="1 + a multiple of the VAE's stride in time")
    parser.add_argument("--size", metavar="HxW", help="height x width in pixels, as in 64x96")
    parser.add_argument("--fps", type=at_least(0.1, float), help="of the files; default: the model's own")
    output.add_sampling(parser)
    output.add_seeds(parser)
    output.add_model(parser)
    parser.add_argument("--batch", type=at_least(1), default=8, metavar="N", help="videos made at once; default: 8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to be made. size: (height, width)."""

    prompt: str
    negative: str
    seed: int
    frames: int
    size: tuple[int, int]
    path: Path


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    folder, texts = output.split_model(options)
    wishes = [*(Wish(prompt=text) for text in texts), *(read_wishes(options.file) if options.file else ())]
    if not wishes:
        raise UsageError("nothing to sample: give a PROMPT, or --prompts FILE (see vdit sample --help)")
    output.check_sampler(options)
    wanted_size = None if options.size is None else size(options.size)
    _check_out(options, wishes, output.seeds_of(options))
    with output.opened(options, folder) as generator:
        defaults = generator.experiment.sample
        jobs = _jobs(
            options, wishes, output.seeds_of(options), options.frames or defaults.frames, wanted_size or defaults.size
        )
        _sample(options, generator, jobs)
    return 0


def _check_out(options: argparse.Namespace, wishes: Sequence[Wish], seeds: Sequence[int]) -> None:
    """Before anything is loaded: can the videos go there?"""
    out, count = Path(options.out), sum(len(_seeds(options, wish, seeds)) for wish in wishes)
    what = "prompts" if count == len(wishes) else "videos"
    output.check_out(out, count=count, what=what, frames=wishes[0].frames or options.frames, fps=options.fps)
    for wish in wishes:
        if wish.out is not None:
            if output.is_file(out):
                raise UsageError(f"--out {out}: is a file, and {options.file} names {wish.out}; give a folder")
            output.check_suffix(Path(wish.out), wish.frames or options.frames, options.fps, name=f"out {wish.out}")


def _seeds(options: argparse.Namespace, wish: Wish, seeds: Sequence[int]) -> list[int]:
    """A line's own seed stands alone, or is the first of --count."""
    return list(seeds) if wish.seed is None else output.seeds_from(wish.seed, options.count)


def _jobs(
    options: argparse.Namespace, wishes: Sequence[Wish], seeds: Sequence[int], frames: int, size: tuple[int, int]
) -> list[Job]:
    """A job for each wish and seed. frames, size: of wishes that say nothing of them."""
    out, jobs, taken = Path(options.out), [], set()
    for number, wish in enumerate(wishes):
        own = _seeds(options, wish, seeds)
        for seed in own:
            shown, length = seed if len(own) > 1 else None, wish.frames or frames
            if wish.out is not None:
                path = out / output.with_seed(Path(wish.out), shown)
            else:
                path = out / output.file_name(number, wish.prompt, frames=length, seed=shown)
            path = out if output.is_file(out) else path
            if path in taken:
                raise UsageError(f"{options.file} names {wish.out} twice: give each prompt a file of its own")
            taken.add(path)
            negative = options.negative if wish.negative is None else wish.negative
            video = {"frames": length, "size": wish.size or size}
            jobs.append(Job(prompt=wish.prompt, negative=negative, seed=seed, path=path, **video))
    return jobs


def _sample(options: argparse.Namespace, generator, jobs: list[Job]) -> None:
    from vdit.infer.images import read_image
    from vdit.infer.noise import noise_of

    image = None if options.image is None else read_image(options.image)
    fps = output.rate(options, generator.experiment)
    names = ("steps", "guidance", "sampler", "reuse")
    asked = {name: getattr(options, name) for name in names}
    for job in jobs:  # what cannot be made is told before anything is
        generator.task(generator.method(), job.frames, job.size, given=True)
    display = output.progress("videos", len(jobs)) if len(jobs) > options.batch else None
    done = 0
    for batch, count in _batches(jobs, options.batch):
        first = batch[0]
        video = {"frames": first.frames, "size": first.size}
        videos = generator(
            [job.prompt for job in batch],
            image=image,
            seed=first.seed,
            noise=noise_of(generator, [job.seed for job in batch], **video),
            negative=first.negative,
            **video,
            **asked,
        )
        for job, made in zip(batch[:count], videos):
            output.write(job.path, made, fps)
        done += count
        if display is not None:
            display.update(done, {})
    if display is not None:
        display.close()


def _batches(jobs: Sequence[Job], most: int) -> Iterator[tuple[list[Job], int]]:
    """(jobs that are made at once, how many of them count): of one shape and one negative prompt.

    Those of one shape are all as long, filled up with the last job, so that each shape compiles once; they follow each
    other, in the order in which shapes come first.
    """
    shape = lambda job: (job.frames, job.size)  # noqa: E731
    for wanted in dict.fromkeys(map(shape, jobs)):
        alike = [job for job in jobs if shape(job) == wanted]
        groups = [[job for job in alike if job.negative == n] for n in dict.fromkeys(job.negative for job in alike)]
        length = min(most, max(map(len, groups)))
        for batch in itertools.chain.from_iterable(output.batches(group, length) for group in groups):
            yield batch + batch[-1:] * (length - len(batch)), len(batch)
