"""A minute of 1080p from a prompt: a DiT of 10 B parameters, each clip one row of 736,440 tokens on 32 chips.

    vdit plan experiments/sora_10b_minute.py
    vdit train experiments/sora_10b_minute.py --workdir /mnt/shared/sora --cfg.data.source.path=VIDEOS

Hardware: 512 TPU v5p (8x8x8); not run yet. Expected: by `vdit plan` (a roofline: nothing overlapped, rows of one clip):

    training step, 16 rows, 11.8 M tokens   58.3 of 95.7 GiB a chip, 103 s, MFU 66%, 9.9 G tokens a day
    sampling 16 videos, 40 steps, guided     9.1 GiB, 1,842 s
    decoding them, 32 latent frames at once 27.3 GiB, 5.6 s

Parameters, optimizer and average are sharded over `fsdp`=16, the tokens of a row over `sequence`=32: in attention each
chip holds one of the 32 heads for all tokens, elsewhere 23,040 tokens with all heads. The backward pass reuses the
attention of the forward pass (remat="attention") and recomputes the rest of each block. Images and shorter or smaller
clips fill rows that a minute of 1080p does not.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import FolderSource
from vdit.diffusion import DiffusionConfig
from vdit.dist.mesh import MeshConfig
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import DiscriminatorConfig, VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="sora_10b_minute",
        topology="v5p:8x8x8",
        mesh=MeshConfig(data=1, fsdp=16, sequence=32),
        data=DataConfig(
            source=FolderSource(path="videos"),
            pixel_budgets=(256 * 448, 480 * 832, 704 * 1280, 1088 * 1920),
            size_multiple=32,
            frames=(1, 121, 481, 1441),
            fps=(24.0,),
            hflip=0.5,
            # 1441 frames of 1088 x 1920 are 361 x 34 x 60 = 736,440 tokens: 99.9% of a row.
            row_tokens=737_280,
            max_text_per_row=4096,
            max_frames_per_row=1024,
            max_clips_per_row=32,
            buffer_rows=4,
            threads=32,
            read_ahead=64,
        ),
        vae=vae_preset("wan22", dtype="bfloat16", remat=True),
        vae_loss=VAELossConfig(kl_weight=1e-5, adversarial_weight=0.05, adversarial_start=100_000),
        discriminator=DiscriminatorConfig(dtype="bfloat16"),
        vae_clips=VAETrainConfig(frames=17, size=(256, 256)),
        vae_train=TrainConfig(
            steps=200_000,
            batch_size=512,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2000, schedule="cosine", final_scale=0.1),
            save_every=5000,
        ),
        latents=LatentsConfig(latent_frames=4, dtype="bfloat16"),
        text=TextConfig(vocab_size=64_000, max_length=256, width=2048, depth=12, heads=16, dtype="bfloat16"),
        backbone=DiTConfig(in_channels=48, width=4096, depth=36, heads=32, dtype="bfloat16", remat="attention"),
        diffusion=DiffusionConfig(kind="flow", prediction="velocity", timestep_sampling="logit_normal", shift=8.0),
        canvases=CanvasConfig(none=0.6, first=0.1, head=0.1, tail=0.05, ends=0.05, frames=0.1, window=0.1),
        dit_train=TrainConfig(
            steps=200_000,
            batch_size=16,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5000, weight_decay=0.01, b2=0.95),
            ema_decay=0.9999,
            save_every=500,
            keep=3,
        ),
        sample=SampleConfig(frames=1441, size=(1088, 1920), fps=24.0, sampler="unipc", steps=40, guidance=6.0),
    )
