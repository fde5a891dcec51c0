"""The smallest pod: a text-to-video DiT-S on 8 chips, parameters sharded over 4, rows over 2.

    vdit plan experiments/pod_tiny.py
    vdit train experiments/pod_tiny.py --workdir /mnt/shared/tiny --cfg.data.source.path=VIDEOS

Hardware: 8 TPU v5e (2x4); not run yet. Expected: by `vdit plan` (a roofline: nothing overlapped, rows of one clip): a
step of 16 rows of 8,192 tokens takes 1.9 of 15.75 GiB a chip and 0.11 s, MFU 52%, 106 G tokens a day.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import FolderSource
from vdit.diffusion import DiffusionConfig
from vdit.dist.mesh import MeshConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import preset as dit_preset
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="pod_tiny",
        topology="v5e:2x4",
        mesh=MeshConfig(data=1, fsdp=4, sequence=2),
        data=DataConfig(
            source=FolderSource(path="videos"),
            pixel_budgets=(96 * 96, 128 * 128, 192 * 192),
            size_multiple=16,
            frames=(1, 17, 33),
            fps=(8.0, 12.0),
            hflip=0.5,
            # 33 frames at the largest area are 9 x 12 x 12 = 1,296 tokens.
            row_tokens=8192,
            max_text_per_row=1024,
            max_frames_per_row=256,
            max_clips_per_row=32,
            threads=16,
        ),
        vae=vae_preset("small", base_channels=64, dtype="bfloat16"),
        vae_loss=VAELossConfig(reconstruction="l1", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=9, size=(128, 128)),
        vae_train=TrainConfig(
            steps=20_000,
            batch_size=32,
            optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=500, schedule="cosine", final_scale=0.05),
        ),
        latents=LatentsConfig(samples=0),
        text=TextConfig(vocab_size=16_000, max_length=64, width=384, depth=2, heads=6, dtype="bfloat16"),
        backbone=dit_preset("S", dtype="bfloat16", remat="attention"),
        diffusion=DiffusionConfig(kind="flow", prediction="velocity", timestep_sampling="logit_normal"),
        dit_train=TrainConfig(
            steps=100_000,
            batch_size=16,
            optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=1000, b2=0.95),
            ema_decay=0.9995,
            save_every=2000,
        ),
        sample=SampleConfig(frames=33, size=(192, 192), fps=12.0, sampler="unipc", steps=30, guidance=4.0),
    )
