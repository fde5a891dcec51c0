"""What the claims share: models of one experiment with changes, trained once, and figures of them with intervals."""

from __future__ import annotations

import dataclasses
import io
import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vdit import paths
from vdit.experiment.experiment import Experiment
from vdit.train.stages import Logging, run
from vdit.train.workspace import Workspace

PREPARED = ("vae", "latents", "tokenizer")


def quiet() -> Logging:
    """Training that prints nothing."""
    return Logging(tensorboard=False, console=Console(file=io.StringIO()))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prepare(root: Path, experiment: Experiment, vae: Workspace | None = None) -> Workspace:
    """The folder of what several models are trained on: a VAE, or that of another folder, latents and a tokenizer."""
    space, stages = Workspace(root), PREPARED
    if vae is not None:
        stages = PREPARED[1:]
        if not paths.exists(space.vae):
            space.save_experiment(experiment)
            paths.copy_folder(vae.vae, space.vae)
    run(experiment, space, stages=stages, logging=quiet())
    return space


def trained(root: Path, experiment: Experiment, common: Workspace, measure: Callable[[Workspace], dict]) -> dict:
    """One model: trained on what `common` holds unless it is there, and measured once.

    Args:
        root: its folder.
        experiment: differs from that of `common` in nothing that the VAE and the latents come from.
        common: made by `prepare`.
        measure: figures of the finished run, for JSON.

    Returns:
        The figures, with "cpu_seconds" of training and of measuring.
    """
    space, file = Workspace(root), root / "measured.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    if not paths.exists(space.latents):
        space.save_experiment(experiment)
        for name in ("vae", "latents"):
            paths.copy_folder(getattr(common, name), getattr(space, name))
        for name in ("statistics.json", "tokenizer.model"):
            paths.copy_file(common.root / name, space.root / name)
    before = cpu_seconds()
    run(experiment, space, stages=("dit",), logging=quiet())
    after = cpu_seconds()
    found = measure(space)
    found["cpu_seconds"] = {"train": round(after - before), "measure": round(cpu_seconds() - after)}
    paths.write_atomic(file, json.dumps(found) + "\n")
    return found


def last_logged(space: Workspace, name: str) -> float:
    """The last value that was logged under a name."""
    lines = (space.logs / "dit.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry[name] for entry in map(json.loads, lines) if name in entry][-1]


def interval(values: Sequence[np.ndarray], draws: int = 2000) -> tuple[float, float, float]:
    """(mean, low, high): a mean and its 95% bootstrap interval over seeds and videos.

    Args:
        values: [videos] of each seed; the videos are the same. NaN is a video without a value.
        draws: resamplings.
    """
    table = np.asarray(values, np.float64)
    random = np.random.default_rng(0)
    seeds = random.integers(0, len(table), (draws, len(table)))
    videos = random.integers(0, table.shape[1], (draws, table.shape[1]))
    means = np.array([np.nanmean(table[s][:, v]) for s, v in zip(seeds, videos)])
    return float(np.nanmean(table)), *np.nanpercentile(means, (2.5, 97.5)).tolist()


def steps_of(experiment: Experiment, steps: int | None, **changes: Any) -> Experiment:
    """The experiment with another number of DiT steps (None: its own) and other fields of its training."""
    steps = steps or experiment.dit_train.steps
    training = dataclasses.replace(experiment.dit_train, steps=steps, save_every=steps, **changes)
    return dataclasses.replace(experiment, dit_train=training)


def save(folder: Path, results: Mapping[str, Any], table: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Writes results.json and table.md (the first row is its head), and prints the table with the notes."""
    head, *rows = table
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    text = "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"
    paths.write_atomic(folder / "results.json", json.dumps(results, indent=1) + "\n")
    paths.write_atomic(folder / "table.md", text)
    print(text, end="")


def figure(panels: int, **more: Any) -> tuple[Any, Sequence[Any]]:
    """A matplotlib figure of panels side by side, without a display."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    made, axes = pyplot.subplots(1, panels, figsize=(4.6 * panels, 3.6), squeeze=False, **more)
    return made, axes[0]
