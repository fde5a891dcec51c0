"""Text to video with 3.4 B parameters: up to five seconds of 720p in a row, split over four chips.

    vdit plan experiments/t2v_3b_pod.py
    vdit train experiments/t2v_3b_pod.py --workdir /mnt/shared/t2v --cfg.data.source.path=VIDEOS

Hardware: 64 TPU v5p (4x4x4); not run yet. Expected: by `vdit plan` (a roofline: nothing overlapped, rows of one clip):

    training step, 32 rows, 3.7 M tokens    57.2 of 95.7 GiB a chip, 25 s, MFU 66%, 12.6 G tokens a day
    sampling 16 videos, 40 steps, guided     5.3 GiB, 208 s
    decoding them, 4 latent frames at once  18.2 GiB, 1.6 s

Parameters, optimizer and average are sharded over `fsdp`=16, the tokens of a row over `sequence`=4 by an exchange of
heads (5 of 20 a chip).
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
        name="t2v_3b_pod",
        topology="v5p:4x4x4",
        mesh=MeshConfig(data=1, fsdp=16, sequence=4),
        data=DataConfig(
            source=FolderSource(path="videos"),
            pixel_budgets=(256 * 448, 480 * 832, 704 * 1280),
            size_multiple=16,
            frames=(1, 33, 65, 121),
            fps=(24.0,),
            hflip=0.5,
            # 121 frames at the largest area are 31 x 44 x 80 = 109,120 tokens; shorter and smaller clips fill up.
            row_tokens=114_688,
            max_text_per_row=2048,
            max_frames_per_row=512,
            max_clips_per_row=32,
            buffer_rows=8,
            threads=32,
            read_ahead=64,
        ),
        vae=vae_preset("wan21", dtype="bfloat16", remat=True),
        vae_loss=VAELossConfig(kl_weight=1e-5, adversarial_weight=0.05, adversarial_start=50_000),
        discriminator=DiscriminatorConfig(dtype="bfloat16"),
        vae_clips=VAETrainConfig(frames=17, size=(192, 192)),
        vae_train=TrainConfig(
            steps=100_000,
            batch_size=128,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, schedule="cosine", final_scale=0.1),
            save_every=5000,
        ),
        latents=LatentsConfig(latent_frames=4, dtype="bfloat16"),
        text=TextConfig(vocab_size=32_000, max_length=256, width=1024, depth=6, heads=16, dtype="bfloat16"),
        backbone=DiTConfig(width=2560, depth=32, heads=20, dtype="bfloat16", remat="attention"),
        diffusion=DiffusionConfig(kind="flow", prediction="velocity", timestep_sampling="logit_normal", shift=5.0),
        canvases=CanvasConfig(none=0.6, first=0.1, head=0.1, tail=0.05, ends=0.05, frames=0.1, window=0.1),
        dit_train=TrainConfig(
            steps=300_000,
            batch_size=32,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5000, weight_decay=0.01, b2=0.95),
            ema_decay=0.9999,
            save_every=1000,
            keep=3,
            log_every=20,
        ),
        sample=SampleConfig(frames=121, size=(704, 1280), fps=24.0, sampler="unipc", steps=40, guidance=5.0),
    )
