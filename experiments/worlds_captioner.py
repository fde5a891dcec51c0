"""A captioner of rendered worlds: what is there, its colours, where it goes, what touches, how the camera moves.

    vdit train experiments/worlds_captioner.py --workdir runs/worlds_captioner
    vdit caption my_worlds --run runs/worlds_captioner
    python -m tools.captioner_report runs/worlds_captioner

Hardware: two CPU cores, about 20 minutes of a free machine. Expected: see docs/captioning.md. The language model first
learns the captions alone, then what sees learns to speak to it, then all is trained.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import WorldsSource
from vdit.experiment.captioning import Captioning
from vdit.experiment.experiment import Experiment, LatentsConfig, VAETrainConfig
from vdit.experiment.optimizer import Muon, OptimizerConfig
from vdit.experiment.training import TrainConfig
from vdit.models.captioner import Captioner
from vdit.models.lm import LMConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="worlds_captioner",
        data=DataConfig(
            source=WorldsSource(world="moving+bounce+orbit", count=6000, options=("sizes=(0.2,0.3)",)),
            pixel_budgets=(48 * 48,),
            frames=(9, 17, 17),
            row_tokens=180,
            max_text_per_row=320,
            max_frames_per_row=20,
            max_clips_per_row=4,
            threads=2,
        ),
        vae=vae_preset("tiny", latent_channels=12),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=5, size=(48, 48)),
        vae_train=TrainConfig(
            steps=3000,
            batch_size=4,
            ema_decay=0.99,
            optimizer=OptimizerConfig(
                learning_rate=1.5e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3
            ),
        ),
        latents=LatentsConfig(samples=6000),
        text=TextConfig(width=128, depth=0, heads=4, max_length=128, vocab_size=512),
        backbone=Captioner(
            in_channels=12,
            width=128,
            depth=3,
            heads=4,
            pool=1,
            lm=LMConfig(vocab_size=512, width=96, layers=2, heads=4, kv_heads=4, head_dim=24, mlp=256, context=1024),
        ),
        objective=Captioning(text_steps=100, connector_steps=100),
        dit_train=TrainConfig(
            steps=1500,
            batch_size=8,
            ema_decay=0.99,
            save_every=250,
            optimizer=Muon(learning_rate=5e-3, warmup_steps=50, schedule="cosine", final_scale=0.05, b2=0.95),
        ),
    )
