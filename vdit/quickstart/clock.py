"""How long each step of the quickstart took, and about how long the rest will take."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from vdit.experiment.experiment import Experiment

# Seconds on two cores of a 2020s server, by unit of work; only their ratios matter after the first step.
_PER_PIXEL_TRAINED = 4.2e-7
_PER_PIXEL_ENCODED = 4e-8
_PER_GFLOP = 0.016
_COMPILE = 10.0


class Clock:
    """Seconds of each step, kept in a file so that they add up over interruptions."""

    def __init__(self, path: Path, expected: Mapping[str, float]):
        self._path = path
        self._expected = dict(expected)
        self.seconds: dict[str, float] = _read(path)
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
        """Seconds to the end: what is expected of the steps to come, at the pace of those that are done."""
        done = sum(self._expected[name] for name in self._done)
        # A step that was skipped, being complete already, says nothing of the pace.
        pace = max(sum(self._done.values()) / done, 0.3) if done else 1.0
        return pace * sum(seconds for name, seconds in self._expected.items() if name not in self._done)


def expected_seconds(experiment: Experiment, samples: int) -> dict[str, float]:
    """A guess, before anything is measured."""
    data, clips, sample = experiment.data, experiment.vae_clips, experiment.sample
    window = clips.frames * clips.size[0] * clips.size[1]
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
        "vae": _COMPILE + _PER_PIXEL_TRAINED * experiment.vae_train.steps * experiment.vae_train.batch_size * window,
        "latents": _COMPILE + _PER_PIXEL_ENCODED * (experiment.latents.samples or data.source.count) * clip,
        "tokenizer": 1.0,
        "dit": _COMPILE + _PER_GFLOP * experiment.dit_train.steps * 3 * gflop(rows),
        "samples": _COMPILE + _PER_GFLOP * calls * gflop(tokens),
        "page": 4.0 + 2 * _PER_PIXEL_ENCODED * samples * video,
    }


def _read(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(seconds) for name, seconds in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # times are only reported: a damaged file costs nothing else
