"""What a run tells its user, and where its figures go."""

from __future__ import annotations

import dataclasses
import sys

from rich.console import Console

from vdit.data.data_source import open_source
from vdit.data.latents import LatentStore
from vdit.data.sources import DataSummary, Source
from vdit.dist.multihost import is_primary_host
from vdit.errors import DataError, one_line
from vdit.experiment.experiment import Experiment
from vdit.models.text import Tokenizer
from vdit.reprs import short_repr
from vdit.train.metrics import JsonLines, ResilientWriter, TensorBoard, WandB, Writer
from vdit.train.monitor import RunMonitor
from vdit.train.workspace import Workspace

CAPTIONS_COUNTED = 10_000  # clips whose captions are looked at for their length


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """Where figures go beside the JSON lines.

    tensorboard: write TensorBoard events. wandb: options of wandb.init; None for no W&B.
    console: where progress is shown; None is the terminal.
    watch: watches this process, entered already; None makes one for each call of `run`.
    """

    tensorboard: bool = True
    wandb: dict | None = None
    console: Console | None = None
    watch: RunMonitor | None = None

    def say(self, text: str) -> None:
        """A line for the user, from the first host."""
        if is_primary_host():
            (self.console or Console()).print(text, markup=False, soft_wrap=True)


def make_writers(stage: str, workspace: Workspace, logging: Logging, step: int) -> list[Writer]:
    """The first host's, of a stage that goes on from `step`; the others have none. Their failures end no run."""
    if not is_primary_host():
        return []
    lines, events = workspace.logs / f"{stage}.jsonl", workspace.logs / stage
    openers = {str(lines): lambda after: JsonLines(lines, resume_step=after)}
    if logging.tensorboard:
        openers[f"{events} (TensorBoard)"] = lambda after: TensorBoard(events, resume_step=after)
    if logging.wandb is not None:
        options = {"group": workspace.root.name, "job_type": stage, **logging.wandb}
        openers["Weights & Biases"] = lambda after: WandB(**options)
    warn = logging.watch.warn
    return [ResilientWriter(name, open, step=step, warn=warn) for name, open in openers.items()]


class TrainingVideos:
    """The videos that an experiment trains on, opened once for all stages; what was found in them is said once.

    strict: refuse data of which a video is not used, or has no caption that the model could learn from.
    """

    def __init__(self, experiment: Experiment, logging: Logging, *, strict: bool = False):
        self._experiment, self._logging, self._strict = experiment, logging, strict
        self._source: Source | None = None
        self._told: set[str] = set()

    def open(self) -> Source:
        """The source, the same at every call; DataError if it cannot be opened, or is not as `strict` asks."""
        if self._source is None:
            experiment = self._experiment
            source = open_source(experiment.data, seed=experiment.seed, exclude=experiment.holdout)
            if source.summary is not None:
                self._tell(source.summary)
            self._told.update(source.report())
            self._source = source
        return self._source

    def tell_broken(self) -> None:
        """Which files could not be read since: the first twenty on the console, all in the log."""
        broken = {} if self._source is None else self._source.report()
        new = {name: reason for name, reason in broken.items() if name not in self._told}
        self._told.update(new)
        if new:
            self._logging.say(f"skipped {len(new)} more, others took their place:")
        for number, (name, reason) in enumerate(new.items()):
            self._logging.watch.note(one_line(f"skipped: {name}: {reason}"))
            if number < 20:
                self._logging.say(f"  {one_line(f'{name}: {reason}')}")

    def _tell(self, summary: DataSummary) -> None:
        for line in summary.lines():
            self._logging.say(line)
        for line in summary.lines(most=sys.maxsize)[1:]:
            self._logging.watch.note(line.strip())
        uncaptioned = summary.uncaptioned if self._experiment.network.uses_text else ()
        if self._strict and (summary.skipped or uncaptioned):
            first = next(iter(summary.skipped.items()), None)
            example = f"{first[0]}: {first[1]}" if first else f"{uncaptioned[0]} has no caption"
            raise DataError(
                f"--strict: of {summary.found} videos in {summary.place}, {len(summary.skipped)} are not used and "
                f"{len(uncaptioned)} have no caption; for one, {example}"
            )


def report_cut_captions(store: LatentStore, tokenizer: Tokenizer, limit: int, logging: Logging) -> None:
    """How many captions are longer than the model reads, once, before training; of the first CAPTIONS_COUNTED clips."""
    if not is_primary_host():
        return
    clips = min(len(store), CAPTIONS_COUNTED)
    lengths = {text: 0 for i in range(clips) for text in store[i]["captions"]}
    lengths = [tokenizer.length(text) for text in lengths]
    cut = [length for length in lengths if length > limit]
    if cut:
        part = "" if clips == len(store) else f" (of the first {clips} clips)"
        logging.say(
            f"captions: {len(cut)} of {len(lengths)} different ones{part} have more than text.max_length={limit} "
            f"pieces and are cut there; the longest has {max(cut)}"
        )
