"""A world model of a game that nobody here wrote: Atari Pong, three buttons in, frames out.

    vdit record ALE/Pong-v5 pong --episodes 96 --policy random+follow
    vdit train experiments/pong.py --out runs/pong --cfg.data.source.path=pong

    vdit eval runs/pong --emulator pong_test

Hardware: 2 CPU cores, about an hour. Expected: docs/emulators.md, which has what was measured.

The transformer is causal in time. Most clips begin with clean frames; in some each frame has a noise level of its own.
The VAE encodes each frame alone, and keeps 8x8 places of a 64x64 frame: Pong's ball is one pixel of it. A token is
16x16 pixels.
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
        name="pong",
        data=DataConfig(
            source=EpisodesSource(path="pong"),
            pixel_budgets=(64 * 64,),
            size_multiple=16,
            frames=(17,),
            frame_multiple=1,
            fps=(15.0,),
            actions=3,
            row_tokens=17 * 16,
            max_text_per_row=24,
            max_frames_per_row=17,
            max_clips_per_row=1,
            threads=1,
        ),
        vae=vae_preset("tiny", patch_frames=1, base_channels=32),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=1e-5),
        vae_clips=VAETrainConfig(frames=2, size=(64, 64)),
        vae_train=TrainConfig(
            steps=3000,
            batch_size=4,
            ema_decay=0.99,
            optimizer=Muon(
                learning_rate=4e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3
            ),
        ),
        latents=LatentsConfig(samples=3000),
        text=TextConfig(width=96, depth=0, heads=4, max_length=16, vocab_size=300),
        backbone=DiTConfig(
            in_channels=8, patch=(1, 2, 2), width=128, depth=5, heads=2, action_width=3, causal=True, position="both",
            scan=False,
        ),
        # At low noise the next frame can be read off the noisy one. What the buttons do is learned at high noise, and
        # from frames before that are clean, as they are in play.
        diffusion=DiffusionConfig(stratified=True, shift=4.0),
        canvases=CanvasConfig(none=0.05, first=0.05, head=0.85, frames=0.1, context_dropout=0.0, context_noise=0.2),
        dit_train=TrainConfig(
            steps=8000,
            batch_size=4,
            ema_decay=0.995,
            save_every=500,
            optimizer=Muon(learning_rate=4e-3, warmup_steps=100, schedule="cosine", final_scale=0.03, b2=0.95),
        ),
        sample=SampleConfig(
            prompts=("a game of Pong",), frames=17, size=(64, 64), fps=15.0, steps=4, guidance=1.0
        ),
    )
