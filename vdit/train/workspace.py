"""Where a run keeps its things: one folder, and what each file in it is."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdit import buckets, paths
from vdit.checkpoint import checksums, say_once
from vdit.config import from_dict, to_dict
from vdit.errors import CheckpointError, ConfigError, DataError, OutputError, reason
from vdit.experiment.experiment import Experiment
from vdit.experiment.upgrade import upgrade
from vdit.models.text import Tokenizer, make_tokenizer
from vdit.models.text.tokenizer import LabelTokenizer
from vdit.models.vae.statistics import check_statistics
from vdit.outputs import check_folder, is_same
from vdit.paths import MIB, read_json

EXPERIMENT = "experiment.json"
PUBLIC = "public"  # an imported model's small files, for an export
# What a sample depends on besides experiment.json, which holds a checksum of its own, and the two networks.
SAMPLED = ("statistics.json", "tokenizer.model", "tokenizer_config.json")
FILES, SUM = "files", "sha256"  # keys: of a step's meta.json, and of experiment.json
SMALL = 64 * MIB
_COST = ("seconds", "peak_memory")
_REMOVE = "remove it: it only says what the run has cost"
RESTORE = "restore it from a copy of the run"


class Workspace:
    """A run's folder, on a disk or in a bucket (gs://, s3://).

    Logs are files that grow, which a bucket does not have: those of a run in a bucket are written in a folder of this
    disk, and copied to the bucket before every save and at the end (`RemoteLogs`).

    experiment.json   the resolved experiment: what `vdit.load` rebuilds the model from
    tokenizer.model   sentencepiece; of an imported model with tokenizer_config.json beside it
    vae/, dit/        checkpoints of the two networks
    statistics.json   mean and standard deviation of the VAE's latents, by channel
    latents/          encoded videos
    texts/            encoded captions, where the text encoder is not trained (latents.text)
    logs/             metrics (vae.jsonl, dit.jsonl), TensorBoard events, costs.json
    """

    def __init__(self, root: str | Path):
        self.root = paths.path(root)

    def __repr__(self) -> str:
        return f"Workspace('{self.root}')"

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
    def texts(self) -> Path:
        return self.root / "texts"

    @property
    def logs(self) -> Path:
        """A folder on this disk."""
        return self.root / "logs" if isinstance(self.root, Path) else self.remote_logs.folder

    @functools.cached_property
    def remote_logs(self) -> RemoteLogs:
        """The logs of a run in a bucket; asking for them copies here what is there."""
        return RemoteLogs(str(self.root / "logs"))

    @property
    def is_remote(self) -> bool:
        """Whether the run is in a bucket."""
        return not isinstance(self.root, Path)

    def experiment(self) -> Experiment:
        """The experiment as it was saved; CheckpointError if the folder holds no run."""
        values, _ = self._read_experiment()
        try:
            return from_dict(Experiment, upgrade(values))
        except ConfigError as error:
            raise ConfigError(f"{self.root / EXPERIMENT}: {error}") from None

    def _read_experiment(self) -> tuple[dict[str, Any], str | None]:
        """The values in experiment.json, and the checksum of them that it holds: None in runs of old."""
        path = self.root / EXPERIMENT
        if not paths.is_file(path):
            raise CheckpointError(
                f"{self.root} holds no trained model (experiment.json is missing): give the folder of a vdit run"
            )
        values = read_json(path, limit=SMALL, error=CheckpointError, fix=RESTORE)
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: is damaged: it is no JSON object; {RESTORE}")
        digest = values.pop(SUM, None)
        if digest not in (None, _digest(values)):
            raise CheckpointError(
                f"{path}: is damaged: its values do not have its checksum; {RESTORE}; to change a setting, give "
                "--cfg.KEY=VALUE to vdit train"
            )
        return values, digest

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
        if not paths.is_file(self.root / EXPERIMENT):
            there = next((name for name in names if paths.exists(self.root / name)), None)
            if there is not None:
                raise OutputError(f"{self.root / there}: is there already, and is not of a run; name another folder")

    def save_experiment(self, experiment: Experiment) -> None:
        values = to_dict(experiment)
        paths.write_atomic(self.root / EXPERIMENT, json.dumps(values | {SUM: _digest(values)}, indent=2) + "\n")

    def file_sums(self) -> dict[str, str | None]:
        """Name -> sha256 of each small file that belongs to the model; None where it is not there.

        Each step of the DiT holds them, under the step's own checksums. public/ is what an imported model's export
        gives back.
        """
        kept = [f"{PUBLIC}/{name}" for name in paths.files_below(self.root / PUBLIC)]
        return checksums(self.root, [*SAMPLED, *kept])

    def check_files(self, expected: Mapping[str, str | None], *, names: Collection[str] | None = None) -> None:
        """CheckpointError unless the files are those that `file_sums` saw. names: look at these only; None: at all."""
        expected = {name: digest for name, digest in expected.items() if digest and (names is None or name in names)}
        for name, digest in checksums(self.root, expected).items():
            if digest != expected[name]:
                path = self.root / name
                rule = "is damaged: it is not the file that the checkpoint was made with" if digest else "is missing"
                raise CheckpointError(f"{path}: {rule}; {RESTORE}")

    def protected(self, meta: Mapping[str, Any]) -> bool:
        """Whether experiment.json and the other files are under checksums. meta: of a step of the DiT."""
        return FILES in meta and self._read_experiment()[1] is not None

    def open_tokenizer(self, experiment: Experiment) -> Tokenizer:
        """What turns prompts into tokens: texts, or class labels for a model without text."""
        return open_tokenizer(experiment, self.tokenizer)

    def statistics(self) -> dict[str, np.ndarray] | None:
        """{"mean": float32 [c], "std": float32 [c]} of the VAE's latents; None before they are measured."""
        path = self.root / "statistics.json"
        if not paths.is_file(path):
            return None
        data = read_json(path, limit=SMALL, error=CheckpointError, fix=RESTORE)
        return check_statistics(data, name=str(path), error=CheckpointError)

    def save_statistics(self, mean: list[float], std: list[float]) -> None:
        paths.write_atomic(self.root / "statistics.json", json.dumps({"mean": mean, "std": std}, indent=1) + "\n")

    def costs(self) -> dict[str, dict[str, float]]:
        """Stage -> {"seconds": over all its runs, "peak_memory": bytes held by the process at most}."""
        path = self.logs / "costs.json"
        if not path.exists():
            return {}
        costs = read_json(path, limit=SMALL, error=DataError, fix=_REMOVE)
        entries = costs.values() if isinstance(costs, dict) else [None]
        if not all(isinstance(e, dict) and all(isinstance(e.get(k), int | float) for k in _COST) for e in entries):
            raise DataError(f"{path}: must be an object of stages with {' and '.join(_COST)}; {_REMOVE}")
        return costs

    def add_cost(self, stage: str, seconds: float, peak_memory: int) -> None:
        """Count what a stage, or a part of one that was resumed, has cost."""
        try:
            costs = self.costs()
        except DataError as error:  # no reason to end a training
            say_once(f"{error}: costs are counted from here")
            costs = {}
        before = costs.get(stage, {"seconds": 0.0, "peak_memory": 0})
        costs[stage] = {
            "seconds": before["seconds"] + seconds,
            "peak_memory": max(before["peak_memory"], peak_memory),
        }
        paths.write_atomic(self.logs / "costs.json", json.dumps(costs, indent=1) + "\n")


def open_tokenizer(experiment: Experiment, path: Path | None) -> Tokenizer:
    """What turns prompts into tokens. path: the sentencepiece file; not read where prompts are classes."""
    if experiment.network.uses_text:
        return make_tokenizer(experiment.text, path)
    return LabelTokenizer(
        classes=experiment.network.classes, first=experiment.first_label, names=experiment.label_names
    )


def _digest(values: Mapping[str, Any]) -> str:
    """A checksum of JSON values, whatever the order and the layout of their text."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class RemoteLogs:
    """The logs of a run in a bucket: a folder here, whose changed files are copied there.

    As a Writer of a stage it is last, so that its `flush` sees what the others have flushed.
    """

    INTERVAL = 60.0  # seconds between copies where nothing asks for one

    def __init__(self, url: str):
        self._url = url
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.folder = buckets.home() / "logs" / digest / "logs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sent: dict[str, tuple | None] = {}
        self._warned, self._at = False, time.monotonic()
        for name, size in paths.files_below(url).items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size < size:  # this machine's own may be ahead
                paths.copy_file(f"{url}/{name}", file)
            self._sent[name] = paths.version_of(file) if file.stat().st_size == size else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        del step, values
        if time.monotonic() - self._at > self.INTERVAL:
            self.flush()

    def videos(self, step: int, name: str, videos: np.ndarray, fps: float) -> None:
        del step, name, videos, fps

    def flush(self) -> None:
        """Copies what has changed; says once if it cannot, since logs are no reason to end a training."""
        self._at = time.monotonic()
        try:
            for name in paths.files_below(self.folder):
                now = paths.version_of(self.folder / name)
                if self._sent.get(name) != now and self._is_mine(name):
                    paths.copy_file(self.folder / name, f"{self._url}/{name}")
                    self._sent[name] = now
        except (OSError, DataError) as error:
            if not self._warned:
                self._warned = True
                say_once(f"{self._url}: logs are not copied there: {reason(error)}; they are in {self.folder}")

    def close(self) -> None:
        self.flush()

    def _is_mine(self, name: str) -> bool:
        """Every host writes its own log, the first one all else."""
        host = re.search(r"host_(\d+)", name)
        return int(host[1]) == jax.process_index() if host else jax.process_index() == 0
