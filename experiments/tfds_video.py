"""Text to video on a TFDS video data set, with v-prediction over a cosine DDPM schedule.

    vdit train experiments/tfds_video.py --out runs/tfds --cfg.data.source.path=TFDS_FOLDER \\
        --cfg.data.source.video_feature=video --cfg.data.source.caption_feature=caption

Hardware: one GPU of 24 GB or more. Expected: not measured yet.

The data set stores frames as a Tensor feature (uint8 [t h w 3]) in array_record, which needs no TensorFlow
to read. --cfg.data.*_feature name its features; an empty name means that the set has no such feature.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import TfdsSource
from vdit.diffusion import DiffusionConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import preset as dit_preset
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="tfds_video",
        data=DataConfig(
            source=TfdsSource(path="tfds_videos", label_feature="", default_fps=25.0),
            pixel_budgets=(96 * 96, 128 * 128),
            size_multiple=16,
            frames=(1, 9, 17),
            fps=(8.0, 12.0),
            hflip=0.5,
            row_tokens=2048,
            max_text_per_row=512,
            max_frames_per_row=128,
            max_clips_per_row=32,
            threads=8,
        ),
        vae=vae_preset("small", base_channels=64),
        vae_loss=VAELossConfig(reconstruction="l1", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=9, size=(96, 96)),
        vae_train=TrainConfig(
            steps=20_000,
            batch_size=16,
            optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=500, schedule="cosine", final_scale=0.05),
        ),
        latents=LatentsConfig(samples=0),
        text=TextConfig(vocab_size=4096, max_length=64, width=256, depth=2, heads=4),
        backbone=dit_preset("S", modulation="block", qk_norm="full", dtype="bfloat16"),
        diffusion=DiffusionConfig(kind="ddpm", prediction="v", beta_schedule="cosine", timestep_sampling="uniform"),
        dit_train=TrainConfig(
            steps=100_000,
            batch_size=16,
            optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=1000, schedule="cosine", final_scale=0.1),
            ema_decay=0.9995,
            save_every=5000,
        ),
        sample=SampleConfig(frames=17, size=(128, 128), fps=8.0, sampler="dpmpp2m", steps=30, guidance=4.0),
    )
