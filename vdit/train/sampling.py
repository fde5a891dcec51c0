"""Videos of an experiment's prompts, while its training goes."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from vdit.checkpoint import load_params
from vdit.experiment.experiment import Experiment
from vdit.models.text import Tokenizer
from vdit.nn.lora import join
from vdit.sampling.canvas import tokenize
from vdit.sampling.config import sampling_config
from vdit.sampling.programs import TextToVideo, draw
from vdit.seeds import key_of
from vdit.train.loop import SampleHook
from vdit.train.workspace import Workspace
from vdit.types import Array, PyTree


def sample_hook(
    experiment: Experiment, workspace: Workspace, tokenizer: Tokenizer, frozen: PyTree | None, mesh: Mesh
) -> SampleHook:
    """Samples by the averaged parameters every `dit_train.sample_every` steps, on the mesh that trains.

    frozen: parameters that are not trained, as in TrainStep. The VAE is read from the run's folder.
    """
    sample = experiment.sample
    task = TextToVideo(
        network=experiment.network,
        vae=experiment.vae,
        method=sampling_config(experiment),
        frames=sample.frames,
        size=sample.size,
    )
    length = experiment.text.max_length
    prompts = tokenize(tokenizer, list(sample.prompts), length=length)
    negative = tokenize(tokenizer, [""] * len(sample.prompts), length=length)
    # On the host: a hook may take of the devices' memory only while it runs.
    vae_params = jax.tree.map(np.asarray, load_params(workspace.vae)["vae"])
    statistics = workspace.statistics()

    def videos(step: int, state) -> dict[str, Array]:
        params = join(frozen or {}, state.params if state.ema is None else state.ema)
        key = key_of(experiment.seed)  # the same noise each time: what changes is the model
        return {"samples": draw(task, mesh, params, vae_params, statistics, prompts, negative, key)}

    return SampleHook(every=experiment.dit_train.sample_every, draw=videos, fps=sample.fps)
