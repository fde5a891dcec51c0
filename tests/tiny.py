"""What tests train and sample: the smallest of each, with random weights or a few steps of training.

- experiment, generator, Noise: a text-to-video model too small to be good at anything, and one that makes noise.
- init_params, loss_fn, batches, train_config: a toy problem for the trainer: a two-layer network, a noisy target.
- base_experiment, make_base, make_latents, lora_experiment, train: a small Wan-like base in the folder of a run.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from vdit import paths
from vdit.checkpoint import Checkpointer
from vdit.config import to_dict
from vdit.data.config import DataConfig
from vdit.data.latents import write_latents
from vdit.dist.mesh import MeshConfig, make_mesh
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, SampleConfig
from vdit.experiment.training import LoRAConfig, OptimizerConfig, TrainConfig
from vdit.generate.generator import Generator
from vdit.models.dit.config import WAN, DiTConfig
from vdit.models.text import TextConfig, train_tokenizer
from vdit.models.vae.config import VAEConfig, preset
from vdit.models.vae.model import VAE
from vdit.models.vae.video import VideoVAE
from vdit.nn.layers import Linear
from vdit.sampling.programs import latent_level
from vdit.train.stages import Logging, run, with_tokenizer
from vdit.train.state import abstract_params
from vdit.train.workspace import Workspace

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
            frames=(first, window), frame_multiple=stride, pixel_budgets=(256,), size_multiple=8, max_text_per_row=8,
            actions=actions
        ),
        vae=VAEConfig(
            latent_channels=4, base_channels=8, channel_mults=(1,), spatial_down=(), temporal_down=(), patch=4,
            patch_frames=stride, blocks_per_level=1, middle="none", decoder_extra_blocks=0, block_kernel=(1, 1, 1),
            edge_kernel=(3, 3, 3) if memory else (1, 1, 1),
        ),
        text=TextConfig(vocab_size=16, max_length=6, width=16, depth=1, heads=2),
        backbone=DiTConfig(
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
        vae, patch = self.experiment.vae, self.experiment.backbone.patch[0]
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


WIDTH, HIDDEN = 8, 16


def init_params(key):
    """Boxed parameters: {"up": {"kernel", "bias"}, "down": {...}}."""
    x = jnp.zeros((1, WIDTH))
    up = Linear(features=HIDDEN, kernel_axes=("embed", "mlp")).init(key, x)["params"]
    down = Linear(features=WIDTH, kernel_axes=("mlp", "embed"))
    return {"up": up, "down": down.init(jax.random.fold_in(key, 1), jnp.zeros((1, HIDDEN)))["params"]}


def predict(params, x):
    hidden = jax.nn.gelu(x @ params["up"]["kernel"] + params["up"]["bias"])
    return hidden @ params["down"]["kernel"] + params["down"]["bias"]


def loss_fn(params, batch, key, step):
    """Mean square error over the items that `mask` keeps; its weight is their number."""
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    error = jnp.mean((predict(params, batch["x"] + noise) - batch["y"]) ** 2, axis=-1)
    weight = batch["mask"].sum()
    return (error * batch["mask"]).sum() / weight, {"weight": weight, "tokens": weight}


def quiet_loss_fn(params, batch, key, step):
    """The same without noise, so that a batch and its pieces agree."""
    error = jnp.mean((predict(params, batch["x"]) - batch["y"]) ** 2, axis=-1)
    weight = batch["mask"].sum()
    return (error * batch["mask"]).sum() / weight, {"weight": weight, "tokens": weight}


def item(index):
    rng = np.random.default_rng(int(index))
    x = rng.standard_normal(WIDTH).astype(np.float32)
    return {"x": x, "y": np.roll(x, 1) ** 2, "mask": np.float32(rng.random() < 0.7), "index": np.int32(index)}


def batches(batch_size=8, items=40, seed=0):
    """An endless iterator of batches {"x" [b 8], "y" [b 8], "mask" [b], "index" [b]}."""
    items = grain.MapDataset.range(items).seed(seed).shuffle().repeat().map(item)
    return iter(items.to_iter_dataset().batch(batch_size, drop_remainder=True))


def batch_of(batch_size=8, start=0):
    items = [item(i) for i in range(start, start + batch_size)]
    return {key: np.stack([one[key] for one in items]) for key in items[0]}


def train_config(**changes):
    optimizer = changes.pop("optimizer", OptimizerConfig(learning_rate=1e-2))
    defaults = {"steps": 12, "batch_size": 8, "save_every": 4, "log_every": 1, "optimizer": optimizer}
    return TrainConfig(**(defaults | changes))


QUIET = Logging(tensorboard=False, console=Console(file=io.StringIO()))
STEPS = 12
CAPTIONS = ("a red disc moves to the left", "two blue discs collide", "a green ball falls and bounces")


def base_experiment() -> Experiment:
    return Experiment(
        name="base",
        data=DataConfig(row_tokens=64, max_text_per_row=128, max_frames_per_row=24, max_clips_per_row=12, threads=0,
                        read_ahead=0, prefetch=0),
        vae=preset("tiny", latent_channels=4),
        text=TextConfig(vocab_size=300, max_length=8, width=16, depth=1, heads=2),
        backbone=DiTConfig(**WAN | {"text_width": 16}, in_channels=4, width=32, depth=2, heads=2, mlp_width=48),
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


def make_vae(root: Path, experiment: Experiment) -> None:
    """Writes the VAE of a run's folder, with lively random weights."""
    video = jnp.zeros((1, 1 + experiment.vae.temporal_stride, *SIZE, 3))
    params = random_params(lambda key: VAE(experiment.vae).init(key, video)["params"])
    with Checkpointer(Workspace(root).vae, meta={"stage": "vae", "config": to_dict(experiment)}) as checkpointer:
        checkpointer.save(1, {"params": {"vae": params}})


def make_whole_base(root: Path) -> Experiment:
    """`make_base` with a VAE, and with settings of clips of 32x32 pixels. Returns its experiment."""
    experiment = make_base(root)
    data = dataclasses.replace(experiment.data, pixel_budgets=(32 * 32,), frames=(1, 5), fps=(5.0,), frame_multiple=4)
    sample = dataclasses.replace(experiment.sample, fps=5.0, frames=5, size=(32, 32))
    experiment = dataclasses.replace(experiment, data=data, sample=sample)
    make_vae(root, experiment)
    Workspace(root).save_experiment(experiment)
    return experiment


def make_latents(root: Path) -> None:
    """Latents of the run in `root`: clips of one frame and of three that their captions tell apart."""
    rng = np.random.default_rng(0)
    shape = lambda i: (1 + 2 * (i % 2), 4, 4, 4)  # noqa: E731
    write_latents(Workspace(root).latents, (
        {"latent": (i % 3) - 1 + 0.1 * rng.normal(size=shape(i)), "captions": [CAPTIONS[i % 3]]} for i in range(30)
    ))  # fmt: skip


def train(experiment: Experiment, root: Path) -> Experiment:
    if not paths.exists(Workspace(root).latents):
        make_latents(root)
    return run(experiment, Workspace(root), stages=("tokenizer", "dit"), logging=QUIET)
