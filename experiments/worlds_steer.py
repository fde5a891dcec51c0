"""A world model: actions in, frames out, one at a time. A shape that a player steers.

    vdit train experiments/worlds_steer.py --out runs/steer
    vdit simulate runs/steer "a red circle that is steered" --keys "dddd ssss aaaa" --out played.mp4
    python tools/canvas_report.py demo --only simulate --simulator runs/steer --out canvas_report

Hardware: 2 busy CPU cores; VAE 1.5 minutes, DiT 45 minutes, at most 1.5 GB of memory.
Expected: 83% of steps move as told to within half a step, 45 steps a second (tools/canvas_report.py; measured on a run
of 5,000 steps that was continued to 10,000).

The transformer is causal in time and each frame has its own noise level (diffusion forcing; Chen et al. 2024), so the
keys and values of finished frames are computed once and cached. The VAE encodes each frame alone: one action, one
frame.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import WorldsSource
from vdit.diffusion import DiffusionConfig
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="worlds_steer",
        data=DataConfig(
            source=WorldsSource(world="steer", count=4000),
            pixel_budgets=(32 * 32,),
            size_multiple=8,
            frames=(17,),
            frame_multiple=1,
            fps=(8.0,),
            actions=2,
            row_tokens=272,
            max_text_per_row=48,
            max_frames_per_row=20,
            max_clips_per_row=2,
            threads=2,
        ),
        vae=vae_preset("tiny", patch_frames=1, base_channels=32),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=4, size=(32, 32)),
        vae_train=TrainConfig(
            steps=3000,
            batch_size=8,
            ema_decay=0.99,
            optimizer=OptimizerConfig(
                learning_rate=1.5e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3
            ),
        ),
        latents=LatentsConfig(samples=4000),
        text=TextConfig(width=96, depth=0, heads=4, max_length=40, vocab_size=300),
        backbone=DiTConfig(
            in_channels=8, patch=(1, 1, 1), width=160, depth=4, heads=5, action_width=2, causal=True, scan=False
        ),
        diffusion=DiffusionConfig(stratified=True),
        canvases=CanvasConfig(none=0.1, first=0.1, head=0.4, frames=0.4, context_dropout=0.0, context_noise=0.2),
        dit_train=TrainConfig(
            steps=10_000,
            batch_size=2,
            ema_decay=0.995,
            save_every=1000,
            optimizer=OptimizerConfig(
                learning_rate=1.5e-3, warmup_steps=200, schedule="cosine", final_scale=0.03, b2=0.95
            ),
        ),
        sample=SampleConfig(
            prompts=("a red circle that is steered",), frames=17, size=(32, 32), fps=8.0, steps=6, guidance=1.0
        ),
    )
