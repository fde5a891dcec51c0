"""Wan 2.1 and 2.2 transformers: configs and weight maps, of diffusers folders and of Wan's own checkpoints."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from vdit.errors import WeightsError
from vdit.models.dit.config import WAN, DiTConfig
from vdit.nn.embedding import MAX_POSITION
from vdit.pretrained.options import HEADS, LAYERS, TOKENS, WIDTH, number, read_options, several, whole, words
from vdit.pretrained.weights import Layout, Rule, linear, reshaped, rule

# Options of diffusers' WanTransformer3DModel that we read, and their defaults.
_PATCH = several((1, 2, 2), whole(high=64), 3, 3)
_DIFFUSERS = {
    "patch_size": _PATCH,
    "num_attention_heads": whole(40, high=HEADS),
    "attention_head_dim": whole(128, high=WIDTH),
    "in_channels": whole(16, high=WIDTH),
    "out_channels": whole(16, high=WIDTH, none=True),
    "text_dim": whole(4096, high=WIDTH),
    "freq_dim": whole(256, 2, high=WIDTH),
    "ffn_dim": whole(13824, high=TOKENS),
    "num_layers": whole(40, high=LAYERS),
    "eps": number(1e-6, 0.0, 0.1),
    "image_dim": whole(None, 0, high=WIDTH, none=True),
    "added_kv_proj_dim": whole(None, 0, high=TOKENS, none=True),
    "rope_max_seq_len": whole(MAX_POSITION, high=TOKENS),
    "pos_embed_seq_len": whole(None, 0, high=TOKENS, none=True),
}
# Options of which we can do one value alone.
_DIFFUSERS_FIXED = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "window_size": (-1, -1)}
# The same of Wan's own config.json.
_ORIGINAL = {
    "model_type": words("t2v"),
    "patch_size": _PATCH,
    "dim": whole(2048, high=WIDTH),
    "num_heads": whole(16, high=HEADS),
    "in_dim": whole(16, high=WIDTH),
    "out_dim": whole(16, high=WIDTH),
    "text_dim": whole(4096, high=WIDTH),
    "freq_dim": whole(256, 2, high=WIDTH),
    "ffn_dim": whole(8192, high=TOKENS),
    "num_layers": whole(32, high=LAYERS),
    "eps": number(1e-6, 0.0, 0.1),
    "text_len": whole(512, high=TOKENS),
}
_ORIGINAL_FIXED = {"cross_attn_norm": True, "qk_norm": True, "window_size": (-1, -1)}
# Of Wan 2.1's image-to-video: width of CLIP ViT-H, and its 257 tokens for each of the first and last frame.
_IMAGE_WIDTH, _FIRST_LAST_TOKENS = 1280, 2 * 257
# Wans with further inputs, by the names of their options, tensors and classes, and what tells them what to make.
_VARIANTS = {
    "VACE": (r"(?i)vace", "control videos and masks"),
    "Wan Fun-Camera": (r"control_adapter|camera", "the path of a camera"),
    "Wan Fun-Control": (r"ref_conv", "control videos"),
    "Wan Animate": (r"(?i)animate|face_adapter|motion_encoder|pose_patch", "a face and poses"),
    "Wan S2V": (r"(?i)^s2v$|audio", "sound"),
}
MASK = 4  # channels that tell which frames of an image to video are known: the frames of one latent
_UNSUPPORTED = "not supported; take the text-to-video or image-to-video model that it was made from"
# Words after "high" or "low" in a file's name that make it say something else than an expert.
_NO_EXPERT = frozenset((
    "angle", "contrast", "definition", "detail", "details", "end", "fidelity", "fps", "key", "light", "lighting",
    "motion", "poly", "quality", "rank", "res", "resolution", "saturation", "speed", "steps", "vram",
))  # fmt: skip
_LAYER = re.compile(r"^(blocks|block_\d+)/")


def wan_config(json: Mapping[str, Any]) -> DiTConfig:
    """Read the config of diffusers' WanTransformer3DModel (transformer/config.json).

    Args:
        json: content of config.json.

    Returns:
        Our config of the same transformer.

    Raises:
        WeightsError: an option is unknown or out of range, or the model takes inputs that cannot be given here.
    """
    refuse_variants({name for name, value in json.items() if value}, where="config.json", kind=json.get("_class_name"))
    values = read_options(json, "WanTransformer3DModel", _DIFFUSERS, _DIFFUSERS_FIXED)
    width = values["num_attention_heads"] * values["attention_head_dim"]
    if values["rope_max_seq_len"] > MAX_POSITION:
        raise WeightsError(
            f"rope_max_seq_len={values['rope_max_seq_len']} in config.json is more than the {MAX_POSITION} positions "
            "an axis has here: use a model with fewer"
        )
    if values["added_kv_proj_dim"] not in (None, width) or bool(values["image_dim"]) != bool(
        values["added_kv_proj_dim"]
    ):
        raise WeightsError(
            f"added_kv_proj_dim={values['added_kv_proj_dim']} in config.json must be the width {width} where "
            f"image_dim={values['image_dim']} is set, and null where it is not"
        )
    return config_of(
        patch=values["patch_size"],
        heads=values["num_attention_heads"],
        width=width,
        channels=(values["in_channels"], values["out_channels"] or values["in_channels"]),
        text_width=values["text_dim"],
        time_features=values["freq_dim"],
        mlp_width=values["ffn_dim"],
        depth=values["num_layers"],
        norm_eps=values["eps"],
        image_width=values["image_dim"] or 0,
        image_positions=values["pos_embed_seq_len"] or 0,
    )


def wan_json(config: DiTConfig) -> dict[str, Any]:
    """Write our config as that of diffusers' WanTransformer3DModel: the inverse of `wan_config`.

    Raises:
        WeightsError: the model is not of Wan's architecture.
    """
    _check_is_wan(config)
    return {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": config.width if config.image_width else None,
        "attention_head_dim": config.head_dim,
        "cross_attn_norm": True,
        "eps": config.norm_eps,
        "ffn_dim": config.hidden,
        "freq_dim": config.time_features,
        "image_dim": config.image_width or None,
        "in_channels": config.in_channels + config.condition_channels,
        "num_attention_heads": config.heads,
        "num_layers": config.depth,
        "out_channels": config.in_channels,
        "patch_size": list(config.patch),
        "pos_embed_seq_len": config.image_positions or None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": MAX_POSITION,
        "text_dim": config.text_width,
    }


def original_config(json: Mapping[str, Any], names: Collection[str] | None = None) -> DiTConfig:
    """Read the config.json of Wan's own repositories.

    Args:
        json: content of config.json.
        names: of the checkpoint's tensors. Image-to-video needs them: Wan 2.1 and 2.2 both call theirs "i2v", and only
            2.1 has an image embedding.

    Returns:
        Our config of the same transformer.

    Raises:
        WeightsError: an option is unknown or out of range, or the model takes inputs that cannot be given here.
    """
    refuse_variants({name for name, value in json.items() if value}, where="config.json", kind=json.get("model_type"))
    try:
        values = read_options(json, "WanModel", _ORIGINAL, _ORIGINAL_FIXED)
    except WeightsError:
        # That it needs unsupported inputs matters more than its unknown options.
        total, out = json.get("in_dim"), json.get("out_dim")
        if isinstance(total, int) and isinstance(out, int) and out > 0 and total - out not in (0, out + MASK):
            raise _of_further_inputs(total, out, out + MASK) from None
        raise
    kind = values["model_type"]
    if kind not in ("t2v", "i2v", "ti2v", "flf2v"):
        raise WeightsError(f"model_type={kind!r} in config.json is not supported: use t2v, i2v, ti2v or flf2v")
    if kind == "i2v" and names is None:
        raise WeightsError("model_type='i2v' in config.json is Wan 2.1's and 2.2's: give the tensors' names as well")
    image = kind == "flf2v" or (kind == "i2v" and any(name.startswith("img_emb.") for name in names))
    return config_of(
        patch=values["patch_size"],
        heads=values["num_heads"],
        width=values["dim"],
        channels=(values["in_dim"], values["out_dim"]),
        text_width=values["text_dim"],
        time_features=values["freq_dim"],
        mlp_width=values["ffn_dim"],
        depth=values["num_layers"],
        norm_eps=values["eps"],
        image_width=_IMAGE_WIDTH if image else 0,
        image_positions=_FIRST_LAST_TOKENS if kind == "flf2v" else 0,
    )


def diffusers_rules(config: DiTConfig) -> list[Rule]:
    """Map from diffusers' names.

    Args:
        config: of a Wan transformer.

    Returns:
        One rule for each of its tensors.
    """
    embedder = "condition_embedder"
    names = {
        "patch_embed": "patch_embedding",
        "time_in": f"{embedder}.time_embedder.linear_1",
        "time_out": f"{embedder}.time_embedder.linear_2",
        "time_projection": f"{embedder}.time_proj",
        "text_embed/up": f"{embedder}.text_embedder.linear_1",
        "text_embed/down": f"{embedder}.text_embedder.linear_2",
        "image_embed/position": f"{embedder}.image_embedder.pos_embed",
        "image_embed/norm_in": f"{embedder}.image_embedder.norm1",
        "image_embed/up": f"{embedder}.image_embedder.ff.net.0.proj",
        "image_embed/down": f"{embedder}.image_embedder.ff.net.2",
        "image_embed/norm_out": f"{embedder}.image_embedder.norm2",
        "head_table": "scale_shift_table",
        "head": "proj_out",
        "modulation/table": "scale_shift_table",
        "attention": "attn1",
        "cross_attention": "attn2",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "out": "to_out.0",
        "image_k": "add_k_proj",
        "image_v": "add_v_proj",
        "image_norm": "norm_added_k",
        "cross_norm": "norm2",
        "mlp/up": "ffn.net.0.proj",
        "mlp/down": "ffn.net.2",
    }
    return _rules(config, names)


def original_rules(config: DiTConfig) -> list[Rule]:
    """Map from the names of Wan's own checkpoints, whose norm3 is diffusers' norm2.

    Args:
        config: of a Wan transformer.

    Returns:
        One rule for each of its tensors.
    """
    names = {
        "patch_embed": "patch_embedding",
        "time_in": "time_embedding.0",
        "time_out": "time_embedding.2",
        "time_projection": "time_projection.1",
        "text_embed/up": "text_embedding.0",
        "text_embed/down": "text_embedding.2",
        "image_embed/position": "img_emb.emb_pos",
        "image_embed/norm_in": "img_emb.proj.0",
        "image_embed/up": "img_emb.proj.1",
        "image_embed/down": "img_emb.proj.3",
        "image_embed/norm_out": "img_emb.proj.4",
        "head_table": "head.modulation",
        "head": "head.head",
        "modulation/table": "modulation",
        "attention": "self_attn",
        "cross_attention": "cross_attn",
        "q": "q",
        "k": "k",
        "v": "v",
        "out": "o",
        "image_k": "k_img",
        "image_v": "v_img",
        "image_norm": "norm_k_img",
        "cross_norm": "norm3",
        "mlp/up": "ffn.0",
        "mlp/down": "ffn.2",
    }
    return _rules(config, names)


def refuse_variants(names: Iterable[str], *, where: str, kind: Any = None) -> None:
    """Refuse a Wan with inputs that cannot be given here, told by the names of its options or tensors.

    Args:
        names: of options or tensors.
        where: the file, for the message.
        kind: what its config calls the model.

    Raises:
        WeightsError: it is a VACE, Fun-Control, Animate or the like.
    """
    for variant, (pattern, what) in _VARIANTS.items():
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is None and re.search(pattern, str(kind)):
            found = kind
        if found is not None:
            raise WeightsError(f"{where}: {found!r} belongs to {variant}, controlled by {what}: {_UNSUPPORTED}")


def check_inputs(config: DiTConfig, channels: int, stride: int) -> None:
    """Check that a transformer takes no other inputs beside the noisy latents than image to video has.

    Args:
        config: of the transformer.
        channels: of the autoencoder's latents.
        stride: frames of one latent.

    Raises:
        WeightsError: it takes other channels.
    """
    image = channels + stride  # known latents, and a mask of the frames that are known
    if config.in_channels != channels:
        rule = f"the transformer makes {config.in_channels} channels and the autoencoder has {channels}"
        raise WeightsError(f"{rule}: use both from one model")
    if config.condition_channels not in (0, image):
        raise _of_further_inputs(channels + config.condition_channels, channels, image)


def _of_further_inputs(total: int, channels: int, image: int) -> WeightsError:
    return WeightsError(
        f"the patch embedding takes {total} channels, where text to video has {channels} and image to video "
        f"{channels + image}: this is a Wan Fun-Control, or another Wan that takes more videos as input: {_UNSUPPORTED}"
    )


def expert_of_name(name: str) -> Literal["high", "low"] | None:
    """Tell from a file's name which expert of Wan 2.2 A14B it is for: "style_HIGH.safetensors", "x-low-noise-v2.pt".

    Returns:
        "high" or "low" (noise). None where the name has neither word, has both, or uses them of something else
            ("low_light", "high-res").
    """
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    certain, likely = set(), set()
    for word, after in itertools.zip_longest(words, words[1:]):
        if word in ("high", "low"):
            (certain if after == "noise" else likely if after not in _NO_EXPERT else set()).add(word)
        elif word in ("highnoise", "lownoise"):
            certain.add(word.removesuffix("noise"))
    found = certain or likely
    return found.pop() if len(found) == 1 else None


def tensor_shape(rule: Rule, config: DiTConfig) -> tuple[int, ...]:
    """The shape of the tensor of one rule of either map, from the config alone: nothing is traced or built."""
    path = _LAYER.sub("", rule.parts[0].path)
    layer, _, last = path.rpartition("/")
    width, image = config.width, config.image_width
    sizes = {
        "time_in": (config.time_features, width),
        "time_projection": (width, 6 * width),
        "text_embed/up": (config.text_width, width),
        "image_embed/up": (image, image),
        "image_embed/down": (image, width),
        "image_embed/norm_in": (image, image),
        "head": (width, config.token_values),
        "mlp/up": (width, config.hidden),
        "mlp/down": (config.hidden, width),
    }
    rows, columns = sizes.get(layer, (width, width))
    whole = {
        "head_table": (1, 2, width),
        "modulation/table": (1, 6, width),
        "image_embed/position": (1, config.image_positions, image),
        "patch_embed/kernel": (width, config.in_channels + config.condition_channels, *config.patch),
    }
    return whole.get(path) or ((columns, rows) if last == "kernel" else (columns,))


def patch_kernel(patch: tuple[int, int, int], channels: tuple[int, ...]) -> Layout:
    """Layout between a patch convolution [d c t h w] and our kernel [p d].

    Args:
        patch: (frames, rows, columns).
        channels: groups of input channels that become tokens one after the other, each in (pt ph pw c) order.
    """
    total, pixels = sum(channels), math.prod(patch)
    bounds = np.cumsum((0, *channels))
    rows = np.arange(pixels * total).reshape(pixels, total)
    order = np.concatenate([rows[:, first:last].ravel() for first, last in itertools.pairwise(bounds)])
    back = np.argsort(order)
    return Layout(
        read=lambda x: x.transpose(2, 3, 4, 1, 0).reshape(pixels * total, x.shape[0])[order],
        write=lambda x: x[back].reshape(*patch, total, x.shape[1]).transpose(4, 3, 0, 1, 2),
    )


def config_of(*, channels: tuple[int, int], patch: tuple[int, ...], **options: Any) -> DiTConfig:
    """Build a Wan's config.

    Args:
        channels: how many go in and how many come out. More in than out are a condition.
        patch: (frames, rows, columns) of latents.
        options: further fields of DiTConfig.

    Raises:
        WeightsError: fewer channels go in than come out.
    """
    total, out = channels
    if total < out:
        raise WeightsError(f"in_channels={total} in config.json is less than out_channels={out}: not a Wan model")
    return DiTConfig(**{**WAN, **options, "in_channels": out, "condition_channels": total - out, "patch": tuple(patch)})


def _check_is_wan(config: DiTConfig) -> None:
    """A config that no Wan transformer has cannot be exported as one."""
    wanted = {name: value for name, value in WAN.items() if name != "text_width"}
    wanted |= {"classes": 0, "learn_variance": False, "time_frequency_shift": 0}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise WeightsError(
                f"backbone.{name}={getattr(config, name)!r}, Wan has {value!r}: this model is not of Wan's "
                "architecture, and diffusers has no other text to video model: export it in vdit's own layout "
                "(--layout vdit)"
            )
    if config.mlp_norm_eps not in (None, config.norm_eps):
        rule = f"is not Wan's {config.norm_eps}, one for all norms"
        raise WeightsError(f"backbone.mlp_norm_eps={config.mlp_norm_eps} {rule}")
    if config.text_width is None:
        raise WeightsError("backbone.text_width=None does not say how wide captions are: set it to the encoder's width")


def _rules(config: DiTConfig, names: Mapping[str, str]) -> list[Rule]:
    """names: ours -> theirs, of a layer or of a part of its path."""
    d = config.width
    groups = (config.in_channels, *([config.condition_channels] if config.condition_channels else []))
    embed = names["patch_embed"]
    rules = [
        rule(f"{embed}.weight", "patch_embed/kernel", patch_kernel(config.patch, groups)),
        rule(f"{embed}.bias", "patch_embed/bias"),
        rule(names["head_table"], "head_table", reshaped((1, 2, d), (2, d))),
    ]
    for path in ("time_in", "time_out", "time_projection", "text_embed/up", "text_embed/down", "head"):
        rules += linear(names[path], path)
    if config.image_width:
        for path in ("image_embed/up", "image_embed/down"):
            rules += linear(names[path], path)
        for path in ("image_embed/norm_in", "image_embed/norm_out"):
            rules += _layer_norm(names[path], path)
    if config.image_positions:
        shape = (config.image_positions, config.image_width)
        rules.append(rule(names["image_embed/position"], "image_embed/position", reshaped((1, *shape), shape)))
    for i in range(config.depth):
        rules += _block_rules(config, names, i)
    return rules


def _block_rules(config: DiTConfig, names: Mapping[str, str], i: int) -> list[Rule]:
    ours, layer = ("blocks", i) if config.scan else (f"block_{i}", None)
    theirs, d = f"blocks.{i}", config.width
    table = reshaped((1, 6, d), (6, d))
    rules = [rule(f"{theirs}.{names['modulation/table']}", f"{ours}/modulation/table", table, layer=layer)]
    for path in ("mlp/up", "mlp/down"):
        rules += linear(f"{theirs}.{names[path]}", f"{ours}/{path}", layer=layer)
    rules += _layer_norm(f"{theirs}.{names['cross_norm']}", f"{ours}/cross_norm", layer=layer)
    for kind in ("attention", "cross_attention"):
        head = f"{theirs}.{names[kind]}"
        image = config.image_width and kind == "cross_attention"
        for part in ("q", "k", "v", "out", *(("image_k", "image_v") if image else ())):
            rules += linear(f"{head}.{names[part]}", f"{ours}/{kind}/{part}", layer=layer)
        for part in ("q", "k"):
            rules.append(rule(f"{head}.norm_{part}.weight", f"{ours}/{kind}/norm/{part}/scale", layer=layer))
        if image:
            rules.append(rule(f"{head}.{names['image_norm']}.weight", f"{ours}/{kind}/image_norm/scale", layer=layer))
    return rules


def _layer_norm(name: str, path: str, *, layer: int | None = None) -> list[Rule]:
    """torch's LayerNorm (.weight, .bias) is ours (/scale, /bias)."""
    return [
        rule(f"{name}.weight", f"{path}/scale", layer=layer),
        rule(f"{name}.bias", f"{path}/bias", layer=layer),
    ]
