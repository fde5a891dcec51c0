"""A video captioner on ordinary captioned videos, on a pod: vision tower, connector, language model, all our own.

    vdit train experiments/captioner.py --cfg.data.source.path=gs://bucket/clips --workdir gs://bucket/captioner
    vdit caption new_videos --run gs://bucket/captioner

Hardware: a TPU pod slice of 64 chips or more. Expected: not measured yet; nor compiled for a pod. The objective and
the stages are those of worlds_captioner. Captions of the data should be detailed ones: a first set that people or a
large model wrote (vdit caption FOLDER --endpoint MODEL).
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import FolderSource
from vdit.dist.mesh import MeshConfig
from vdit.experiment.captioning import Captioning
from vdit.experiment.experiment import Experiment, LatentsConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.captioner import Captioner
from vdit.models.lm import LMConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="captioner",
        mesh=MeshConfig(fsdp=8),
        data=DataConfig(
            source=FolderSource(path="clips"),
            pixel_budgets=(256 * 256, 320 * 320),
            size_multiple=16,
            frames=(17, 33, 49),
            fps=(8.0, 4.0),
            row_tokens=8192,
            max_text_per_row=4096,
            max_frames_per_row=256,
            max_clips_per_row=64,
        ),
        vae=vae_preset("base"),
        vae_loss=VAELossConfig(reconstruction="l1", kl_weight=1e-4),
        vae_clips=VAETrainConfig(frames=17, size=(256, 256)),
        vae_train=TrainConfig(
            steps=100_000,
            batch_size=64,
            ema_decay=0.999,
            optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=1000, schedule="cosine", final_scale=0.05),
        ),
        latents=LatentsConfig(samples=0),
        text=TextConfig(width=256, depth=0, heads=4, max_length=384, vocab_size=32_000),
        backbone=Captioner(
            in_channels=16,
            width=1024,
            depth=24,
            heads=16,
            pool=4,
            dtype="bfloat16",
            lm=LMConfig(
                vocab_size=32_000, width=1024, layers=24, heads=16, kv_heads=8, mlp=2816, context=16_384,
                dtype="bfloat16", remat="full",
            ),
        ),
        objective=Captioning(text_steps=5000, connector_steps=5000),
        dit_train=TrainConfig(
            steps=60_000,
            batch_size=128,
            ema_decay=0.999,
            optimizer=OptimizerConfig(
                learning_rate=2e-4, warmup_steps=1000, schedule="cosine", final_scale=0.05, b2=0.95, weight_decay=0.01
            ),
        ),
    )  # fmt: skip
