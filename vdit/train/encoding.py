"""The stage between videos and the DiT: latents, their statistics, and what says which VAE they are of."""

from __future__ import annotations

import functools
import hashlib
import json

import jax
import numpy as np

from vdit.checkpoint import load_params
from vdit.data.encode import encode_clips
from vdit.data.latents import LatentStore
from vdit.data.open import open_source
from vdit.dist.multihost import is_first
from vdit.dist.together import first_does, wait_for_all
from vdit.errors import ConfigError
from vdit.train.base import brings
from vdit.train.experiment import Experiment
from vdit.train.progress import make_display
from vdit.train.reporting import Logging, report_skipped
from vdit.train.workspace import Workspace
from vdit.types import PyTree
from vdit.vae.statistics import MIN_STD, constant_channels
from vdit.vae.video import VideoVAE


def encode_latents(experiment: Experiment, workspace: Workspace, logging: Logging) -> None:
    """Encode the videos with the trained VAE, each host its share of them, in a folder that all hosts share.

    Goes on where it was interrupted. Latents of another VAE or another choice of clips are refused.
    """
    params = load_params(workspace.vae)["vae"]
    identity = _fingerprint(params, experiment)
    if not (workspace.latents / "index.json").exists():
        _encode(experiment, workspace, params, identity, logging)
    index = LatentStore(workspace.latents).index
    if index["vae"] != identity:
        raise ConfigError(
            f"{workspace.latents} was encoded with another VAE or another data config: remove that folder to "
            "encode again"
        )
    unused = constant_channels(index)
    if unused:
        logging.say(
            f"latents: channel(s) {', '.join(map(str, unused))} of {index['channels']} never vary (std 0): the videos "
            f"are all alike there, or the VAE does not use them; they are normalised by {MIN_STD:g}"
        )
    if not brings(experiment, "statistics.json"):
        first_does(lambda: workspace.save_statistics(index["mean"], index["std"]), "statistics.json")


def _encode(experiment: Experiment, workspace: Workspace, params: PyTree, identity: str, logging: Logging) -> None:
    source = open_source(experiment.data, seed=experiment.seed, exclude=experiment.holdout)
    channels = experiment.vae.latent_channels
    plain = {"mean": np.zeros(channels, np.float32), "std": np.ones(channels, np.float32)}
    vae = VideoVAE(config=experiment.vae, params=params, statistics=plain)
    samples = experiment.latents.samples or len(source)
    display = make_display("latents", samples, 0, console=logging.console) if is_first() else None

    def show(done: int, total: int) -> None:
        if display is not None:  # a host knows of its own share only, and shows the whole as far as that
            display.update(done * samples // total, {})

    try:
        encode_clips(
            source,
            functools.partial(vae.encode, latent_frames=experiment.latents.latent_frames or None),
            workspace.latents,
            samples=samples,
            vae=identity,
            dtype=experiment.latents.dtype,
            threads=experiment.data.threads,
            progress=show,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
            wait=wait_for_all,
        )
    finally:
        if display is not None:
            display.close()
    report_skipped(source, logging)


def _fingerprint(params: PyTree, experiment: Experiment) -> str:
    """Changes with the VAE's weights and with the choice of clips to encode."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    names = ("areas", "size_multiple", "frames", "fps", "aspects", "hflip", "source", "path", "captions",
             "world", "world_count", "world_options")  # fmt: skip
    chosen = {name: getattr(experiment.data, name) for name in names}
    digest.update(json.dumps([chosen, experiment.seed, experiment.holdout, experiment.latents.samples]).encode())
    return digest.hexdigest()[:16]
