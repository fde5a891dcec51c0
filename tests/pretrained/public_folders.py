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

    words = ["a", "red", "dog", "and", "the", "blue", "cat", "run", "over", "green", "hills", "while", "rain", "falls", "on", "small", "houses", "at", "night"]
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


def _add_spiece(folder: Path) -> None:
    """Public folders hold the tokenizer's spiece.model; newer transformers write tokenizer.json alone."""
    (folder / "made" / "spiece.model").rename(folder / "tokenizer" / "spiece.model")
    (folder / "made").rmdir()


def names(folder: Path) -> dict:
    return json.loads((folder / "model_index.json").read_text())
