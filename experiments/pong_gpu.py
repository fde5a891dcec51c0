"""The world model of Atari Pong for one GPU of 80 GB: a larger VAE and transformer, more frames, bfloat16.

    vdit record ALE/Pong-v5 pong --episodes 1024 --policy random+follow
    vdit train experiments/pong_gpu.py --out runs/pong --cfg.data.source.path=pong

Hardware: one GPU of 80 GB; the hours were not measured. Expected: unknown, it was not trained; experiments/pong.py was.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import EpisodesSource
from vdit.diffusion import DiffusionConfig
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.optimizer import Muon
from vdit.experiment.training import TrainConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="pong_gpu",
        data=DataConfig(
            source=EpisodesSource(path="pong"),
            pixel_budgets=(64 * 64,),
            size_multiple=8,
            frames=(33,),
            frame_multiple=1,
            fps=(15.0,),
            actions=3,
            row_tokens=33 * 64,
            max_text_per_row=24,
            max_frames_per_row=33,
            max_clips_per_row=1,
            threads=8,
        ),
        vae=vae_preset("tiny", patch_frames=1, base_channels=128, dtype="bfloat16"),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=1e-5),
        vae_clips=VAETrainConfig(frames=2, size=(64, 64)),
        vae_train=TrainConfig(
            steps=10_000,
            batch_size=128,
            ema_decay=0.99,
            optimizer=Muon(
                learning_rate=1.5e-3, warmup_steps=500, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3
            ),
        ),
        latents=LatentsConfig(samples=100_000),
        text=TextConfig(width=96, depth=0, heads=4, max_length=16, vocab_size=300),
        backbone=DiTConfig(
            in_channels=8, patch=(1, 1, 1), width=512, depth=12, heads=8, action_width=3, causal=True, position="both",
            dtype="bfloat16",
        ),
        diffusion=DiffusionConfig(stratified=True, shift=4.0),  # as in pong.py
        canvases=CanvasConfig(none=0.05, first=0.05, head=0.85, frames=0.1, context_dropout=0.0, context_noise=0.2),
        dit_train=TrainConfig(
            steps=50_000,
            batch_size=64,
            ema_decay=0.9995,
            save_every=2000,
            optimizer=Muon(learning_rate=1e-3, warmup_steps=1000, schedule="cosine", final_scale=0.03, b2=0.95),
        ),
        sample=SampleConfig(
            prompts=("a game of Pong",), frames=33, size=(64, 64), fps=15.0, steps=4, guidance=1.0
        ),
    )
