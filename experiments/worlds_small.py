"""Text to video of a rendered world with known physics, on one GPU.

    vdit train experiments/worlds_small.py --out runs/collide
    vdit sample runs/collide "a red ball and a blue ball collide" --out collide.mp4

Hardware: one GPU of 24 GB or more. Expected: not measured yet.

Other worlds by override:
    --cfg.data.source.world=occluder
    --cfg.data.source.world=orbit --cfg.data.fps=12 --cfg.sample.fps=12
    --cfg.data.source.world=moving
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import WorldsSource
from vdit.diffusion import DiffusionConfig
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import preset as dit_preset
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="worlds_small",
        data=DataConfig(
            source=WorldsSource(world="collide", count=20_000),
            pixel_budgets=(64 * 64, 96 * 96),
            size_multiple=16,
            frames=(1, 17, 33),
            fps=(8.0, 16.0),
            aspects=(0.75, 1.0, 1.5),
            row_tokens=2048,
            max_text_per_row=768,
            max_frames_per_row=128,
            max_clips_per_row=48,
            threads=8,
        ),
        vae=vae_preset("base"),
        vae_loss=VAELossConfig(reconstruction="l1", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=17, size=(64, 64)),
        vae_train=TrainConfig(
            steps=10_000,
            batch_size=16,
            optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=200, schedule="cosine", final_scale=0.05),
            ema_decay=0.999,
            save_every=1000,
        ),
        latents=LatentsConfig(samples=60_000),
        text=TextConfig(vocab_size=2048, max_length=64, width=256, depth=2, heads=4),
        backbone=dit_preset("S", dtype="bfloat16"),
        diffusion=DiffusionConfig(kind="flow", prediction="velocity", stratified=True),
        canvases=CanvasConfig(none=0.5, first=0.1, head=0.1, tail=0.05, ends=0.05, mask=0.1, frames=0.1, window=0.1),
        dit_train=TrainConfig(
            steps=60_000,
            batch_size=16,
            optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=1000, schedule="cosine", final_scale=0.1),
            ema_decay=0.9995,
            save_every=5000,
            sample_every=5000,
        ),
        sample=SampleConfig(
            prompts=("a red ball and a blue ball collide", "a green ball and a yellow ball collide"),
            frames=33,
            size=(96, 96),
            fps=8.0,
            sampler="unipc",
            steps=20,
            guidance=3.0,
        ),
    )
