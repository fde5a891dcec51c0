"""Real clips of any size: a VAE, then a text-to-video DiT, on a folder of 27 video files.

    vdit train experiments/clips.py --out runs/clips --cfg.data.source.path=../shared/data/clips
    vdit sample runs/clips "A large grey cartoon rabbit skips rope with a vine in a sunlit forest." --out rabbit.mp4
    python tools/clips_report.py runs/clips
    python tools/clips_tasks.py runs/clips

Hardware: one CPU core; VAE 15 minutes, DiT 62 minutes, at most 4.7 GiB of memory.
Expected: PSNR of reconstruction 31.0 dB on clips seen and 29.9 dB on those left out; every token useful; text alone
shows the scene of the caption of a clip seen, what moves in it blurred (docs/clips.jpg). Clips are continued at
17.9 dB, without guidance at 18.5 dB (docs/experiment_log.md).
It is a small model: for a good one, train longer on a GPU. A VAE that keeps 29.4 dB and 27.4 dB, in fewer values, gives
a transformer that continues clips better, at 20.6 dB after 3,000 steps:
    --cfg.vae.latent_channels=32 --cfg.backbone.in_channels=32

One batch mixes three areas, three durations and two frame rates; each clip keeps its aspect ratio. Six files of
different kinds are held out, so that the report can compare seen and unseen clips. Any folder of videos with captions
(docs/captions.md) works: vdit train clips --data FOLDER.

With a perceptual loss (it needs SqueezeNet 1.1's Keras file, without top):
    --cfg.vae_loss.perceptual_weight=0.1 --cfg.vae_loss.perceptual_weights=squeezenet_notop.h5
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import FolderSource
from vdit.diffusion import DiffusionConfig
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig, VAETrainConfig
from vdit.experiment.optimizer import Muon
from vdit.experiment.training import TrainConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import VAELossConfig
from vdit.models.vae.config import preset as vae_preset

HOLDOUT = (
    "sam2_01_dog.mp4",  # 720p, fast motion
    "moviepy_sintel_snow.mp4",  # animation, 854x480
    "cogvideo_muybridge_horse.mp4",  # grey, 3:2, 8 fps
    "exo_bear_vp9.webm",  # 320x240, VP9
    "exo_portrait_4k60.mp4",  # portrait, 4K at 60 fps, a third of a second
    "exo_portrait_bracelet_hevc10.mp4",  # portrait, 10 bit, a third of a second
)
PROMPTS = (
    "A large grey cartoon rabbit skips rope with a vine in a sunlit forest.",
    "Top-down static view of an empty asphalt road that a white car crosses.",
    "A black bear moves behind a wire fence in a zoo enclosure.",  # held out
)


def config() -> Experiment:
    return Experiment(
        name="clips",
        data=DataConfig(
            # Decoding 4K would take most of the time: each file is decoded once for each of its three sizes.
            source=FolderSource(path="../shared/data/clips", cache_gib=4.0),
            pixel_budgets=(96 * 96, 128 * 128, 160 * 160),
            size_multiple=16,
            frames=(1, 9, 17, 17),
            fps=(8.0, 12.0),
            hflip=0.0,  # a small model that is to know 21 files: mirrored, they would be twice as much to learn
            row_tokens=1024,
            max_text_per_row=256,
            max_frames_per_row=32,
            max_clips_per_row=24,
            threads=2,
        ),
        holdout=HOLDOUT,
        vae=vae_preset("footage"),
        vae_loss=VAELossConfig(reconstruction="mse", kl_weight=2e-5, equivariance_weight=0.25),
        vae_clips=VAETrainConfig(frames=9, size=(64, 64)),
        vae_train=TrainConfig(
            steps=3000,
            batch_size=4,
            ema_decay=0.99,
            save_every=500,
            optimizer=Muon(
                learning_rate=4e-3, warmup_steps=50, schedule="cosine", final_scale=0.02, b2=0.95, clip_norm=0.3
            ),
        ),
        latents=LatentsConfig(samples=21 * 8, latent_frames=1),
        text=TextConfig(vocab_size=512, max_length=64, width=128, depth=1, heads=4),
        backbone=DiTConfig(in_channels=48, width=192, depth=6, heads=3, position="both", scan=False),
        # A latent has some ten thousand values: what is where is decided at high noise. A token has 192 of them, as
        # many as the network is wide, which predicts clean data better than noise (docs/experiment_log.md).
        diffusion=DiffusionConfig(stratified=True, shift=4.0, prediction="sample", loss_space="velocity"),
        canvases=CanvasConfig(
            none=0.5, first=0.12, head=0.16, tail=0.05, ends=0.05, mask=0.08, frames=0.04, window=0.2, context_noise=0.1
        ),
        dit_train=TrainConfig(
            steps=4000,
            batch_size=1,
            ema_decay=0.99,
            save_every=250,
            optimizer=Muon(learning_rate=4e-3, warmup_steps=100, schedule="cosine", final_scale=0.03, b2=0.95),
        ),
        sample=SampleConfig(prompts=PROMPTS, frames=17, size=(96, 160), fps=12.0, steps=25, guidance=1.5),
    )
