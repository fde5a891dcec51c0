"""A LoRA for Wan 2.1 (1.3B) on a folder of videos: a new subject, style or motion.

    vdit import Wan2.1-T2V-1.3B-Diffusers runs/wan      # the public weights, once
    vdit train experiments/wan_lora.py --workdir runs/style --cfg.data.source.path=my_videos
    vdit sample runs/style "a prompt in the words of the captions" --out sample.mp4

Hardware: one GPU of 24 GB or more. The stage "latents" holds the text encoder (11 GB in bfloat16) once, to encode the
captions; the training step does not. Expected: not measured yet.

20 to 200 clips with captions are enough (docs/captions.md). The base weights do not change; checkpoints and
`runs/style/lora.safetensors`, which diffusers and ComfyUI load too, hold only the LoRA, 44 M numbers at this rank.
For less memory use --cfg.lora.weights=int8. To train all weights instead, use a lower learning rate:
--cfg.lora=none --cfg.dit_train.optimizer.learning_rate=1e-5.
"""

from vdit.data.config import DataConfig
from vdit.data.data_source import FolderSource
from vdit.diffusion import DiffusionConfig
from vdit.experiment.experiment import Experiment, LatentsConfig, SampleConfig
from vdit.experiment.training import LoRAConfig, OptimizerConfig, TrainConfig
from vdit.models.dit.config import preset as dit_preset
from vdit.models.text.config import t5_preset, t5_text
from vdit.models.vae.config import preset as vae_preset


def config() -> Experiment:
    return Experiment(
        name="wan_lora",
        start_from="runs/wan",
        lora=LoRAConfig(rank=32, weights="bfloat16"),
        data=DataConfig(
            source=FolderSource(path="videos"),
            pixel_budgets=(480 * 832,),
            size_multiple=16,
            frames=(17, 33),
            fps=(16.0,),
            # 33 frames are 9 x 1,560 = 14,040 tokens, 17 frames 7,800; each caption is padded to 512 tokens.
            row_tokens=16_384,
            max_text_per_row=2048,
            max_frames_per_row=32,
            max_clips_per_row=4,
            threads=4,
        ),
        vae=vae_preset("wan21", dtype="bfloat16"),
        # The captions are encoded once, so that training holds no T5.
        latents=LatentsConfig(latent_frames=1, dtype="bfloat16", text=True, text_dtype="bfloat16"),
        text=t5_text(t5_preset("umt5-xxl", dtype="bfloat16")),
        backbone=dit_preset("wan2.1-t2v-1.3b", dtype="bfloat16", remat="full"),
        diffusion=DiffusionConfig(kind="flow", prediction="velocity", shift=3.0, integer_timesteps=True),
        dit_train=TrainConfig(
            steps=1000,
            batch_size=1,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=50),
            ema_decay=0.99,
            save_every=250,
        ),
        sample=SampleConfig(frames=33, size=(480, 832), fps=16.0, sampler="unipc", steps=30, guidance=5.0),
    )
