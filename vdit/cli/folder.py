"""The experiment behind `vdit train --data FOLDER`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vdit import paths
from vdit.data.captions import read_captions
from vdit.data.config import DataConfig
from vdit.data.curated import is_curated, read_curated_index
from vdit.data.data_source import CuratedSource, DataSource, FolderSource
from vdit.errors import DataError
from vdit.experiment.canvases import EVERY_TASK, CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import preset

CUTS = 2000  # latents to encode at least: a small folder gives several cuts of each video


def folder_experiment(path: str | Path) -> Experiment:
    """A small model of every task on a folder of videos, for one GPU or a patient CPU; all values can be overridden."""
    videos = _count(path)
    return Experiment(
        name=(paths.path(path).name if paths.is_remote(path) else Path(path).resolve().name) or "folder",
        data=DataConfig(
            source=_source(path),
            pixel_budgets=(64 * 64, 96 * 96, 128 * 128),
            frames=(1, 9, 17),
            fps=(8.0, 12.0),
            hflip=0.5,
            row_tokens=512,
            max_text_per_row=256,
            max_frames_per_row=64,
            max_clips_per_row=24,
        ),
        vae=preset("small"),
        vae_clips=VAETrainConfig(frames=9, size=(64, 64)),
        vae_train=TrainConfig(steps=2000, batch_size=8, ema_decay=0.99, optimizer=_optimizer(1e-3)),
        latents=LatentsConfig(samples=-(-CUTS // videos) * videos, latent_frames=1),
        text=TextConfig(vocab_size=2048, width=128, depth=2, heads=4),
        backbone=DiTConfig(width=256, depth=8, heads=4, position="both"),
        canvases=EVERY_TASK,
        dit_train=TrainConfig(steps=5000, batch_size=8, optimizer=_optimizer(5e-4)),
        sample=SampleConfig(frames=17, size=(96, 96), fps=8.0, steps=25, guidance=3.0),
    )


def on_folder(experiment: Experiment, path: str | Path, *, begun: bool = False) -> Experiment:
    """The same experiment on another folder of videos, none of it held out.

    A model that is trained from the beginning, by an experiment that says nothing of canvases, draws canvases of every
    task. One that starts from another model's weights keeps to what those were trained on.

    Args:
        begun: the experiment is that of a run: it keeps to its own canvases too.
    """
    data = dataclasses.replace(experiment.data, source=_source(path))
    silent = experiment.canvases == CanvasConfig() and experiment.start_from is None and not begun
    canvases = EVERY_TASK if silent else experiment.canvases
    return dataclasses.replace(experiment, data=data, holdout=(), canvases=canvases)


def _optimizer(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, warmup_steps=100, schedule="cosine", final_scale=0.05)


def _source(path: str | Path) -> DataSource:
    """Clips of `vdit curate`, where the folder holds such, else video files."""
    return CuratedSource(path=str(path)) if is_curated(path) else FolderSource(path=str(path))


def _count(path: str | Path) -> int:
    if not paths.is_dir(path):
        raise DataError(f"{path} is not a folder: --data must name a folder of video files")
    if is_curated(path):
        return read_curated_index(paths.path(path))["count"]
    return len(read_captions(path).entries)
