"""Models too small to be good at anything, with random weights, and one that makes noise without any."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdit.data.config import DataConfig
from vdit.dist.mesh import make_mesh
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, SampleConfig
from vdit.generate.generator import Generator
from vdit.models.dit.config import DiTConfig
from vdit.models.text import TextConfig
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.model import VAE
from vdit.models.vae.video import VideoVAE
from vdit.sampling.given import latent_level

SIZE = (16, 16)


def experiment(
    stride: int = 4,
    patch_frames: int = 1,
    window: int = 17,
    slides: bool = False,
    actions: int = 0,
    memory: bool = False,
    causal: bool = False,
) -> Experiment:
    """stride: of the VAE in time. patch_frames: of the DiT. window: frames it was trained on. slides: see Pieces.
    actions: numbers that say what is done in a frame. memory: the VAE looks back in time and around in space.
    causal: the DiT looks back in time only.
    """
    first = 1 + (patch_frames - 1) * stride
    return Experiment(
        name="tiny",
        data=DataConfig(
            frames=(first, window), frame_multiple=stride, areas=(256,), size_multiple=8, row_text=8, actions=actions
        ),
        vae=VAEConfig(
            latent_channels=4, base_channels=8, channel_mults=(1,), spatial_down=(), temporal_down=(), patch=4,
            patch_frames=stride, blocks_per_level=1, middle="none", decoder_extra_blocks=0, block_kernel=(1, 1, 1),
            edge_kernel=(3, 3, 3) if memory else (1, 1, 1),
        ),
        text=TextConfig(vocab_size=16, max_length=6, width=16, depth=1, heads=2),
        dit=DiTConfig(
            in_channels=4, width=16, depth=1, heads=2, patch=(patch_frames, 2, 2),
            action_width=actions * stride * patch_frames, causal=causal,
        ),
        canvases=CanvasConfig(first=1.0, window=0.5 * slides),
        sample=SampleConfig(
            frames=first + 2 * patch_frames * stride, size=SIZE, steps=2, guidance=1.0, sampler="euler"
        ),
    )  # fmt: skip


class Letters:
    """A tokenizer: a token for each letter."""

    def encode(self, text: str) -> list[int]:
        return [1, *(2 + ord(letter) % 14 for letter in text)]

    def length(self, text: str) -> int:
        return 1 + len(text)


def generator(**options) -> Generator:
    """With random weights, so that everything it is given reaches what it makes."""
    config = experiment(**options)
    channels = config.vae.latent_channels
    video = jnp.zeros((1, 1 + config.vae.temporal_stride, *SIZE, 3))
    vae = VideoVAE(
        config=config.vae,
        params=random_params(lambda key: VAE(config.vae).init(key, video)["params"]),
        statistics={"mean": jnp.zeros(channels), "std": jnp.ones(channels)},
    )
    params = random_params(config.network.init)
    return Generator(experiment=config, params=params, vae=vae, tokenizer=Letters(), mesh=make_mesh())


def random_params(init):
    """Parameters of the shapes of `init`, none of them at 0, where many begin; nothing is compiled for them."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), shapes)


@dataclasses.dataclass
class Noise:
    """In the place of a Generator: makes noise by the seed, checks what it is asked for, and remembers it."""

    experiment: Experiment
    asked: list = dataclasses.field(default_factory=list)

    def __call__(self, prompts, *, given=None, frames=None, size=None, seed=0, **sampling) -> np.ndarray:
        vae, patch = self.experiment.vae, self.experiment.dit.patch[0]
        latent_frames = 1 + (frames - 1) / vae.temporal_stride
        assert latent_frames == int(latent_frames)
        assert latent_frames % patch == 0
        self.asked.append({"given": given, "frames": frames, "seed": seed, "sampling": sampling})
        if given is not None:
            b, s, h, w, _ = given.video.shape
            size = (h, w)
            assert given.video.dtype == given.level.dtype == np.float32
            assert np.abs(given.video).max() <= 1
            assert s <= frames
            assert (s - 1) % vae.temporal_stride == 0
            assert given.level.shape[:2] == (b, s)
            assert np.asarray(latent_level(vae, given.level)).shape[1] % patch == 0
        count = 1 if isinstance(prompts, str) else len(prompts)
        shape = (count, frames, *(size or self.experiment.sample.size), 3)
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
