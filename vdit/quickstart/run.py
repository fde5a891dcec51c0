"""`vdit quickstart`: from nothing to a trained, sampled and measured text-to-video model, and its page."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

import vdit
from vdit import paths
from vdit.data.latents import LatentStore
from vdit.errors import ConfigError, writing
from vdit.experiment.experiment import Experiment
from vdit.generate import Generator, load
from vdit.generate.expansion import FOLDER, train_run_expander
from vdit.generate.host_memory import total_memory
from vdit.quickstart import config
from vdit.quickstart.report import write_report
from vdit.quickstart.score import PARTS, Measured, Samples, measure, sample_videos
from vdit.train.expander import ExpanderConfig
from vdit.train.logging import read_json_lines
from vdit.train.progress import clock_face, make_display
from vdit.train.stages import STAGES, Logging, check_run, run
from vdit.train.workspace import Workspace

# Shares of right videos that count as success. Shapes must hold while they move, which a short training teaches least.
BARS = {"colour": 0.9, "shape": 0.85, "direction": 0.9}
STEPS = (*STAGES, "expander", "samples", "page")
EXPANDER_STEPS = 200
# Seconds on two cores of a 2020s server, by unit of work; only their ratios matter after the first step.
_PER_PIXEL_TRAINED = 7e-7
_PER_PIXEL_ENCODED = 4e-8
_PER_GFLOP = 0.03
_COMPILE = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Measured):
    """What a quickstart measured. seconds: by step. figures: sizes and speeds by name. page: the report."""

    seconds: dict[str, float]
    figures: dict[str, float]
    page: Path

    @property
    def passed(self) -> bool:
        """Whether each of the three shares reaches its bar."""
        return all(self.shares[part] >= BARS[part] for part in PARTS)


def quickstart(
    workdir: str | Path,
    experiment: Experiment | None = None,
    *,
    count: int = 64,
    batch: int = 16,
    logging: Logging | None = None,
    command: str | None = None,
) -> Result:
    """Trains on the embedded worlds, samples held-out prompts, measures, and writes report.html.

    Args:
        workdir: the run's folder; an interrupted quickstart resumes there.
        experiment: of the world "moving"; None is vdit.quickstart.config.experiment().
        count: held-out prompts, at least 2.
        batch: videos that are sampled at once.
        logging: where progress goes.
        command: the command line, for the page.

    Returns:
        What was measured.

    Raises:
        ConfigError: the experiment has other data, or `count` is below 2.
    """
    experiment = config.experiment() if experiment is None else experiment
    _check(experiment, count)
    logging = logging or Logging()
    console = logging.console or Console()
    space = Workspace(workdir)
    space.check(experiment, names=("statistics.json", "seconds.json", "report.html", "results.json"))
    check_run(experiment, space)
    space.root.mkdir(parents=True, exist_ok=True)
    timer = StepTimer(space.root / "seconds.json", expected_seconds(experiment, count))
    guide = _Guide(console, experiment, timer, count)
    guide.welcome(space)

    for stage in STAGES:
        guide.announce(stage)
        with timer.step(stage):
            run(experiment, space, stages=(stage,), logging=logging)
    guide.announce("expander")
    with timer.step("expander"):
        _train_expander(space, experiment)
    guide.announce("samples")
    wanted = config.held_out(experiment, count)
    with timer.step("samples"):
        generator = load(space.root)
        display = make_display("samples", count, console=console)
        prompts = [each.prompt for each in wanted]
        videos = sample_videos(generator, prompts, batch=batch, progress=lambda done: display.update(done, {}))
        display.close()
    guide.announce("page")
    with timer.step("page"):
        world = config.held_out_world(experiment, count)
        rendered = np.stack([world[i].video for i in range(count)])
        measured, samples = measure(generator, wanted, videos, rendered, batch=batch)

    figures = _figures(generator, space, timer.seconds, count)
    limit = experiment.text.max_length
    cut = sum(generator.tokenizer.length(prompt) > limit for prompt in prompts)
    if cut:
        figures[f"prompts cut to {limit} pieces"] = cut
    page = space.root / "report.html"
    made = {"command": command or f"vdit.quickstart.run.quickstart({str(space.root)!r})"} | circumstances()
    write_report(
        page, measured, samples, space=space, experiment=experiment, figures=figures, seconds=timer.seconds, made=made
    )
    result = Result(**vars(measured), seconds=dict(timer.seconds), figures=figures, page=page)
    _save(result, samples, space.root / "results.json", made)
    guide.summary(result)
    return result


def _check(experiment: Experiment, count: int) -> None:
    source = experiment.data.source
    if getattr(source, "world", None) != "moving":
        raise ConfigError(f"data.source={source!r}: the quickstart measures the world 'moving' only; "
                          "for other data use vdit train")  # fmt: skip
    if count < 2:
        raise ConfigError(f"count={count}: must be at least 2, to hold videos against each other's prompts")


def _train_expander(space: Workspace, experiment: Experiment) -> None:
    """Gives the run an expander of prompts, unless it has one. Short runs, as tests have them, get a short training."""
    if not paths.exists(space.root / FOLDER):
        steps = min(EXPANDER_STEPS, experiment.dit_train.steps)
        train_run_expander(space.root, ExpanderConfig(steps=steps, seed=experiment.seed))


class _Guide:
    """Says in plain words what happens, and how long all of the rest will take."""

    def __init__(self, console: Console, experiment: Experiment, timer: StepTimer, count: int):
        self._console, self._timer = console, timer
        e = experiment
        self._words = {
            "vae": f"Train a video VAE: {e.vae_train.steps} steps on clips rendered on the fly.",
            "latents": f"Encode {e.latents.samples or e.data.source.count} clips and images into latents.",
            "tokenizer": "Train a tokenizer on their captions.",
            "dit": f"Train a diffusion transformer: {e.dit_train.steps} steps on packed rows of latents.",
            "expander": "Train a small language model that makes detailed captions of short prompts (vdit expand).",
            "samples": f"Sample {count} prompts whose combination of colour, shape and direction it never saw.",
            "page": "Detect what the samples show, and write the page.",
        }

    def welcome(self, space: Workspace) -> None:
        self._say(f"vdit quickstart: a text-to-video model from scratch, in {space.root}")
        device = jax.devices()[0]
        self._say(f"on {device.platform} ({_cores()} CPU cores), in all about {clock_face(self._timer.left())} min")

    def announce(self, step: str) -> None:
        left = clock_face(self._timer.left())
        self._say(f"\n[{STEPS.index(step) + 1}/{len(STEPS)}] {self._words[step]}  (about {left} left in all)")

    def summary(self, result: Result) -> None:
        rows = (
            ("samples of held-out prompts", result.shares),
            ("real videos through the VAE", result.rendered),
            ("samples, prompts shuffled", result.shuffled),
            ("(chance)", result.chance),
        )
        self._say(f"\n{'share of videos with the right':32}" + "".join(f"{part:>11}" for part in (*PARTS, "all")))
        for name, shares in rows:
            self._say(f"{name:32}" + "".join(f"{shares[part]:11.1%}" for part in (*PARTS, "all")))
        total = clock_face(sum(result.seconds.values()))
        self._say(f"\nedges {result.sharpness:.0%} as sharp as the real, {result.rendered_sharpness:.0%} after the VAE")
        self._say(f"VAE {result.psnr:.1f} dB; {total} min in all. Open {result.page}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _figures(generator: Generator, space: Workspace, seconds: dict[str, float], count: int) -> dict[str, float]:
    """Sizes and speeds, by name."""
    logs = {stage: read_json_lines(space.logs / f"{stage}.jsonl") for stage in ("vae", "dit")}
    experiment = generator.experiment
    speed = {stage: _median(lines, "speed/steps_per_second") for stage, lines in logs.items()}
    clips = len(LatentStore(space.latents))
    figures = {
        "VAE parameters": _parameters(generator.vae.params),
        "text encoder parameters": _parameters(generator.params["text"]),
        "DiT parameters": _parameters(generator.params["dit"]),
        "VAE clips/s, training": speed["vae"] * experiment.vae_train.batch_size,
        "clips/s, encoding": clips / max(seconds["latents"], 1e-9),
        "DiT tokens/s, training": _median(logs["dit"], "speed/tokens_per_second"),
        "share of useful tokens": float(np.mean([line["useful"] for line in logs["dit"]])),
        "videos/s, sampling": count / max(seconds["samples"], 1e-9),
    }
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def _median(lines: list[dict], key: str) -> float:
    values = [line[key] for line in lines if key in line]
    return float(np.median(values)) if values else float("nan")


def _parameters(tree) -> int:
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def circumstances() -> dict[str, str]:
    """When and on what this process runs: name -> text."""
    devices = jax.devices()
    kinds = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    memory = total_memory()
    memory = f", {memory / 2**30:.0f} GiB of memory" if memory else ""
    return {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "versions": f"vdit {vdit.__version__}, jax {jax.__version__}, Python {platform.python_version()}",
        "hardware": f"{processor_name()}, {_cores()} cores{memory}",
        "devices": kinds,
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor_name() -> str:
    """As the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _save(result: Result, samples: Samples, path: Path, made: dict[str, str]) -> None:
    right = [dict(zip(PARTS, row)) for row in samples.right.tolist()]
    rows = [{**each._asdict(), "right": row} for each, row in zip(samples.wanted, right)]
    values = vars(result) | {"page": result.page.name, "passed": result.passed, "made": made}
    values["samples"] = rows
    with writing(path):
        path.write_text(json.dumps(values, indent=1) + "\n")


class StepTimer:
    """Seconds of each step. A file keeps them, so that they add up over interruptions.

    path: the file.
    expected: step -> seconds, a guess (`expected_seconds`).
    """

    def __init__(self, path: Path, expected: Mapping[str, float]):
        self._path = path
        self._expected = dict(expected)
        self.seconds: dict[str, float] = _read_seconds(path)
        self._done: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times the step in the body."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._done[name] = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + self._done[name]
            with contextlib.suppress(OSError):  # a record of times is no reason to end a run
                self._path.write_text(json.dumps(self.seconds, indent=1) + "\n")

    def left(self) -> float:
        """Seconds to the end: what the remaining steps are expected to take, at the pace of the finished ones."""
        done = sum(self._expected[name] for name in self._done)
        # A step that was skipped, being complete already, says nothing of the pace.
        pace = max(sum(self._done.values()) / done, 0.3) if done else 1.0
        return pace * sum(seconds for name, seconds in self._expected.items() if name not in self._done)


def expected_seconds(experiment: Experiment, samples: int) -> dict[str, float]:
    """A guess of how long each step takes, before anything is measured.

    Args:
        experiment: what is trained.
        samples: prompts that are sampled.

    Returns:
        Step -> seconds.
    """
    data, clips, sample = experiment.data, experiment.vae_clips, experiment.sample
    window = clips.frames * clips.size[0] * clips.size[1]
    # The decoder alone costs two thirds of a step.
    passes = experiment.vae_train.steps * (1 - getattr(experiment.vae_loss, "decoder_share", 0.0) / 3)
    clip = sum(data.frames) / len(data.frames) * sum(data.pixel_budgets) / len(data.pixel_budgets)
    rows = experiment.dit_train.batch_size * data.row_tokens
    video = sample.frames * sample.size[0] * sample.size[1]
    latent = experiment.vae.latent_shape(sample.frames, *sample.size)
    patch = experiment.backbone.patch
    tokens = latent[0] * latent[1] * latent[2] // (patch[0] * patch[1] * patch[2])

    def gflop(tokens: float) -> float:
        return experiment.backbone.flops(tokens, tokens / samples, experiment.text.max_length) / 1e9

    calls = samples * sample.steps * (2 if sample.guidance != 1 else 1)
    return {
        "vae": _COMPILE + _PER_PIXEL_TRAINED * passes * experiment.vae_train.batch_size * window,
        "latents": _COMPILE + _PER_PIXEL_ENCODED * (experiment.latents.samples or data.source.count) * clip,
        "tokenizer": 1.0,
        "dit": _COMPILE + _PER_GFLOP * experiment.dit_train.steps * 3 * gflop(rows),
        "expander": _COMPILE + 15.0,
        "samples": _COMPILE + _PER_GFLOP * calls * gflop(tokens),
        "page": 4.0 + 2 * _PER_PIXEL_ENCODED * samples * video,
    }


def _read_seconds(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(seconds) for name, seconds in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # times are only reported: a damaged file costs nothing else
