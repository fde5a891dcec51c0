"""A world model of a body: MuJoCo's half cheetah, six motors in, frames out.

    MUJOCO_GL=egl vdit record HalfCheetah-v5 cheetah --episodes 64
    MUJOCO_GL=egl vdit record HalfCheetah-v5 cheetah_test --episodes 12 --seed 1
    vdit train experiments/halfcheetah.py --out runs/cheetah --cfg.data.source.path=cheetah
    MUJOCO_GL=egl vdit eval runs/cheetah --emulator cheetah_test
    vdit simulate runs/cheetah "HalfCheetah" --actions motors.csv --out played.mp4

Hardware: one CPU core, 43 minutes. Expected: SSIM 0.65 over 64 frames, against 0.63 of the last frame; a body that
moves, with blurred limbs (docs/emulators.md).

As experiments/vizdoom_corridor.py: an action is six numbers from -1 to 1, 20 times a second.
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
        name="halfcheetah",
        data=DataConfig(
            source=EpisodesSource(path="cheetah"),
            pixel_budgets=(64 * 64,),
            size_multiple=16,
            frames=(17,),
            frame_multiple=1,
            fps=(20.0,),
            actions=6,
            row_tokens=17 * 16,
            max_text_per_row=24,
            max_frames_per_row=17,
            max_clips_per_row=1,
            threads=1,
        ),
        vae=vae_preset("tiny", patch_frames=1, latent_channels=16, out_width=256),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=1e-4, equivariance_weight=0.25),
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
            in_channels=16, patch=(1, 2, 2), width=128, depth=5, heads=2, action_width=6, causal=True, position="both",
            scan=False,
        ),
        diffusion=DiffusionConfig(stratified=True, shift=4.0),  # as in pong.py
        canvases=CanvasConfig(none=0.05, first=0.05, head=0.85, frames=0.1, context_dropout=0.0, context_noise=0.2),
        dit_train=TrainConfig(
            steps=6000,
            batch_size=4,
            ema_decay=0.995,
            save_every=500,
            optimizer=Muon(learning_rate=4e-3, warmup_steps=100, schedule="cosine", final_scale=0.03, b2=0.95),
        ),
        sample=SampleConfig(
            prompts=("HalfCheetah",), frames=17, size=(64, 64), fps=20.0, steps=4, guidance=1.0
        ),
    )
