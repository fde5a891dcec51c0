"""What a run tells its user, and where its figures go."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from vdit.dist.multihost import is_first
from vdit.train.metrics import JsonLines, TensorBoard, WandB, Writer
from vdit.train.watch import Watch
from vdit.train.workspace import Workspace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """Where figures go beside the JSON lines. wandb: options of wandb.init, or None for no W&B.

    watch: watches this process, entered already; None makes one for each call of `run`.
    """

    tensorboard: bool = True
    wandb: dict | None = None
    console: Console | None = None
    watch: Watch | None = None

    def say(self, text: str) -> None:
        """A line for the user, from the first host."""
        if is_first():
            (self.console or Console()).print(text, markup=False)


def make_writers(stage: str, workspace: Workspace, logging: Logging, step: int) -> list[Writer]:
    """The first host's, of a stage that goes on from `step`; the others have none."""
    if not is_first():
        return []
    writers: list[Writer] = [JsonLines(workspace.logs / f"{stage}.jsonl", resume_step=step)]
    if logging.tensorboard:
        writers.append(TensorBoard(workspace.logs / stage, resume_step=step))
    if logging.wandb is not None:
        writers.append(WandB(**{"group": workspace.root.name, "job_type": stage, **logging.wandb}))
    return writers


def report_skipped(source, logging: Logging) -> None:
    """Which files of a source could not be read, and why: the first twenty on the console, all in the log."""
    skipped = source.report()
    if skipped:
        logging.say(f"skipped {len(skipped)} file(s) that cannot be read:")
    for number, (name, reason) in enumerate(skipped.items()):
        logging.watch.note(f"skipped: {name}: {reason}")
        if number < 20:
            logging.say(f"  {name}: {reason}")
