"""DiT-XL for text to video on a pod: parameters sharded by eight, rows of 32k tokens, bf16, remat.

    vdit plan experiments/dit_xl_pod.py
    vdit train experiments/dit_xl_pod.py --workdir /mnt/shared/xl --cfg.data.source.path=VIDEOS

Hardware: 16 TPU v6e (4x4), or any multiple of 8 chips; not run yet.
Expected: by `vdit plan`, at the roofline with nothing overlapped, rows of one clip:

    training step, 64 rows, 2.1 M tokens    19.9 of 31.25 GiB a chip, 4.1 s, MFU 58%, 44 G tokens a day
    sampling 16 videos, 30 steps, guided     0.9 GiB, 2.9 s
    decoding them, 4 latent frames at once   1.1 GiB, 0.06 s

Start the same command on every host (see experiments/launch). Mesh: parameters and optimizer state over `fsdp`, the
batch over `data` and `fsdp`, accumulated in four pieces to fit. For longer rows use --cfg.mesh.sequence=4, for wider
models --cfg.mesh.tensor=2.
Smaller: --cfg.backbone.width=768 --cfg.backbone.depth=12 --cfg.backbone.heads=12 is DiT-B.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import FolderSource
from vdit.diffusion import DiffusionConfig
from vdit.dist.mesh import MeshConfig
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.training import OptimizerConfig, TrainConfig
from vdit.models.dit.config import preset as dit_preset
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import DiscriminatorConfig, VAELossConfig
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="dit_xl_pod",
        topology="v6e:4x4",
        mesh=MeshConfig(data=-1, fsdp=8),
        data=DataConfig(
            source=FolderSource(path="videos"),
            pixel_budgets=(192 * 320, 256 * 448, 480 * 832),
            size_multiple=16,
            frames=(1, 17, 33, 65),
            fps=(12.0, 24.0),
            hflip=0.5,
            # 65 frames at the largest area are 17 x 1,560 = 26,520 tokens; the packer fills up with shorter clips.
            row_tokens=32_768,
            max_text_per_row=2048,
            max_frames_per_row=512,
            max_clips_per_row=64,
            buffer_rows=16,
            threads=16,
            read_ahead=64,
        ),
        vae=vae_preset("base", base_channels=96, dtype="bfloat16", remat=True),
        vae_loss=VAELossConfig(kl_weight=1e-5, adversarial_weight=0.05, adversarial_start=50_000),
        discriminator=DiscriminatorConfig(dtype="bfloat16"),
        vae_clips=VAETrainConfig(frames=17, size=(192, 192)),
        vae_train=TrainConfig(
            steps=100_000,
            batch_size=64,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000, schedule="cosine", final_scale=0.1),
            save_every=5000,
        ),
        latents=LatentsConfig(samples=0, dtype="bfloat16"),
        text=TextConfig(vocab_size=32_000, max_length=128, width=768, depth=6, heads=12, dtype="bfloat16"),
        backbone=dit_preset("XL", dtype="bfloat16", remat="attention"),
        diffusion=DiffusionConfig(kind="flow", prediction="velocity", timestep_sampling="logit_normal", shift=3.0),
        canvases=CanvasConfig(none=0.6, first=0.1, head=0.1, tail=0.05, ends=0.05, frames=0.1, window=0.1),
        dit_train=TrainConfig(
            steps=400_000,
            batch_size=64,
            accumulation=4,
            optimizer=OptimizerConfig(
                learning_rate=1e-4, warmup_steps=5000, weight_decay=0.01, b2=0.95, schedule="constant"
            ),
            ema_decay=0.9999,
            save_every=2000,
            keep=3,
            log_every=50,
        ),
        sample=SampleConfig(frames=65, size=(256, 448), fps=24.0, sampler="unipc", steps=30, guidance=5.0),
    )
