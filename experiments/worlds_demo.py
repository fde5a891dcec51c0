"""The model that ships with vdit as `demo`: five rendered worlds at 64x64, and every canvas.

    vdit train experiments/worlds_demo.py --out runs/demo
    vdit export runs/demo demo --dtype float16
    vdit sample demo "a red circle moves to the left"

Hardware: two CPU cores. Expected: see docs/demo.md, which has its figures, time and limits.

More than half of the training clips are generated from text alone. Of the others some frames, or a region, are given:
one set of weights samples, animates, extends, loops, connects, edits, inpaints and rolls out.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import WorldsSource
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
        name="worlds_demo",
        data=DataConfig(
            source=WorldsSource(world="moving+bounce+occluder+orbit+steer", count=12_000, options=(
                "moving.sizes=(0.2,0.28)",
                "bounce.balls=(1,2)",
                "occluder.sizes=(0.1,0.12)",
                "occluder.hiding=(0.03,0.06)",
                "occluder.place=(0.4,0.6)",
                "orbit.solids=(1,2)",
            )),
            pixel_budgets=(64 * 64,),
            frames=(1, 17, 17, 17),
            fps=(8.0,),
            row_tokens=320,
            max_text_per_row=128,
            max_frames_per_row=8,
            max_clips_per_row=6,
            threads=2,
        ),
        vae=vae_preset("tiny", out_width=256),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=1e-4, equivariance_weight=0.5),
        vae_clips=VAETrainConfig(frames=5, size=(64, 64)),
        vae_train=TrainConfig(
            steps=3600,
            batch_size=4,
            ema_decay=0.99,
            optimizer=Muon(
                learning_rate=4e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3
            ),
        ),
        latents=LatentsConfig(samples=12_000),
        text=TextConfig(width=128, depth=0, heads=4, max_length=96, vocab_size=600),
        backbone=DiTConfig(
            in_channels=8, patch=(1, 1, 1), width=96, depth=6, heads=3, position="both", scan=False
        ),
        # Where things are, and how they go on from given frames, is decided at high noise.
        diffusion=DiffusionConfig(stratified=True, shift=2.0),
        canvases=CanvasConfig(
            none=0.65, first=0.07, head=0.09, tail=0.04, ends=0.05, mask=0.06, frames=0.04, window=0.2,
            context_noise=0.1,
        ),
        dit_train=TrainConfig(
            steps=12_000,
            batch_size=6,
            ema_decay=0.998,
            save_every=500,
            optimizer=Muon(learning_rate=4e-3, warmup_steps=200, schedule="cosine", final_scale=0.03, b2=0.95),
        ),
        sample=SampleConfig(
            prompts=("a red circle moves to the left", "a blue sphere on a chequered floor, the camera orbits"),
            frames=17,
            size=(64, 64),
            fps=8.0,
            sampler="heun",
            steps=20,
            guidance=4.0,
            interval=(0.0, 0.9),
            context_guidance=2.0,  # by what is known: joins are smoother, motion goes on more exactly
        ),
    )
