"""Where a run keeps its things: one folder, and what each file in it is."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdit.config import from_json, to_json
from vdit.errors import CheckpointError, OutputError
from vdit.outputs import check_folder, is_same
from vdit.text import Tokenizer, make_tokenizer
from vdit.text.labels import LabelTokenizer
from vdit.train.experiment import Experiment
from vdit.vae.statistics import check_statistics

EXPERIMENT = "experiment.json"


class Workspace:
    """A run's folder.

    experiment.json   the resolved experiment: what `vdit.load` rebuilds the model from
    tokenizer.model   sentencepiece; of an imported model with tokenizer_config.json beside it
    vae/, dit/        checkpoints of the two networks
    statistics.json   mean and standard deviation of the VAE's latents, by channel
    latents/          encoded videos
    logs/             metrics (vae.jsonl, dit.jsonl), TensorBoard events, costs.json
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer.model"

    @property
    def vae(self) -> Path:
        return self.root / "vae"

    @property
    def dit(self) -> Path:
        return self.root / "dit"

    @property
    def latents(self) -> Path:
        return self.root / "latents"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def experiment(self) -> Experiment:
        """The experiment as it was saved; CheckpointError if the folder holds no run."""
        path = self.root / EXPERIMENT
        try:
            return from_json(Experiment, path.read_text())
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.root} holds no trained model (experiment.json is missing): give the folder of a vdit run"
            ) from None
        except UnicodeDecodeError:
            raise CheckpointError(f"{path} is damaged (not text): restore it, or train again") from None

    def check(self, experiment: Experiment, names: Sequence[str] = ("statistics.json",)) -> None:
        """Refuses a folder that a run cannot be trained in, before anything is written.

        names: files of a run that would be replaced.

        Raises:
            OutputError: nothing can be written there, it is the folder of videos or the model that training starts
                from, the videos are in a folder that the run fills, or it holds such files and no run.
        """
        check_folder(self.root, name=f"the run's folder {self.root}")
        for kind, path in (("the folder of videos", experiment.data.path), ("start_from", experiment.start_from)):
            parts = [self.root, self.vae, self.dit, self.latents, self.logs]
            if path is not None and any(is_same(path, part) for part in parts):
                raise OutputError(f"the run's folder {self.root}: {kind}, {path}, was given and is not written to; "
                                  "name another folder")  # fmt: skip
        if not (self.root / EXPERIMENT).exists():
            there = next((name for name in names if (self.root / name).exists()), None)
            if there is not None:
                raise OutputError(f"{self.root / there}: is there already, and is not of a run; name another folder")

    def save_experiment(self, experiment: Experiment) -> None:
        _write(self.root / EXPERIMENT, to_json(experiment) + "\n")

    def open_tokenizer(self, experiment: Experiment) -> Tokenizer:
        """What turns prompts into tokens: texts, or class labels for a model without text."""
        return open_tokenizer(experiment, self.tokenizer)

    def statistics(self) -> dict[str, np.ndarray] | None:
        """{"mean": float32 [c], "std": float32 [c]} of the VAE's latents; None before they are measured."""
        path = self.root / "statistics.json"
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}): encode the latents again") from None
        return check_statistics(data, name=str(path), error=CheckpointError)

    def save_statistics(self, mean: list[float], std: list[float]) -> None:
        _write(self.root / "statistics.json", json.dumps({"mean": mean, "std": std}, indent=1) + "\n")


    def costs(self) -> dict[str, dict[str, float]]:
        """Stage -> {"seconds": over all its runs, "peak_memory": bytes held by the process at most}."""
        path = self.logs / "costs.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def add_cost(self, stage: str, seconds: float, peak_memory: int) -> None:
        """Count what a stage, or a part of one that was resumed, has cost."""
        costs = self.costs()
        before = costs.get(stage, {"seconds": 0.0, "peak_memory": 0})
        costs[stage] = {
            "seconds": before["seconds"] + seconds,
            "peak_memory": max(before["peak_memory"], peak_memory),
        }
        _write(self.logs / "costs.json", json.dumps(costs, indent=1) + "\n")


def open_tokenizer(experiment: Experiment, path: Path | None) -> Tokenizer:
    """What turns prompts into tokens. path: the sentencepiece file; not read where prompts are classes."""
    if experiment.network.uses_text:
        return make_tokenizer(experiment.text, path)
    return LabelTokenizer(
        classes=experiment.dit.classes, first=experiment.first_label, names=experiment.label_names
    )


def _write(path: Path, text: str) -> None:
    """Write all of a file or nothing of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
