"""Whether a stage of a run is done, begun, or of another config than now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from vdit import config as config_tools
from vdit import paths
from vdit.checkpoint import Checkpointer, check_config, find_step, load_meta, load_progress, say_once
from vdit.checkpoint.files import steps_in
from vdit.checkpoint.hosts import on_first
from vdit.checkpoint.integrity import is_finalized
from vdit.errors import CheckpointError, TrainingError
from vdit.experiment.experiment import Experiment
from vdit.experiment.training import TrainConfig
from vdit.experiment.upgrade import upgrade
from vdit.train.pretrained import check_pretrained, step_identity
from vdit.train.workspace import EXPERIMENT, FILES, SAMPLED, Workspace

# What a resumed run may change without becoming another run.
MAY_CHANGE = tuple(
    f"{stage}.{field}" for stage in ("vae_train", "dit_train")
    for field in ("steps", "save_every", "keep", "log_every", "sample_every", "max_nonfinite", "stall_seconds",
                  "best_metric", "best_is")
) + ("sample", "evaluators", "held_out", "mesh", "topology", "start_from",
     "data.threads", "data.read_ahead", "data.prefetch")  # fmt: skip


def is_complete(folder: Path, config: TrainConfig, experiment: Experiment) -> bool:
    """Whether a stage has done its steps; refuses to go on with a run of another config. The same on all hosts.

    TrainingError where it has done them, but skipped the last ones.
    """
    step = last_step(folder)
    if step is None:
        return False
    meta = load_meta(folder)
    check_config(as_of_now(meta["config"]), config_tools.to_dict(experiment), may_change=_free(folder.name))
    if folder.name == "dit":
        check_pretrained(experiment, meta.get("base"))
        Workspace(folder.parent).check_files(meta.get(FILES, {}), names=SAMPLED)
    if step < config.steps:
        return False
    row = int(load_progress(folder).get("skipped_in_a_row", 0))
    if row:
        raise TrainingError(
            f"{folder}: the last {row} of {step} steps were skipped, as their loss or gradient was not finite: train "
            f"on (--cfg.{folder.name}_train.steps={step + max(row, 100)}), or remove that folder and change the cause"
        )
    return True


def outlook(stage: str, workspace: Workspace) -> str:
    """What the command that trains this run will do when it is started again, after a stop in a stage."""
    kept = ""
    folder = {"vae": workspace.vae, "dit": workspace.dit}.get(stage)
    if folder is not None and paths.is_dir(folder):
        saved = [step for step in steps_in(folder) if is_finalized(folder / str(step))]
        kept = f"goes on from step {max(saved)} of stage {stage}" if saved else ""
    elif stage == "latents" and any(workspace.root.glob(f".{workspace.latents.name}.*.writing/part-*.json")):
        kept = "goes on with the latents"
    return f"the same command {kept or f'begins stage {stage}, of which nothing was saved yet'}"


def last_step(folder: Path) -> int | None:
    """The step of the checkpoint to go on from, if there is one. The first host looks: others may see files later."""
    if not on_first(lambda: paths.is_dir(folder)):
        return None
    with Checkpointer(folder) as checkpointer:
        return checkpointer.latest_step()


def as_of_now(saved: dict[str, Any]) -> dict[str, Any]:
    """Upgrade an old saved config: fields added since get their defaults, which reproduce the old behaviour."""
    try:
        return config_tools.to_dict(config_tools.from_dict(Experiment, upgrade(saved, quiet=True)))
    except config_tools.ConfigError:
        return saved  # with fields that are no more: the comparison names them


def check_trained_run(experiment: Experiment, space: Workspace, *, step: int | None = None) -> None:
    """Refuses a run whose files are not those that its DiT was trained with; says so in one line of runs of old, whose
    files have no checksums.

    experiment: what experiment.json says. step: of the DiT; the last one if None.
    """
    find_step(space.dit, step, all_hosts=jax.process_count() > 1)  # hosts share the reading, and remember
    meta = load_meta(space.dit, step=step)
    now = config_tools.to_dict(experiment)
    try:
        check_config(as_of_now(meta["config"]) if "config" in meta else now, now, may_change=_free("dit"))
    except CheckpointError as error:
        rule = f"is damaged, or {space.dit} is another run's"
        raise CheckpointError(f"{space.root / EXPERIMENT}: {rule}: {error}") from None
    if space.statistics() is None:
        raise CheckpointError(
            f"{space.root / 'statistics.json'}: is missing, and without it videos come out wrong; restore it from a "
            "copy of the run, or encode the latents again (vdit train)"
        )
    space.check_files(meta.get(FILES, {}), names=SAMPLED)
    _check_vae(space, meta.get("vae"))
    if not space.protected(meta):
        say_once(
            f"{space.root}: comes from a version of vdit without checksums of experiment.json, statistics.json and "
            "tokenizer.model: damage to them goes unnoticed"
        )


def _check_vae(space: Workspace, saved: dict[str, Any] | None) -> None:
    if saved is None:
        return
    now = step_identity(space.vae)
    if now["step"] != saved["step"]:
        say_once(f"{space.vae}: step {now['step']} is used, the DiT was trained on latents of step {saved['step']}")
    elif now != saved:
        raise CheckpointError(f"{space.vae}: is not the autoencoder that the DiT was trained on: give the run's own")


def _free(stage: str) -> tuple[str, ...]:
    """Keys that a finished or resumed stage does not depend on."""
    later = ("latents", "text", "text_dropout", "backbone", "dit_train", "diffusion", "canvases", "data")
    # The latents' number: their own stage refuses one that the transformer cannot go on with, and says what changed.
    # That captions are encoded beforehand changes what is stored, not what is trained.
    earlier = ("vae_train", "vae_loss", "discriminator", "vae_clips", "latents.samples", "latents.text",
               "latents.text_dtype")  # fmt: skip
    return MAY_CHANGE + (later if stage == "vae" else earlier)
