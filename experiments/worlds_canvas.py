"""One model for every canvas, of rendered worlds: moving shapes, shapes behind a wall, bouncing balls.

    vdit train experiments/worlds_canvas.py --out runs/canvas
    vdit extend runs/canvas shape.mp4 "a red circle moves to the left" --after 16 --out longer.mp4
    python tools/canvas_report.py runs/canvas --out canvas_report

Hardware: 2 CPU cores; VAE 5 minutes, latents 2, DiT 50 (at 2,850 tokens/s), at most 1.6 GB of memory.
Expected: animate 100% right, extend off by 0.028 of the side after 8 frames, object permanence 100%
(docs/measured.md).

Nearly half of the training clips are generated from text alone. Of the others some frames, or a region, are given, so
one set of weights samples, animates, extends, loops, connects, edits, inpaints and rolls out.
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
        name="worlds_canvas",
        data=DataConfig(
            source=WorldsSource(world="moving+occluder+bounce", count=12_000, options=(
                "moving.sizes=(0.18,0.26)",
                "occluder.sizes=(0.1,0.12)",
                "occluder.hiding=(0.03,0.06)",
                "occluder.place=(0.4,0.6)",
                "bounce.balls=(1,2)",
            )),
            pixel_budgets=(48 * 48,),
            frames=(1, 17, 33, 33),
            fps=(24.0,),
            row_tokens=270,
            max_text_per_row=160,
            max_frames_per_row=48,
            max_clips_per_row=16,
            threads=2,
        ),
        vae=vae_preset("tiny"),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=5, size=(48, 48)),
        vae_train=TrainConfig(
            steps=4000,
            batch_size=4,
            ema_decay=0.99,
            optimizer=OptimizerConfig(
                learning_rate=1.5e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3
            ),
        ),
        latents=LatentsConfig(samples=12_000),
        text=TextConfig(width=128, depth=0, heads=4, max_length=48, vocab_size=500),
        backbone=DiTConfig(in_channels=8, width=192, depth=6, heads=3, position="both", scan=False),
        diffusion=DiffusionConfig(stratified=True),
        canvases=CanvasConfig(
            none=0.45,
            first=0.1,
            head=0.14,
            tail=0.08,
            ends=0.08,
            mask=0.1,
            frames=0.05,
            window=0.2,
            context_noise=0.1,
        ),
        dit_train=TrainConfig(
            steps=16_000,
            batch_size=2,
            ema_decay=0.998,
            save_every=1000,
            optimizer=OptimizerConfig(
                learning_rate=1.5e-3, warmup_steps=200, schedule="cosine", final_scale=0.03, b2=0.95
            ),
        ),
        sample=SampleConfig(
            prompts=("a red circle moves to the left", "a blue cross moves up"),
            frames=33,
            size=(48, 48),
            fps=24.0,
            sampler="heun",
            steps=20,
            guidance=2.0,
            context_guidance=2.0,  # by what is known: joins are smoother, motion goes on more exactly
        ),
    )
