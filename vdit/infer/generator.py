"""The programmatic API: load a trained model, put it on a mesh, make videos.

generator = vdit.load("runs/clips")
videos = generator(["a red circle moves to the left"], frames=17, size=(64, 64))
vdit.write_video("out.mp4", videos[0], fps=8)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.checkpoint import load_params
from vdit.dist.mesh import make_mesh
from vdit.dist.rules import batch_sharding, batch_ways, replicated
from vdit.errors import ConfigError, ShapeError
from vdit.tasks.canvas import Prompts, tokenize
from vdit.tasks.generate import Method
from vdit.tasks.sample import TextToVideo, compiled
from vdit.text import Tokenizer
from vdit.train.experiment import Experiment, sample_method
from vdit.train.state import abstract_params
from vdit.train.workspace import Workspace
from vdit.types import Array, PyTree
from vdit.vae.video import VideoVAE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """A trained model on a mesh. Make one with `vdit.load`.

    experiment: what the model was trained with. params: {"text", "dit"}. vae: encodes and decodes videos.
    """

    experiment: Experiment
    params: PyTree
    vae: VideoVAE
    tokenizer: Tokenizer
    mesh: Mesh

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str = "",
        sampler: str | None = None,
        interval: tuple[float, float] | None = None,
        rescale: float | None = None,
    ) -> Array:
        """Videos for prompts: float32 [b t h w 3] in [-1, 1], one for each prompt.

        A model of classes takes class numbers as its prompts: "7".

        frames: 1 + a multiple of the VAE's stride in time; 1 makes images. size: (height, width) in
        pixels, multiples of VAE stride x patch. What is None is as in the experiment's `sample`.
        seed: the same seed, prompts and sizes give the same videos. negative: guided away from.
        Compiles once for each combination of number of prompts, frames, size, steps and method.
        Raises ShapeError for sizes that the model cannot make, ConfigError for unknown samplers.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError(f"prompts={prompts!r} must be a text or a list of at least one text")
        method = self._method(sampler, steps, guidance, interval, rescale)
        task = self.task(method, frames, size)
        ways = batch_ways(self.mesh)
        padded = prompts + [""] * (-len(prompts) % ways)
        place = batch_sharding(self.mesh)
        inputs = [jax.device_put(self._tokens(texts), place) for texts in (padded, [negative] * len(padded))]
        with jax.set_mesh(self.mesh):
            videos = compiled(task, place)(
                self.params, self.vae.params, self.vae.statistics, *inputs, jax.random.key(seed)
            )
        return videos[: len(prompts)]

    def task(self, method: Method, frames: int | None, size: tuple[int, int] | None) -> TextToVideo:
        """The function that is compiled for these sizes; raises ShapeError if the model cannot make them."""
        defaults = self.experiment.sample
        size = defaults.size if size is None else size
        if len(size) != 2:
            raise ShapeError(f"size={size} must be two numbers: (height, width)")
        return TextToVideo(
            network=self.experiment.network,
            vae=self.experiment.vae,
            method=method,
            frames=int(defaults.frames if frames is None else frames),
            size=(int(size[0]), int(size[1])),
        )

    def _method(self, sampler, steps, guidance, interval, rescale) -> Method:
        changes = {"sampler": sampler, "steps": steps, "guidance": guidance, "interval": interval, "rescale": rescale}
        return sample_method(self.experiment, **{k: v for k, v in changes.items() if v is not None})

    def _tokens(self, prompts: list[str]) -> Prompts:
        return tokenize(self.tokenizer, prompts, length=self.experiment.text.max_length)


def load(
    checkpoint_dir: str | Path, mesh: Mesh | None = None, *, ema: bool = True, step: int | None = None
) -> Generator:
    """Load what `vdit train` wrote into a folder, onto a mesh (all devices, if None).

    ema: take the averaged parameters. step: of the DiT's checkpoint; the last one if None.
    Raises CheckpointError where something is missing or damaged.
    """
    mesh = make_mesh() if mesh is None else mesh
    space = Workspace(checkpoint_dir)
    experiment = space.experiment()
    abstract = abstract_params(experiment.network.init, mesh)
    return Generator(
        experiment=experiment,
        params=load_params(space.dit, ema=ema, step=step, abstract=abstract),
        vae=load_vae(checkpoint_dir, mesh=mesh),
        tokenizer=space.open_tokenizer(experiment),
        mesh=mesh,
    )


def load_vae(checkpoint_dir: str | Path, *, mesh: Mesh | None = None) -> VideoVAE:
    """The VAE of a run alone, replicated on the mesh; the DiT need not be trained yet."""
    mesh = make_mesh() if mesh is None else mesh
    space = Workspace(checkpoint_dir)
    params = jax.device_put(load_params(space.vae)["vae"], replicated(mesh))
    statistics = space.statistics()
    if statistics is not None:
        statistics = jax.device_put({k: np.asarray(v, np.float32) for k, v in statistics.items()}, replicated(mesh))
    else:
        channels = space.experiment().vae.latent_channels
        statistics = {"mean": jnp.zeros(channels), "std": jnp.ones(channels)}
    return VideoVAE(config=space.experiment().vae, params=params, statistics=statistics)
