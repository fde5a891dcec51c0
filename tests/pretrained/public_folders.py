"""Small models with random weights, written by the reference's own classes in their public form."""

from __future__ import annotations

import io
import json
from pathlib import Path

SPACE = 16  # latent sides of the small pipelines are pixels / 8, and tokens a quarter of that


def lively(module, seed: int = 0):
    """Every parameter drawn anew: initial zeros (gates, biases, tables) would hide mistakes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2 and "table" not in name and "embed_tokens" not in name and "shared" not in name:
            noise *= parameter[0].numel() ** -0.5
        elif "norm" in name or "gamma" in name:
            noise = 1 + 0.2 * noise
        else:
            noise *= 0.3
        parameter.data.copy_(noise.reshape(parameter.shape))
    return module.eval()


def train_spiece(path: Path, sentences: list[str] | None = None) -> Path:
    """A sentencepiece model with T5's special pieces: pad 0, end 1, unknown 2, no begin."""
    import sentencepiece

    text = "a red dog and the blue cat run over green hills while rain falls on small houses at night"
    words = text.split()
    lines = sentences or [" ".join(words[i:] + words[:i]) + " 你好 世界 é ü 1234" for i in range(len(words))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=120, hard_vocab_limit=False,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
        byte_fallback=False,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def tokenizer(folder: Path):
    """transformers' T5 tokenizer on a model of our own making."""
    from transformers import T5TokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    train_spiece(folder / "spiece.model")
    return T5TokenizerFast.from_pretrained(folder, extra_ids=0)


def text_encoder(vocabulary: int, width: int = 32):
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return lively(UMT5EncoderModel(config), 1)


def wan_transformer(seed: int = 2, **changes):
    from diffusers import WanTransformer3DModel

    options = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 16,
        "out_channels": 16, "text_dim": 32, "freq_dim": 256, "ffn_dim": 64, "num_layers": 2,
    }  # fmt: skip
    return lively(WanTransformer3DModel(**options | changes), seed)


def wan_vae(seed: int = 3, **changes):
    from diffusers import AutoencoderKLWan

    options = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    return lively(AutoencoderKLWan(**options | changes), seed)


def unipc(shift: float = 3.0):
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan(folder: Path, **options):
    """A Wan text-to-video pipeline, saved in `folder`. options: of WanPipeline, beside its usual parts."""
    from diffusers import WanPipeline

    pieces = tokenizer(folder / "made")
    parts = {
        "tokenizer": pieces,
        "text_encoder": text_encoder(len(pieces)),
        "transformer": wan_transformer(),
        "vae": wan_vae(),
        "scheduler": unipc(),
    }
    pipe = WanPipeline(**parts | options)
    pipe.save_pretrained(folder)
    _add_spiece(folder)
    return pipe


def wan_experts(folder: Path):
    """Wan 2.2 A14B: two transformers, one for each end of the noise levels."""
    return wan(folder, transformer_2=wan_transformer(7), boundary_ratio=0.875)


def wan_5b(folder: Path, pipeline: str = "WanPipeline"):
    """Wan 2.2 TI2V-5B: a 4x16x16 autoencoder, a time for each token."""
    import diffusers

    pieces = tokenizer(folder / "made")
    changes = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 8}
    parts = {
        "tokenizer": pieces,
        "text_encoder": text_encoder(len(pieces)),
        "transformer": wan_transformer(),
        "vae": wan_vae(scale_factor_spatial=16, **changes),
        "scheduler": unipc(5.0),
        "expand_timesteps": True,
    }
    if pipeline != "WanPipeline":
        parts |= {"image_encoder": None, "image_processor": None}
    pipe = getattr(diffusers, pipeline)(**parts)
    pipe.save_pretrained(folder)
    _add_spiece(folder)
    return pipe


def wan_image(folder: Path):
    """Wan 2.1 image-to-video: condition channels, and an image encoder."""
    from diffusers import WanImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    pieces = tokenizer(folder / "made")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
        hidden_act="gelu",
    )  # fmt: skip
    pipe = WanImageToVideoPipeline(
        tokenizer=pieces,
        text_encoder=text_encoder(len(pieces)),
        transformer=wan_transformer(in_channels=36, image_dim=32, added_kv_proj_dim=48),
        vae=wan_vae(),
        scheduler=unipc(),
        image_encoder=lively(CLIPVisionModel(vision), 4),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
    )
    pipe.save_pretrained(folder)
    _add_spiece(folder)
    return pipe


def dit(folder: Path):
    """A class-conditional DiT with the Stable Diffusion autoencoder, and DDIM."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero", norm_elementwise_affine=False,
        activation_fn="gelu-approximate", attention_bias=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215,
    )  # fmt: skip
    pipe = DiTPipeline(_one_embedder(lively(transformer, 5)), lively(vae, 6), DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(i): f"class {i}, thing {i}" for i in range(1000)}
    (folder / "model_index.json").write_text(json.dumps(index))
    return pipe


def _one_embedder(transformer):
    """The blocks of a public DiT have copies of one embedder of times and classes."""
    first = transformer.transformer_blocks[0].norm1.emb.state_dict()
    for block in transformer.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return transformer


def _add_spiece(folder: Path) -> None:
    """Public folders hold the tokenizer's spiece.model; newer transformers write tokenizer.json alone."""
    (folder / "made" / "spiece.model").rename(folder / "tokenizer" / "spiece.model")
    (folder / "made").rmdir()
