"""A small Wan-like base model in the folder of a run, with latents to train on: made, not trained."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from vdit.checkpoint import Checkpointer
from vdit.config import to_dict
from vdit.data.config import DataConfig
from vdit.data.latents import write_latents
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.experiment.experiment import Experiment
from vdit.experiment.training import LoRAConfig, OptimizerConfig, TrainConfig
from vdit.models.dit.config import WAN, DiTConfig
from vdit.models.text import TextConfig, train_tokenizer
from vdit.models.vae.config import preset
from vdit.train.stages import Logging, run, with_tokenizer
from vdit.train.state import abstract_params
from vdit.train.workspace import Workspace

QUIET = Logging(tensorboard=False, console=Console(file=io.StringIO()))
STEPS = 12
CAPTIONS = ("a red disc moves to the left", "two blue discs collide", "a green ball falls and bounces")


def base_experiment() -> Experiment:
    return Experiment(
        name="base",
        data=DataConfig(row_tokens=64, row_text=128, row_slots=24, row_clips=12, threads=0, read_ahead=0, prefetch=0),
        vae=preset("tiny", latent_channels=4),
        text=TextConfig(vocab_size=300, max_length=8, width=16, depth=1, heads=2),
        dit=DiTConfig(**WAN | {"text_width": 16}, in_channels=4, width=32, depth=2, heads=2, mlp_width=48),
        dit_train=TrainConfig(steps=1, batch_size=8),
    )


def lora_experiment(base: Path, *, mesh: MeshConfig | None = None, **changes) -> Experiment:
    optimizer = OptimizerConfig(learning_rate=changes.pop("learning_rate", 2e-2))
    defaults = {"steps": STEPS, "batch_size": 8, "save_every": STEPS // 2, "log_every": 1, "keep": 9, "ema_decay": 0.9}
    return dataclasses.replace(
        base_experiment(),
        name="lora",
        mesh=mesh or MeshConfig(),
        start_from=str(base),
        lora=changes.pop("lora", LoRAConfig(rank=4, alpha=8)),
        dit_train=TrainConfig(optimizer=optimizer, **(defaults | changes)),
    )


def make_base(root: Path) -> Experiment:
    """Writes a run's folder: lively random weights, statistics, tokenizer. Returns its experiment, resolved."""
    space = Workspace(root)
    root.mkdir(parents=True)
    train_tokenizer(CAPTIONS * 20, space.tokenizer, vocab_size=300)
    experiment = with_tokenizer(base_experiment(), space)
    space.save_experiment(experiment)
    space.save_statistics([0.0] * 4, [1.0] * 4)
    shapes, tree = jax.tree.flatten(abstract_params(experiment.network.init, make_mesh()))
    rng = np.random.default_rng(0)
    lively = lambda leaf: rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 9)  # noqa: E731
    params = jax.tree.unflatten(tree, [jnp.asarray(lively(leaf), jnp.float32) for leaf in shapes])
    with Checkpointer(space.dit, meta={"stage": "dit", "config": to_dict(experiment)}) as checkpointer:
        checkpointer.save(1, {"params": params})
    return experiment


def make_latents(root: Path) -> None:
    """Latents of the run in `root`: clips of one frame and of three that their captions tell apart."""
    rng = np.random.default_rng(0)
    shape = lambda i: (1 + 2 * (i % 2), 4, 4, 4)  # noqa: E731
    write_latents(Workspace(root).latents, (
        {"latent": (i % 3) - 1 + 0.1 * rng.normal(size=shape(i)), "captions": [CAPTIONS[i % 3]]} for i in range(30)
    ))  # fmt: skip


def train(experiment: Experiment, root: Path) -> Experiment:
    if not Workspace(root).latents.exists():
        make_latents(root)
    return run(experiment, Workspace(root), stages=("tokenizer", "dit"), logging=QUIET)
