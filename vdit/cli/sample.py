"""`vdit sample`: videos from prompts, by a trained run."""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import math
import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdit import paths
from vdit.cli import expand, output
from vdit.cli.batch import MANIFEST, Manifest, PromptSpec, digests, read_prompts, state_of
from vdit.cli.parser import RATE, Command, Duration, UsageError, at_least, length, size
from vdit.cli.status import Status, following, numbers, shown_method
from vdit.errors import ConfigError, OutputError, Preempted, VditWarning, reason
from vdit.outputs import check_output

if TYPE_CHECKING:
    from vdit.language.expansion import Expansion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="RUN PROMPT", help="the folder of a run, then texts; quote them")
    parser.add_argument("--prompts", dest="file", metavar="FILE", help="prompts, as .txt (one a line), .jsonl or .csv")
    parser.add_argument("--out", default="samples", metavar="PATH", help="a file or a folder; default: %(default)s")
    parser.add_argument("--image", metavar="FILE", help="the first frame; scaled to cover the size, then cropped")
    parser.add_argument(
        "--condition", action="append", default=[], metavar="NAME=FILE",
        help="values of a condition of the model for all videos, as .npy",
    )  # fmt: skip
    frames = "a number (1 + a multiple of the VAE's stride), or seconds, as in 2s"
    parser.add_argument("--frames", type=length, metavar="TIME", help=frames)
    parser.add_argument("--size", metavar="HxW", help="height x width in pixels, as in 64x96")
    parser.add_argument("--fps", type=RATE, help="frame rate of the files; default: the model's own")
    output.add_sampling(parser)
    output.add_seeds(parser)
    expand.add_expansion(parser)
    output.add_model(parser)
    parser.add_argument("--batch", type=at_least(1), default=8, metavar="N", help="videos made at once; default: 8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make. number: of its prompt, from 0. several: whether the prompt has several seeds."""

    number: int
    spec: PromptSpec
    seed: int
    several: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to be made.

    size: (height, width). id: see vdit.cli.batch; None where there is no manifest. expansion: of its prompt.
    """

    prompt: str
    negative: str
    seed: int
    frames: int
    size: tuple[int, int]
    target: output.Target
    id: str | None = None
    expansion: Expansion | None = None


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    folder, texts = output.split_model(options)
    output.check_texts(options, texts)
    specs = [*(PromptSpec(prompt=text) for text in texts), *(read_prompts(options.file) if options.file else ())]
    if not specs:
        rule = "nothing to sample: give a PROMPT, or --prompts FILE (see vdit sample --help)"
        raise UsageError(f"{output.no_run(options, folder)}{rule}")
    output.check_sampler(options)
    wanted_size = None if options.size is None else size(options.size)
    made = expand.expansions(options, folder, [spec.prompt for spec in specs])
    if made is not None:
        specs = [dataclasses.replace(spec, prompt=one.text, expansion=one) for spec, one in zip(specs, made)]
    requests = _requests(options, specs)
    manifest = None if output.is_file(options.out) else Manifest(paths.path(options.out))
    ids = [None] * len(requests) if manifest is None else digests(_depends(options, folder, requests))
    finished = [manifest is not None and manifest.file(id) is not None for id in ids]
    _check_out(options, folder, requests, finished)
    left = [pair for pair, done in zip(zip(requests, ids), finished) if not done]
    skipped = (
        f"vdit: {sum(finished)} of {len(requests)} videos are finished in {options.out} and skipped "
        "(vdit-manifest.jsonl; delete a video to have it made again)"
    )
    if not left:
        output.say(skipped)
        return 0
    with output.opened(options, folder, about={"the videos that are finished": str(finished)}) as (generator, status):
        if any(finished):
            output.say(skipped)
        rate = options.fps or generator.experiment.sample.fps
        jobs = [_job(options, request, id, generator, rate, wanted_size) for request, id in left]
        made: list[Job] = []
        try:
            _sample(options, generator, jobs, manifest, made, status)
        except (KeyboardInterrupt, Preempted):
            if manifest is not None:
                done = sum(finished) + len(made)
                output.say(f"vdit: {done} of {len(requests)} videos are finished; the same command makes the others")
            raise
    return 0


def _requests(options: argparse.Namespace, specs: Sequence[PromptSpec]) -> list[Request]:
    """Each prompt with each of its seeds. A line's own seed is the only one, or the first of --count."""
    requests, seeds = [], output.seeds_of(options)
    own = sum(spec.seed is not None for spec in specs)
    if own and (options.seed or options.seeds):
        given = "--seeds" if options.seeds else "--seed"
        line = f"{given} has no effect on {own} of {len(specs)} prompts: they name a seed"
        warnings.warn(line, VditWarning, stacklevel=2)
    for number, spec in enumerate(specs):
        own = seeds if spec.seed is None else output.seeds_from(spec.seed, options.count)
        requests += [Request(number=number, spec=spec, seed=seed, several=len(own) > 1) for seed in own]
    return requests


def _depends(options: argparse.Namespace, folder: str, requests: Sequence[Request]) -> list[dict]:
    """All that each video depends on."""
    names = ("size", "fps", "steps", "guidance", "sampler", "reuse", "weights", "compute", "lora", "parts")
    files = [name for name in output.given_files(options, folder) if name != options.file]
    common = {name: getattr(options, name) for name in names} | {"files": [state_of(file) for file in files]}
    return [
        common | {"wish": dataclasses.asdict(request.spec), "seed": request.seed}
        | {"negative": options.negative, "frames": str(_frames(options, request.spec))}
        for request in requests
    ]  # fmt: skip


def _frames(options: argparse.Namespace, spec: PromptSpec) -> Duration | None:
    return options.frames if spec.frames is None else spec.frames


def _frames_known(options: argparse.Namespace, spec: PromptSpec) -> int | None:
    """Number of frames, where it is known before the model is loaded."""
    time = _frames(options, spec)
    return None if time is None or time.seconds else time.frames(1)


def _check_out(
    options: argparse.Namespace, folder: str, requests: Sequence[Request], finished: Sequence[bool]
) -> None:
    """Before anything is loaded: can all of the videos go there, and do they replace nothing?"""
    out, given, first = paths.path(options.out), output.given_files(options, folder), requests[0].spec
    if output.is_file(options.out):
        output.check_suffix(out, _frames_known(options, first), options.fps, name=f"--out {out}")
        if len(requests) > 1:
            what = "prompts" if len({request.number for request in requests}) == len(requests) else "videos"
            raise UsageError(f"--out {out}: is one file for {len(requests)} {what}; give a folder")
        if first.out is not None:
            raise UsageError(f"--out {out}: is a file, and {options.file} names {first.out}; give a folder")
        output.check_target(output.Target(path=out, replace=True), given)
        return
    check_output(out / MANIFEST, name=f"--out {options.out}")
    names: dict[str, str] = {}
    for request, done in zip(requests, finished):
        spec = request.spec
        if spec.out is None:
            continue
        path, name = _named(options, request), f"out {spec.out}"
        output.check_suffix(path, _frames_known(options, spec), options.fps, name=name)
        check_output(path, given=given, name=name)
        if isinstance(path, Path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(out)):
            raise OutputError(f"{name}: is a link out of the folder {out}; give another name")
        key = unicodedata.normalize("NFC", os.path.normpath(path)).casefold()
        if key in names:
            also = "" if names[key] == spec.out else f" (as {names[key]}, which is the same file on some systems)"
            raise UsageError(f"{options.file} names {spec.out} twice{also}: give each prompt a file of its own")
        names[key] = spec.out
        if not done and paths.exists(path):
            rule = "was not made by this command with these options"
            raise OutputError(f"{name}: is in {out} already, and {rule}; delete it or give another --out")
    for key, name in names.items():
        above = next((names[str(parent)] for parent in Path(key).parents if str(parent) in names), None)
        if above is not None:
            raise UsageError(f"{options.file} names {name}, in a folder, and {above}, a file: give one another name")


def _named(options: argparse.Namespace, request: Request) -> Path:
    """The file that a line of the prompts file names."""
    path = paths.path(options.out) / request.spec.out
    return output.with_seed(path, request.seed) if request.several else path


def _job(options: argparse.Namespace, request: Request, id: str | None, generator, rate: float, size) -> Job:
    """size: that of the command, or None."""
    spec, defaults = request.spec, generator.experiment.sample
    time = _frames(options, spec)
    frames = defaults.frames if time is None else _made_frames(time, generator, rate)
    if spec.out is not None:
        target = output.Target(path=_named(options, request), replace=False)
    else:
        target = output.target(options.out, output.file_name(request.number, spec.prompt, frames=frames), request.seed)
    return Job(
        prompt=spec.prompt, negative=options.negative if spec.negative is None else spec.negative, seed=request.seed,
        frames=frames, size=spec.size or size or tuple(defaults.size), target=target, id=id, expansion=spec.expansion,
    )  # fmt: skip


def _made_frames(time: Duration, generator, rate: float) -> int:
    """The requested number of frames; seconds are rounded to the nearest number that the model can make."""
    from vdit.generate.generator import grouping_of

    frames = time.frames(rate)
    if not time.seconds:
        return frames
    grouping = grouping_of(generator)
    made = grouping.first + max(0, round((frames - grouping.first) / grouping.step)) * grouping.step
    if made != frames:
        rule = f"the model makes {grouping.first} + a multiple of {grouping.step} frames"
        warnings.warn(f"{time} at {rate:g} fps is {frames} frames, {made} are made: {rule}", VditWarning, stacklevel=2)
    return made


def _sample(
    options: argparse.Namespace, generator, jobs: list[Job], manifest: Manifest | None, made: list[Job],
    status: Status,
) -> None:  # fmt: skip
    """Makes the videos; adds each to `made` when its file is there."""
    from vdit.dist.multihost import is_primary_host
    from vdit.generate.generator import noise_of
    from vdit.generate.images import Fit, read_image
    from vdit.sampling.canvas import check_canvas_conditions

    image = None if options.image is None else read_image(options.image)
    conditions = dict(_condition(text) for text in options.condition)
    fps = output.rate(options, generator.experiment)
    names = ("steps", "guidance", "sampler", "reuse")
    asked = {name: getattr(options, name) for name in names}
    if image is not None:
        for size in dict.fromkeys(job.size for job in jobs):
            fit = Fit(own=image.shape[:2], size=size)
            status.tell("image", f"{options.image}: {image.shape[1]}x{image.shape[0]}, {fit}")
    method = generator.method(given=image is not None, **asked)
    for job in jobs:  # what cannot be made is told before anything is
        task = generator.task(method, job.frames, job.size, given=image is not None)
        if conditions:
            check_canvas_conditions(generator.experiment.network, conditions, 1, task.latent_shape)
    _tell(options, generator, jobs, fps, status, method)
    batches = list(_batches(jobs, options.batch))
    pixels = sum(len(batch) * batch[0].frames * math.prod(batch[0].size) for batch, _ in batches)
    work = pixels * method.grid.steps * method.rows
    generator = generator.loaded
    with status.progress("videos", len(jobs), work=work) as display:
        for batch, count in batches:
            first = batch[0]
            video = {"frames": first.frames, "size": first.size}
            videos = generator(
                [job.prompt for job in batch],
                image=image,
                conditions=conditions,
                seed=first.seed,
                noise=noise_of(generator, [job.seed for job in batch], **video),
                negative=first.negative,
                **video,
                **asked,
            )
            for job, frames in zip(batch[:count], videos):
                comment = None if job.expansion is None else json.dumps(job.expansion.about(), ensure_ascii=False)
                path = output.write(job.target, frames, fps, comment=comment)
                status.wrote(path)
                if job.frames > 1 and not status.next:
                    status.next = following(options, "extend", path, job.prompt, "--after 2s --out longer.mp4")
                if manifest is not None and is_primary_host():
                    manifest.add(job.id, path, _about(job, options, fps))
                made.append(job)
            display.update(len(made), {})


def _condition(text: str):
    """(name, values [1 ...]) of NAME=FILE; ConfigError for what is no such thing."""
    import numpy as np

    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ConfigError(f"--condition {text!r}: write NAME=FILE.npy")
    data = paths.read_bytes(file, limit=256 * paths.MIB, error=ConfigError)
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ConfigError(f"--condition {text!r}: the file holds no array ({reason(error)})") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ConfigError(f"--condition {text!r}: give one array of finite numbers, as numpy.save writes it")
    return name, values[None]


def _tell(options: argparse.Namespace, generator, jobs: list[Job], fps: float, status: Status, method) -> None:
    """What will be made, and what may be made of it afterwards."""
    shapes = list(dict.fromkeys((job.frames, job.size) for job in jobs))
    frames, (height, width) = shapes[0]
    length = f"{frames} frames ({frames / fps:.4g} s at {fps:.4g} fps)" if frames > 1 else "one frame"
    shape = f"{length}, {height}x{width}"
    shape += f" and {len(shapes) - 1} other shapes" if len(shapes) > 1 else ""
    seeds = numbers(list(dict.fromkeys(job.seed for job in jobs)))
    count = "1 video" if len(jobs) == 1 else f"{len(jobs)} videos"
    status.tell("makes", f"{count} of {shape}, seed {seeds} -> {options.out}")
    asked = {name: getattr(options, name) for name in ("reuse", "negative")}
    status.tell("with", shown_method(method, asked))


def _about(job: Job, options: argparse.Namespace, fps: float) -> dict:
    """What a line of the manifest says of a video."""
    about = {"prompt": job.prompt, "negative": job.negative, "seed": str(job.seed), "frames": job.frames}
    names = ("steps", "guidance", "sampler", "reuse", "image", "condition", "lora")
    asked = {name: getattr(options, name) for name in names}
    about |= {} if job.expansion is None else {"expansion": job.expansion.about()}
    about |= {"size": f"{job.size[0]}x{job.size[1]}", "fps": fps, "model": options.model or options.words[0]}
    return about | {name: value for name, value in asked.items() if value}


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


SAMPLE = Command(
    summary="make videos from prompts, with a trained run or public weights",
    description="""\
Writes a video for each prompt, or one for each prompt and seed, with a run (its averaged parameters), an imported
model, or, with --model, public weights: a folder of Wan 2.1, 2.2 or DiT, or a Wan in one file. Options that are not
given (frames, size, steps, guidance, sampler) come from the run's `sample` config or the public model's defaults. The
same seed, prompt and size give the same video in any batch (ddpm: in the same command). Each batch size, frame size
and duration compiles once.""",
    epilog="""\
examples:
  vdit sample demo "a red circle moves to the left" --out circle.mp4    # the small model that comes with vdit
  vdit sample runs/mine "a dog runs" --out dog.mp4
  vdit sample runs/mine "a dog runs" "a cat sleeps" --out samples --frames 33 --size 64x96 --count 4
  vdit sample runs/mine --prompts prompts.txt --out samples --guidance 5 --negative "blurred" --steps 50
  vdit sample runs/mine "a dog" --frames 1 --out dog.png
  vdit sample runs/mine "a dog" --expand --out dog.mp4    # the prompt as a detailed caption (vdit expand --help)
  vdit sample --model Wan2.1-T2V-1.3B-Diffusers "a dog runs" --out dog.mp4 --weights int8
  vdit sample --model Wan2.2-TI2V-5B "the dog runs" --image dog.jpg --out dog.mp4 --lora style.safetensors:0.8
  vdit sample --model Wan2.2-T2V-A14B "the dog runs" --lora style_high.safetensors --lora style_low.safetensors:0.6
  vdit sample --model mix.safetensors --parts Wan2.1-T2V-1.3B-Diffusers "the dog runs"    # a Wan in one file
  vdit sample --model DiT-XL-2-256 207 "golden retriever" --out dogs
  vdit sample runs/mine "a long walk" --frames 1441 --mesh sequence=8 --out walk.mp4    # one video by 8 devices

A line of a .jsonl or .csv file of --prompts may say more of its own video; the rest is as the command says:
  {"prompt": "a dog runs", "negative": "blurred", "seed": 7, "frames": 33, "size": "64x96", "out": "dog.mp4"}

On several hosts, start the same command on each, as `vdit train` (see its --help); the first writes the files.
--out is a file for one prompt (.mp4, .webm, .gif, lossless .mkv; .png or .jpg for one frame), or a folder. A file is
replaced if it is there, unless it was given to the command. In a folder nothing is replaced: names hold the seed, and
get a number where they are taken. A folder's vdit-manifest.jsonl says what is finished: the same command, started
again after Ctrl-C, skips that and makes the rest.""",
    add_arguments=add_arguments,
    run=_run,
)
