"""Class-conditional images by DDPM with a learned variance, as in the DiT paper, on any labelled TFDS set.

    vdit train experiments/images_class.py --out runs/classes --cfg.data.source.path=TFDS_FOLDER

Hardware: one GPU of 24 GB or more; 8 for the paper's 400k steps. Expected: not measured yet.

The data set holds videos (uint8 [t h w 3], here of one frame) and an int64 label from 1 (0 is "no class"),
prepared with file_format="array_record", which needs no TensorFlow to read.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import TfdsSource
from vdit.diffusion import DiffusionConfig
from vdit.experiment.experiment import Experiment, SampleConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import preset as dit_preset
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="images_class",
        data=DataConfig(
            source=TfdsSource(path="imagenet_videos", caption_feature="", default_fps=1.0),
            pixel_budgets=(256 * 256,),
            size_multiple=16,
            frames=(1,),
            fps=(1.0,),
            hflip=0.5,
            row_tokens=4096,
            max_frames_per_row=32,
            max_clips_per_row=32,
            threads=16,
        ),
        vae=vae_preset("base", dtype="bfloat16"),
        vae_loss=VAELossConfig(reconstruction="l1", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=1, size=(256, 256)),
        vae_train=TrainConfig(
            steps=50_000,
            batch_size=32,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, schedule="cosine", final_scale=0.1),
        ),
        backbone=dit_preset(
            "B",
            classes=1000,
            text="none",
            modulation="block",
            position="sincos",
            qk_norm="none",
            learn_variance=True,
            dtype="bfloat16",
        ),
        diffusion=DiffusionConfig(
            kind="ddpm", prediction="noise", beta_schedule="linear", timestep_sampling="uniform", learn_variance=True
        ),
        dit_train=TrainConfig(
            steps=400_000,
            batch_size=16,
            optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant"),
            ema_decay=0.9999,
            save_every=5000,
            log_every=50,
        ),
        sample=SampleConfig(frames=1, size=(256, 256), fps=1.0, sampler="ddpm", steps=250, guidance=4.0),
    )
