"""Train the decoder of a finished model further, and nothing else: its latents stay what the transformer learned.

    vdit import demo runs/demo
    python -m tools.tune_decoder runs/demo models/sharper --steps 4000
    vdit eval runs/demo models/sharper

RUN is a run's folder (`vdit import` makes one of any model). OUT is the same model with the new decoder in vdit's own
layout, which every command that samples reads. The clips are of the run's own data, the loss is the reconstruction and,
with --edge-weight, the strength of edges.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from vdit.data.pipeline import video_batches
from vdit.dist.mesh import compiler_options, platform_of
from vdit.errors import ConfigError, VditError
from vdit.experiment.experiment import Experiment
from vdit.experiment.optimizer import OptimizerConfig
from vdit.experiment.training import TrainConfig
from vdit.generate import open_generator
from vdit.internals import keep_freed_memory
from vdit.models.vae.config import VAELossConfig
from vdit.outputs import check_new_folder
from vdit.pretrained.export import exported_to
from vdit.pretrained.native import MODEL, export_native
from vdit.train.loop import train
from vdit.train.state import plan_state
from vdit.train.step import make_train_step
from vdit.train.workspace import Workspace
from vdit.types import PyTree


def tune(experiment: Experiment, params: PyTree, config: TrainConfig, loss: VAELossConfig) -> PyTree:
    """Trains the decoder alone.

    Args:
        experiment: of the model, with the data and the clips.
        params: of its VAE: {"encoder", "decoder"}.
        config: steps, batch and optimizer.
        loss: what is minimised; see `VAELoss.for_decoder`.

    Returns:
        The averaged parameters; those of the encoder are `params`' own, bit for bit.
    """
    clips = experiment.vae_clips
    made = loss.make_loss(experiment.vae, experiment.discriminator)
    video = np.zeros((1, clips.frames, *clips.size, 3), np.uint8)
    plan = plan_state(lambda key: made.init(key, video, boxed=True), config)
    step = make_train_step(
        made.for_decoder(), plan, held=("vae/encoder",), compiler_options=compiler_options(platform_of(plan.mesh))
    )
    # Other clips than those of the run's first steps.
    data = video_batches(
        experiment.data, experiment.data.source.open(experiment.data, seed=experiment.seed), size=clips.size,
        frames=clips.frames, batch_size=config.batch_size, seed=experiment.seed + 1,
    )  # fmt: skip
    state = plan.with_params({"vae": params}, jax.random.key(experiment.seed))
    state = train(state, step, data, name="decoder").state
    data.close()
    return {"encoder": params["encoder"], "decoder": state.ema["vae"]["decoder"]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("out", type=Path, help="a new folder for the model")
    parser.add_argument("--steps", type=int, default=4000, help="of the optimizer; default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="clips of a step; default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="its peak; default: %(default)s")
    kinds = ("l1", "mse", "huber")
    parser.add_argument("--reconstruction", default="huber", choices=kinds, help="default: %(default)s")
    parser.add_argument("--huber-delta", type=float, default=0.05, help="default: %(default)s")
    parser.add_argument(
        "--edge-weight", type=float, default=0.0, help="vae_loss.decoder_edge_weight; default: %(default)s"
    )
    parser.add_argument("--dtype", default=None, help="of the written weights, as float16; default: as they are held")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except VditError as error:
        print(f"tune_decoder: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """What the command does, for its options."""
    check_new_folder(options.out)
    keep_freed_memory()
    generator = open_generator(str(options.run))
    experiment = generator.experiment
    if not isinstance(experiment.vae_loss, VAELossConfig):
        raise ConfigError(f"vae_loss is a {type(experiment.vae_loss).__name__}: it must be a VAELossConfig")
    usual = experiment.vae_train
    if not isinstance(usual.optimizer, OptimizerConfig):
        raise ConfigError(f"vae_train.optimizer is a {type(usual.optimizer).__name__}: it must be AdamW or Muon")
    config = dataclasses.replace(
        usual, steps=options.steps, batch_size=options.batch, ema_decay=usual.ema_decay or 0.99,
        optimizer=dataclasses.replace(usual.optimizer, learning_rate=options.learning_rate, restart=0.0),
    )  # fmt: skip
    # What needs networks beside the VAE is left out: a finished model does not have them.
    loss = dataclasses.replace(
        experiment.vae_loss, decoder_reconstruction=options.reconstruction, huber_delta=options.huber_delta,
        decoder_edge_weight=options.edge_weight, adversarial_weight=0.0, perceptual_weight=0.0,
    )  # fmt: skip
    size = "x".join(map(str, experiment.vae_clips.size))
    print(f"{options.run}: {options.steps} steps of its decoder, of {options.batch} clips of {size} -> {options.out}")
    params = tune(experiment, jax.tree.map(np.asarray, generator.vae.params), config, loss)
    space = Workspace(options.run)
    exported_to(
        options.out, MODEL, lambda folder: export_native(space, generator.params, params, folder, dtype=options.dtype)
    )
    print(f"wrote {options.out}\nnext: vdit eval {options.run} {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
