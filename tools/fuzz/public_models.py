"""Small folders of public models with random weights, in the layouts that vdit reads: what tools.fuzz.folders damages.

They are written from vdit's own weight maps, without torch; Wan's and DiT's own layouts hold files as torch.save
writes them, made here by hand.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vdit.models.network import Network
from vdit.models.text import TextConfig, t5_text
from vdit.pretrained import clip, dit, kl_vae, t5, wan, wan_vae
from vdit.pretrained.model import abstract_vae, one_device
from vdit.pretrained.scheduler import OPTIONS
from vdit.pretrained.tensors import TensorInfo, write_safetensors
from vdit.pretrained.weights import Rule, flatten
from vdit.train.state import abstract_params

PIECES = ("<pad>", "</s>", "<unk>", "\u2581", "a", "b", "\u2581red", "\u2581dog", "e", "d", "o", "g", "r", "1", "2")
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}

_WAN = {
    "_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "num_attention_heads": 2, "attention_head_dim": 12,
    "in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "eps": 1e-6,
    "image_dim": None, "added_kv_proj_dim": None, "rope_max_seq_len": 1024, "pos_embed_seq_len": None,
    "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "window_size": [-1, -1],
}  # fmt: skip
_WAN_VAE = {
    "_class_name": "AutoencoderKLWan", "base_dim": 8, "decoder_base_dim": None, "z_dim": 4, "dim_mult": [1, 2],
    "num_res_blocks": 1, "attn_scales": [], "temperal_downsample": [True], "dropout": 0.0, "is_residual": False,
    "in_channels": 3, "out_channels": 3, "patch_size": None, "scale_factor_temporal": 2, "scale_factor_spatial": 2,
    "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5], "clip_output": False,
}  # fmt: skip
_T5 = {
    "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": 32, "d_model": 16, "num_heads": 2,
    "d_kv": 8, "d_ff": 24, "num_layers": 2, "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "eos_token_id": 1, "pad_token_id": 0,
    "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True, "is_decoder": False,
    "dropout_rate": 0.1, "classifier_dropout": 0.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0", "use_cache": True, "tokenizer_class": "T5Tokenizer",
}  # fmt: skip
_CLIP = {
    "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14,
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
    "layer_norm_eps": 1e-5, "num_channels": 3, "projection_dim": 16, "attention_dropout": 0.0,
    "initializer_range": 0.02, "torch_dtype": "float32",
}  # fmt: skip
_PIXELS = {
    "image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 28, "width": 28},
    "size": {"shortest_edge": 28}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
    "resample": 3, "rescale_factor": 1 / 255,
}  # fmt: skip
_DIT = {
    "_class_name": "DiTTransformer2DModel", "activation_fn": "gelu-approximate", "attention_bias": True,
    "attention_head_dim": 12, "dropout": 0.0, "in_channels": 4, "norm_elementwise_affine": False, "norm_eps": 1e-5,
    "norm_num_groups": 32, "norm_type": "ada_norm_zero", "num_attention_heads": 2, "num_embeds_ada_norm": 3,
    "num_layers": 2, "out_channels": 8, "patch_size": 2, "sample_size": 8, "upcast_attention": False,
}  # fmt: skip
_KL_VAE = {
    "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 16], "layers_per_block": 1, "act_fn": "silu",
    "latent_channels": 4, "norm_num_groups": 4, "sample_size": 32, "scaling_factor": 0.18215, "shift_factor": None,
    "latents_mean": None, "latents_std": None, "force_upcast": True, "use_quant_conv": True,
    "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip
_TOKENIZER = {
    "extra_ids": 2, "model_max_length": 10**30, "tokenizer_class": "T5Tokenizer", "pad_token": "<pad>",
    "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}},
}  # fmt: skip


def write_all(root: Path) -> None:
    """One folder of each layout under `root`, by name."""
    write_wan(root / "wan")
    write_wan(root / "wan-image", image=True)
    write_wan(root / "wan-experts", experts=True)
    _diffusers_dit(root / "dit")
    _own_wan(root / "own-wan")
    _own_wan(root / "own-wan-experts", experts=True)
    _own_dit(root / "own-dit")


def schedulers() -> list[dict[str, Any]]:
    """A scheduler_config.json of each class, every option written out."""
    found = []
    for name, options in OPTIONS.items():
        flow = FLOW if "use_flow_sigmas" in options else {}
        found.append({"_class_name": name, "_diffusers_version": "0.35.0"} | options | flow)
    return found


def torch_file(tensors: dict[str, np.ndarray], pickle: bytes | None = None) -> bytes:
    """Bytes as torch.save writes them for a dict of float32 tensors. pickle: another data.pkl instead."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickle(tensors) if pickle is None else pickle)
        archive.writestr("archive/byteorder", "little")
        for key, values in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(values, np.float32).tobytes())
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def _pickle(tensors: dict[str, np.ndarray]) -> bytes:
    """The opcodes of protocol 2 for {name: tensor}."""
    parts = [b"\x80\x02}("]
    for key, (name, values) in enumerate(tensors.items()):
        stride = [side // 4 for side in np.ascontiguousarray(values, np.float32).strides]
        storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(key)) + _text("cpu")
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", storage + _number(values.size) + b"tQ"]
        parts += [_number(0), _tuple(values.shape), _tuple(stride), b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join(parts) + b"u."


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def piece_model() -> bytes:
    """A sentencepiece unigram model of a few pieces."""
    pieces = b""
    for i, piece in enumerate(PIECES):
        kind = {0: 3, 1: 3, 2: 2}.get(i, 1)
        entry = b"\x0a" + bytes([len(piece.encode())]) + piece.encode()
        entry += b"\x15" + struct.pack("<f", -float(i)) + b"\x18" + bytes([kind])
        pieces += b"\x0a" + bytes([len(entry)]) + entry
    trainer = b"\x18\x01\xc0\x02\x02\xc8\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # unigram; unk 2, no begin
    trainer += b"\xd0\x02\x01\xd8\x02\x00"  # end 1, pad 0
    normaliser = b"\x0a\x08identity"
    return pieces + b"\x12" + bytes([len(trainer)]) + trainer + b"\x1a" + bytes([len(normaliser)]) + normaliser


def _tensors(rules: Iterable[Rule], abstract, seed: int) -> dict[str, np.ndarray]:
    """Random values for every tensor that the rules read."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}
    random, found = np.random.default_rng(seed), {}
    for rule in rules:
        values = random.normal(size=rule.shape(shapes), scale=0.1).astype(np.float32)
        found |= dict.fromkeys((rule.name, *rule.copies), values)
    return found


def _save(tensors: dict[str, np.ndarray], folder: Path, stem: str, shards: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names, places = list(tensors), {}
    for i in range(shards):
        mine = names[i::shards]
        file = f"{stem}.safetensors" if shards == 1 else f"{stem}-{i + 1:05}-of-{shards:05}.safetensors"
        info = {name: TensorInfo(tensors[name].shape, tensors[name].dtype) for name in mine}
        write_safetensors(folder / file, info, tensors.__getitem__)
        places |= dict.fromkeys(mine, file)
    if shards > 1:
        size = sum(values.nbytes for values in tensors.values())
        _dump({"metadata": {"total_size": size}, "weight_map": places}, folder / f"{stem}.safetensors.index.json")


def _dump(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trees:
    """Shapes of a model's parameters, and the configs that they are of."""

    dit: Any
    text: Any
    vision: Any
    network: Any
    vae: Any


def _trees(dit_json: dict, vae_json: dict, read: Callable, family, *, text: bool, image: bool = False) -> _Trees:
    config, vae = read(dit_json), family.vae_config(vae_json)
    encoder = t5.t5_config(_T5) if text else None
    vision = clip.clip_config(_CLIP, _PIXELS) if image else None
    network = Network(backbone=config, text=t5_text(encoder) if text else TextConfig(max_length=1), vision=vision)
    mesh = one_device()
    return _Trees(
        dit=config, text=encoder, vision=vision, network=abstract_params(network.init, mesh),
        vae=(vae, abstract_vae(vae, mesh)),
    )  # fmt: skip


def write_wan(folder: Path, *, image: bool = False, experts: bool = False, seed: int = 0) -> None:
    """A Wan model as diffusers saves it. seed: of its weights, and statistics."""
    changes = {"in_channels": 10, "image_dim": 16, "added_kv_proj_dim": 24} if image else {}
    trees = _trees(_WAN | changes, _WAN_VAE, wan.wan_config, wan_vae, text=True, image=image)
    index: dict[str, Any] = {
        "_class_name": "WanImageToVideoPipeline" if image else "WanPipeline",
        "_diffusers_version": "0.35.0",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"] if experts else [None, None],
        "boundary_ratio": 0.875 if experts else None,
        "expand_timesteps": False,
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    }
    for i, name in enumerate(("transformer", "transformer_2")[: 1 + experts]):
        tensors = _tensors(wan.diffusers_rules(trees.dit), trees.network["dit"], seed + i)
        _save(tensors, folder / name, "diffusion_pytorch_model", shards=2)
        _dump(_WAN | changes, folder / name / "config.json")
    if image:
        index |= {"image_encoder": ["transformers", "CLIPVisionModel"]}
        index |= {"image_processor": ["transformers", "CLIPImageProcessor"]}
        tensors = _tensors(clip.diffusers_rules(trees.vision), trees.network["vision"], seed + 3)
        _save(tensors, folder / "image_encoder", "model")
        _dump(_CLIP, folder / "image_encoder" / "config.json")
        _dump(_PIXELS, folder / "image_processor" / "preprocessor_config.json")
    _save(_tensors(t5.diffusers_rules(trees.text), trees.network["text"], seed + 4), folder / "text_encoder", "model")
    _dump(_T5, folder / "text_encoder" / "config.json")
    tensors = _tensors(wan_vae.diffusers_rules(trees.vae[0]), trees.vae[1], seed + 5)
    _save(tensors, folder / "vae", "diffusion_pytorch_model")
    _dump(_WAN_VAE | {"latents_mean": [0.1 * seed, -0.2, 0.3, 0.0]}, folder / "vae" / "config.json")
    _dump(schedulers()[3], folder / "scheduler" / "scheduler_config.json")
    _dump(index, folder / "model_index.json")
    _tokenizer(folder / "tokenizer")


def _tokenizer(folder: Path) -> None:
    _dump(_TOKENIZER, folder / "tokenizer_config.json")
    (folder / "spiece.model").write_bytes(piece_model())


def _diffusers_dit(folder: Path) -> None:
    trees = _trees(_DIT, _KL_VAE, dit.dit_config, kl_vae, text=False)
    index = {
        "_class_name": "DiTPipeline",
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "id2label": {"0": "tench", "1": "goldfish", "2": "great white shark"},
    }
    tensors = _tensors(dit.diffusers_rules(trees.dit), trees.network["dit"], 6)
    _save(tensors, folder / "transformer", "diffusion_pytorch_model")
    _dump(_DIT, folder / "transformer" / "config.json")
    _save(_tensors(kl_vae.diffusers_rules(trees.vae[0]), trees.vae[1], 7), folder / "vae", "diffusion_pytorch_model")
    _dump(_KL_VAE, folder / "vae" / "config.json")
    _dump(schedulers()[0], folder / "scheduler" / "scheduler_config.json")
    _dump(index, folder / "model_index.json")


def _own_wan(folder: Path, *, experts: bool = False) -> None:
    """Wan's own layout, with a small VAE in the place of its own: see `small_vae`."""
    trees = _trees(_WAN, _WAN_VAE, wan.wan_config, wan_vae, text=True)
    config = {
        "_class_name": "WanModel", "model_type": "t2v", "patch_size": [1, 2, 2], "dim": 24, "num_heads": 2, "in_dim": 4,
        "out_dim": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "eps": 1e-6, "text_len": 512,
    }  # fmt: skip
    for i, name in enumerate(("high_noise_model", "low_noise_model") if experts else ("",)):
        tensors = _tensors(wan.original_rules(trees.dit), trees.network["dit"], 8 + i)
        _save(tensors, folder / name, "diffusion_pytorch_model")
        _dump(config, folder / name / "config.json")
    text = _tensors(t5.original_rules(trees.text), trees.network["text"], 10)
    (folder / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(torch_file(text))
    vae = _tensors(wan_vae.original_rules(trees.vae[0]), trees.vae[1], 11)
    (folder / "Wan2.1_VAE.pth").write_bytes(torch_file(vae))
    _tokenizer(folder / "google" / "umt5-xxl")


def small_vae(*_):
    """The VAE of `_own_wan`; for original_layouts.vae_preset, whose has 127 M parameters."""
    return wan_vae.vae_config(_WAN_VAE)


def _own_dit(folder: Path) -> None:
    """DiT's own layout: one .pt file of the smallest width that needs no word on its heads, one block deep."""
    config = _DIT | {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 1}
    trees = _trees(config, _KL_VAE, dit.dit_config, kl_vae, text=False)
    tensors = _tensors(dit.original_rules(trees.dit), trees.network["dit"], 12)
    tensors |= dit.original_constants(trees.dit, {"pos_embed": (1, 16, trees.dit.width)})
    _save(_tensors(kl_vae.diffusers_rules(trees.vae[0]), trees.vae[1], 13), folder / "vae", "diffusion_pytorch_model")
    _dump(_KL_VAE, folder / "vae" / "config.json")
    (folder / "DiT-S-2-64x64.pt").write_bytes(torch_file(tensors))
