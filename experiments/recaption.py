"""Do better captions make a better text-to-video model? One small model, to be trained on three sets of captions.

    python -m tools.recaption_claim runs/recaption --captioner runs/worlds_captioner

The tool renders the videos once, trains this VAE once, and then trains this transformer on the same latents with
(a) sparse captions with errors, like the alternative texts of web pages, (b) captions that a captioner wrote, and
(c) true captions. This file is what the three have in common; `vdit train experiments/recaption.py` trains (c) alone.

Hardware: 2 CPU cores, about five CPU minutes a model. Expected: the table in docs/language.md.

Clips are small (9 frames of 48x48: 27 tokens), so that nine models fit in an hour of both cores. 95% of the captions of
(b) and (c) are detailed, the mix of DALL-E 3 (Betker et al., 2023); (a) has short ones only.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import WorldsSource
from vdit.diffusion.config import DiffusionConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.optimizer import Muon, OptimizerConfig
from vdit.experiment.training import TrainConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="recaption",
        data=DataConfig(
            source=WorldsSource(world="moving", count=1536, options=("subset=train", "sizes=(0.22,0.30)")),
            pixel_budgets=(48 * 48,),
            frames=(9,),
            long_caption_prob=0.95,
            row_tokens=216,
            max_text_per_row=384,
            max_frames_per_row=24,
            max_clips_per_row=8,
            threads=1,
        ),
        vae=vae_preset("tiny"),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=5, size=(48, 48)),
        vae_train=TrainConfig(
            steps=2800,
            batch_size=4,
            ema_decay=0.99,
            optimizer=OptimizerConfig(
                learning_rate=1.5e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3
            ),
        ),
        latents=LatentsConfig(samples=1536),
        text=TextConfig(width=96, depth=0, heads=4, max_length=48, vocab_size=400),
        backbone=DiTConfig(in_channels=8, width=128, depth=4, heads=4, position="both", scan=False),
        diffusion=DiffusionConfig(stratified=True),
        dit_train=TrainConfig(
            steps=2500,
            batch_size=1,
            ema_decay=0.995,
            save_every=2500,
            log_every=50,
            optimizer=Muon(learning_rate=4e-3, warmup_steps=100, schedule="cosine", final_scale=0.05, b2=0.95),
        ),
        sample=SampleConfig(
            prompts=("a red circle moves to the left", "a blue cross moves up"),
            frames=9,
            size=(48, 48),
            fps=8.0,
            sampler="heun",
            steps=10,
            guidance=4.0,
            interval=(0.0, 0.7),
        ),
    )
