"""CLIP image encoders: configs and weight maps, of transformers' folders and of Wan's own checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vdit.errors import WeightsError
from vdit.models.vision import CLIPVisionConfig
from vdit.pretrained.options import (
    ANYTHING,
    HEADS,
    LAYERS,
    TOKENS,
    WIDTH,
    flag,
    number,
    read_options,
    several,
    whole,
    words,
)
from vdit.pretrained.weights import LINEAR, SAME, Layout, Part, Rule, linear, norm, reshaped, rule

# What the encoder has, by the names of CLIPVisionConfig and of the public config.json.
_NAMES = {
    "image_size": "image_size",
    "patch": "patch_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "activation": "hidden_act",
    "eps": "layer_norm_eps",
}
# What transformers takes for an option that config.json does not name.
_OPTIONS = {
    "image_size": whole(224, high=4096),
    "patch_size": whole(32, high=4096),
    "hidden_size": whole(768, high=WIDTH),
    "num_hidden_layers": whole(12, 2, high=LAYERS),
    "num_attention_heads": whole(12, high=HEADS),
    "intermediate_size": whole(3072, high=TOKENS),
    "hidden_act": words("quick_gelu", "gelu", "quick_gelu"),
    "layer_norm_eps": number(1e-5, 0.0, 0.1),
}
_NO_MATTER = (
    "architectures", "attention_dropout", "dropout", "dtype", "initializer_factor", "initializer_range", "model_type",
    "projection_dim", "torch_dtype", "transformers_version",
)  # fmt: skip
_PREFIX = "vision_model."
# Tensors of public checkpoints that are not read: the projection to the space shared with text, a buffer.
UNUSED = ("visual_projection.", f"{_PREFIX}embeddings.position_ids", "embeddings.position_ids")
# And of Wan's own: the text encoder, the temperature, the projection.
ORIGINAL_UNUSED = ("textual.", "log_scale", "visual.head")


def clip_config(json: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> CLIPVisionConfig:
    """Read the config.json of transformers' CLIPVisionModel.

    Args:
        json: content of config.json.
        preprocessor: content of its CLIPImageProcessor's preprocessor_config.json. None: the usual one.

    Returns:
        Our config of the same encoder.

    Raises:
        WeightsError: an option is unknown, out of range, or asks for what cannot be done here.
    """
    if json.get("model_type") != "clip_vision_model":
        raise WeightsError(f"model_type={json.get('model_type')!r} in config.json is not clip_vision_model")
    known = dict.fromkeys(_NO_MATTER, ANYTHING) | _OPTIONS
    values = read_options(json, json.get("_class_name", ""), known, {"num_channels": 3})
    fields = {ours: values[theirs] for ours, theirs in _NAMES.items()}
    if preprocessor is not None:
        fields |= _pixels(preprocessor, fields["image_size"])
    return CLIPVisionConfig(**fields)


def _pixels(json: Mapping[str, Any], size: int) -> dict[str, Any]:
    """mean and std of a preprocessor_config.json; another kind of preprocessing is refused."""
    fixed = {
        "crop_size": {"height": size, "width": size}, "size": {"shortest_edge": size}, "resample": 3,
        "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    }  # fmt: skip
    # Older files have sizes as plain numbers.
    plain = {"crop_size": size, "size": size}
    json = {name: fixed[name] if plain.get(name, -1) == value else value for name, value in json.items()}
    usual = CLIPVisionConfig()
    known = {
        "image_mean": several(usual.mean, number(None, -1e3, 1e3), 3, 3),
        "image_std": several(usual.std, number(None, 1e-6, 1e3), 3, 3),
        "rescale_factor": number(1 / 255),
        "use_square_size": flag(False, none=True),
    }
    known |= dict.fromkeys(("feature_extractor_type", "image_processor_type", "processor_class"), ANYTHING)
    values = read_options(json, json.get("_class_name", ""), known, fixed)
    if abs(values["rescale_factor"] * 255 - 1) > 1e-6 or values["use_square_size"]:
        raise WeightsError("preprocessor_config.json asks for another size or scale of pixels than CLIP's: 0..1")
    return {"mean": values["image_mean"], "std": values["image_std"]}


def clip_json(config: CLIPVisionConfig) -> dict[str, Any]:
    """Write our config as the config.json of CLIPVisionModel: the inverse of `clip_config`."""
    named = {theirs: getattr(config, ours) for ours, theirs in _NAMES.items()}
    return {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "num_channels": 3, **named}


def clip_preprocessor_json(config: CLIPVisionConfig) -> dict[str, Any]:
    """Write our config as the preprocessor_config.json of CLIPImageProcessor."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "size": {"shortest_edge": config.image_size},
        "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }  # fmt: skip


def diffusers_rules(config: CLIPVisionConfig, names: Collection[str] | None = None) -> list[Rule]:
    """Map from transformers' names.

    Args:
        config: our config of the encoder.
        names: those of the checkpoint at hand. transformers 5 writes them without "vision_model." in front, older
            versions with it. None: with it, as public folders have them, and every version reads.

    Returns:
        One rule for each of its tensors.
    """
    bare = names is not None and not any(name.startswith(_PREFIX) for name in names)
    prefix = "" if bare else _PREFIX
    rules = [
        rule(f"{prefix}embeddings.class_embedding", "class_token"),
        rule(f"{prefix}embeddings.patch_embedding.weight", "patch_embed/kernel", patch_layout(config.patch)),
        rule(f"{prefix}embeddings.position_embedding.weight", "position"),
        *norm(f"{prefix}pre_layrnorm", "norm"),
        *norm(f"{prefix}post_layernorm", "last_norm"),
    ]
    linears = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.out_proj"}
    linears |= {"up": "mlp.fc1", "down": "mlp.fc2"}
    for i in range(config.layers):
        block, layer = _place(config, i)
        theirs = f"{prefix}encoder.layers.{i}"
        for ours, name in linears.items():
            rules += linear(f"{theirs}.{name}", f"{block}/{ours}", layer=layer)
        rules += norm(f"{theirs}.layer_norm1", f"{block}/attention_norm", layer=layer)
        rules += norm(f"{theirs}.layer_norm2", f"{block}/mlp_norm", layer=layer)
    return rules


def original_rules(config: CLIPVisionConfig) -> list[Rule]:
    """Map from the names of Wan's own repositories (models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth).

    That file holds a text encoder as well. Tensors whose names begin as in ORIGINAL_UNUSED are not read.

    Args:
        config: our config of the encoder.

    Returns:
        One rule for each of its tensors.
    """
    d, n = config.width, config.tokens
    rules = [
        rule("visual.cls_embedding", "class_token", reshaped((1, 1, d), (d,))),
        rule("visual.patch_embedding.weight", "patch_embed/kernel", patch_layout(config.patch)),
        rule("visual.pos_embedding", "position", reshaped((1, n, d), (n, d))),
        *norm("visual.pre_norm", "norm"),
        *norm("visual.post_norm", "last_norm"),
    ]
    for i in range(config.layers):
        block, layer = _place(config, i)
        theirs = f"visual.transformer.{i}"
        for kind, name, layout in (("weight", "kernel", LINEAR), ("bias", "bias", SAME)):
            parts = tuple(Part(path=f"{block}/{part}/{name}", layer=layer) for part in "qkv")
            rules.append(Rule(name=f"{theirs}.attn.to_qkv.{kind}", parts=parts, layout=layout))
        for ours, name in (("out", "attn.proj"), ("up", "mlp.0"), ("down", "mlp.2")):
            rules += linear(f"{theirs}.{name}", f"{block}/{ours}", layer=layer)
        rules += norm(f"{theirs}.norm1", f"{block}/attention_norm", layer=layer)
        rules += norm(f"{theirs}.norm2", f"{block}/mlp_norm", layer=layer)
    return rules


def _place(config: CLIPVisionConfig, i: int) -> tuple[str, int | None]:
    """Where layer i is: the path of its block, and its place in a stack."""
    if i == config.layers - 1:
        return "last_block", None
    return ("blocks", i) if config.scan else (f"block_{i}", None)


def patch_layout(p: int) -> Layout:
    """torch's Conv2d [o i h w] over patches with sides of p pixels, and our kernel [h*w*i o]."""
    return Layout(
        read=lambda x: x.transpose(2, 3, 1, 0).reshape(p * p * 3, -1),
        write=lambda x: x.reshape(p, p, 3, -1).transpose(3, 2, 0, 1),
    )
