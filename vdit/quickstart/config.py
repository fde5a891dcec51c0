"""What the quickstart trains, and what it is asked afterwards."""

from __future__ import annotations

from typing import NamedTuple

from vdit.data.config import DataConfig
from vdit.data.data_source import WorldsSource
from vdit.diffusion.config import DiffusionConfig
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.optimizer import Muon
from vdit.experiment.training import TrainConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset
from vdit.worlds.moving import Moving

HELD_OUT_SEED = 1  # of the scenes that are held out; training draws its own from the experiment's seed


class Wanted(NamedTuple):
    """A prompt, and what a video of it must show."""

    colour: str
    shape: str
    direction: str
    prompt: str


def experiment() -> Experiment:
    """One moving shape, as images and clips of two areas and three aspect ratios, packed in rows. For two CPU cores."""
    return Experiment(
        name="quickstart",
        data=DataConfig(
            source=WorldsSource(world="moving", count=6000, options=("subset=train", "sizes=(0.22,0.30)")),
            # Small videos cost half the tokens of large ones.
            pixel_budgets=(48 * 48, 64 * 64),
            frames=(1, 17, 17, 17),
            aspects=(1.0, 1.0, 4 / 3, 3 / 4),
            row_tokens=360,  # twice 6x6x5, or 8x8x5 and an image
            max_text_per_row=128,
            max_frames_per_row=10,
            max_clips_per_row=16,
            threads=2,
        ),
        vae=vae_preset("tiny", out_width=256),
        # Latents that turn and shrink with the video: of all that was tried, what helps shapes most.
        # After them the decoder alone learns to draw sharp edges.
        vae_loss=VAELossConfig(
            reconstruction="mse", kl_weight=1e-4, equivariance_weight=1.0, decoder_share=0.66,
            decoder_reconstruction="huber", huber_delta=0.05, decoder_edge_weight=0.1,
        ),
        vae_clips=VAETrainConfig(frames=5, size=(48, 48)),
        vae_train=TrainConfig(
            steps=4400,
            batch_size=8,
            ema_decay=0.99,
            optimizer=Muon(
                learning_rate=4e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, restart=0.34, b2=0.95,
                clip_norm=0.3,
            ),
        ),
        latents=LatentsConfig(samples=6000),
        text=TextConfig(width=128, depth=0, heads=4, max_length=64, vocab_size=400),
        # A token for each place of the latents and a narrow model cost what a token for 2x2 places and twice the width
        # do, and learn shapes sooner (docs/experiment_log.md).
        backbone=DiTConfig(
            in_channels=8, patch=(1, 1, 1), width=96, depth=4, heads=3, position="both", scan=False
        ),
        diffusion=DiffusionConfig(stratified=True, shift=1.5),
        # Enough for animate, extend, loop, connect and rollout; more cost text to video what so few steps teach.
        canvases=CanvasConfig(
            none=0.88, first=0.04, head=0.03, tail=0.01, ends=0.025, mask=0.01, frames=0.005, window=0.05
        ),
        dit_train=TrainConfig(
            steps=3600,
            batch_size=4,
            ema_decay=0.995,
            optimizer=Muon(learning_rate=4e-3, warmup_steps=100, schedule="cosine", final_scale=0.05, b2=0.95),
        ),
        sample=SampleConfig(
            prompts=("a red circle moves to the left", "a blue cross moves up"),
            frames=17,
            size=(64, 64),
            fps=8.0,
            # Guidance where shapes are decided, not where place is.
            sampler="heun",
            steps=20,
            guidance=3.0,
            interval=(0.0, 0.7),
        ),
    )


def held_out_world(of: Experiment, count: int = 64) -> Moving:
    """Scenes of the combinations that training never shows (`vdit.worlds.moving.subset`).

    Args:
        of: the experiment, whose sizes and options the scenes have.
        count: scenes.
    """
    sample, options = of.sample, of.data.source.arguments() | {"subset": "held_out"}
    return Moving(
        seed=HELD_OUT_SEED, count=count, size=sample.size, frames=sample.frames, fps=sample.fps, **options
    )


def held_out(of: Experiment | None = None, count: int = 64) -> list[Wanted]:
    """A prompt for each scene of `held_out_world`.

    Args:
        of: the experiment; None is the quickstart's.
        count: prompts. All 32 combinations take turns, first with their short captions, then with their long ones.
    """
    world = held_out_world(experiment() if of is None else of, count)
    wanted = []
    for index in range(count):
        scene = world[index]
        in_detail = index // len(world.combos) % 2
        wanted.append(Wanted(*scene.meta["combo"], scene.detailed if in_detail else scene.caption))
    return wanted
