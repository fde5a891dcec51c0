"""Stable Diffusion's VAE of images (AutoencoderKL): config, latent statistics, and weight maps.

Names are those of diffusers' AutoencoderKL, today's and those from before 0.15, and of the original (LDM) files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from vdit.errors import WeightsError
from vdit.models.vae.config import VAEConfig, preset
from vdit.pretrained.options import (
    HEADS,
    LEVELS,
    WIDTH,
    check_option,
    defaults,
    flag,
    number,
    read_options,
    same_config,
    several,
    whole,
)
from vdit.pretrained.weights import CONV2D, Layout, Part, Rule, rule
from vdit.types import Array

# What diffusers takes where config.json leaves an option out. sample_size and force_upcast change no number.
OPTIONS = {
    "block_out_channels": several((64,), whole(high=WIDTH), 1, LEVELS),
    "layers_per_block": whole(1, high=100),
    "latent_channels": whole(4, high=HEADS),
    "norm_num_groups": whole(32, high=WIDTH),
    "sample_size": whole(32, high=1 << 16),
    "scaling_factor": number(0.18215, 1e-6, 1e6),
    "shift_factor": number(None, -1e6, 1e6, none=True),
    "latents_mean": several(None, number(None, -1e6, 1e6), 1, HEADS, none=True),
    "latents_std": several(None, number(None, 1e-6, 1e6), 1, HEADS, none=True),
    "force_upcast": flag(True),
    "use_quant_conv": flag(True),
    "mid_block_add_attention": flag(True),
}
# Fields of ours that say how to compute, not what.
APART = ("dtype", "conv", "remat")
# torch's Linear [o i] and our convolution of one place [1 1 1 i o]
PLACE = Layout(read=lambda x: x.transpose(1, 0)[None, None, None], write=lambda x: x[0, 0, 0].transpose(1, 0))


def vae_config(json: dict) -> VAEConfig:
    """Read the config.json of diffusers' AutoencoderKL.

    Raises:
        WeightsError: an option is unknown, out of range, or asks for what cannot be done here.
    """
    given = defaults(OPTIONS) | json
    check_option("block_out_channels", given["block_out_channels"], OPTIONS["block_out_channels"])
    levels = len(given["block_out_channels"])
    fixed = {
        "in_channels": 3,
        "out_channels": 3,
        "act_fn": "silu",
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "use_post_quant_conv": given["use_quant_conv"],
    }
    options = read_options(json, "AutoencoderKL", OPTIONS, fixed)
    widths = options["block_out_channels"]
    base = math.gcd(*widths)
    return preset(
        "sd",
        latent_channels=options["latent_channels"],
        base_channels=base,
        channel_mults=tuple(width // base for width in widths),
        blocks_per_level=options["layers_per_block"],
        spatial_down=(True,) * (levels - 1),
        temporal_down=(False,) * (levels - 1),
        norm_groups=options["norm_num_groups"],
        middle="attention" if options["mid_block_add_attention"] else "blocks",
        quant=options["use_quant_conv"],
    )


def vae_json(config: VAEConfig, statistics: dict[str, Array] | None = None) -> dict:
    """Write what diffusers writes to config.json: the inverse of `vae_config` and `statistics`.

    Args:
        config: of the autoencoder.
        statistics: {"mean", "std"}, float32 [c]. None: leave them out.

    Raises:
        ConfigError: AutoencoderKL cannot express the config.
    """
    levels = len(config.channel_mults)
    json = {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks_per_level,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "sample_size": 32 * config.spatial_stride,
        "use_quant_conv": config.quant,
        "use_post_quant_conv": config.quant,
        "mid_block_add_attention": config.middle == "attention",
    }
    same_config("AutoencoderKL", vae_config(json), config, apart=APART)
    return json | ({} if statistics is None else _statistics_json(statistics))


def statistics(json: dict) -> dict[str, np.ndarray]:
    """By which latents are normalised.

    The reference computes (z - shift) * scale; with latents_mean and latents_std it is (z - mean) * scale / std.

    Args:
        json: a config.json that `vae_config` has read.

    Returns:
        {"mean", "std"}, float32 [c].

    Raises:
        WeightsError: the file has one of mean and std, or another number of channels.
    """
    given = defaults(OPTIONS) | json
    channels = given["latent_channels"]
    mean, std = given["latents_mean"], given["latents_std"]
    if (mean is None) != (std is None):
        raise WeightsError("AutoencoderKL's config.json must have both of latents_mean and latents_std, or none")
    if mean is None:
        mean, std = [given["shift_factor"] or 0.0] * channels, [1.0] * channels
    mean, std = np.float32(np.ravel(mean)), np.float32(np.ravel(std) / given["scaling_factor"])
    if mean.shape != (channels,) or std.shape != (channels,):
        raise WeightsError(f"latents_mean and latents_std must have {channels} numbers: {mean.size} and {std.size}")
    return {"mean": mean, "std": std}


def _statistics_json(statistics: dict[str, Array]) -> dict:
    mean, std = (np.float32(statistics[name]) for name in ("mean", "std"))
    if len(set(mean.tolist())) == len(set(std.tolist())) == 1:
        shift = float(str(mean[0]))
        return {"scaling_factor": float(str(np.float32(1 / std[0]))), "shift_factor": shift or None}
    numbers = {"latents_mean": mean, "latents_std": std}
    return {"scaling_factor": 1.0} | {name: [float(str(x)) for x in value] for name, value in numbers.items()}


def diffusers_rules(config: VAEConfig) -> list[Rule]:
    """Map from AutoencoderKL's names.

    Args:
        config: of the autoencoder.

    Returns:
        One rule for each of its tensors.

    Raises:
        ConfigError: the config is not that of an AutoencoderKL.
    """
    names = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    return _rules(config, _diffusers_names(config, names))


def old_diffusers_rules(config: VAEConfig) -> list[Rule]:
    """Map from AutoencoderKL's names before diffusers 0.15, which some public files still have.

    Args:
        config: of the autoencoder.

    Returns:
        One rule for each of its tensors.
    """
    names = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "out": "proj_attn"}
    return _rules(config, _diffusers_names(config, names))


def original_rules(config: VAEConfig) -> list[Rule]:
    """Map from the names of the original latent diffusion code, without a prefix such as "first_stage_model.".

    Args:
        config: of the autoencoder.

    Returns:
        One rule for each of its tensors.
    """
    names = _Names(
        down=lambda level, part: f"encoder.down.{level}.{part}",
        up=lambda level, part: f"decoder.up.{level}.{part}",
        block="block.{}",
        resample={"down": "downsample.conv", "up": "upsample.conv"},
        shortcut="nin_shortcut",
        middle={"block1": "mid.block_1", "attention": "mid.attn_1", "block2": "mid.block_2"},
        norm_out="norm_out",
        attention={"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"},
        place=CONV2D,
    )
    return _rules(config, names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Names:
    """How a layout names the pieces.

    down(level, part), up(level, part): part of a level, counted from the pixels inwards.
    block: part of the i-th residual block. resample, middle, attention: by our names.
    place: layout of the attention's products.
    """

    down: Callable[[int, str], str]
    up: Callable[[int, str], str]
    block: str
    resample: dict[str, str]
    shortcut: str
    middle: dict[str, str]
    norm_out: str
    attention: dict[str, str]
    place: Layout


def _diffusers_names(config: VAEConfig, attention: dict[str, str]) -> _Names:
    last = len(config.channel_mults) - 1
    return _Names(
        down=lambda level, part: f"encoder.down_blocks.{level}.{part}",
        up=lambda level, part: f"decoder.up_blocks.{last - level}.{part}",
        block="resnets.{}",
        resample={"down": "downsamplers.0.conv", "up": "upsamplers.0.conv"},
        shortcut="conv_shortcut",
        middle={f"block{i + 1}": f"mid_block.resnets.{i}" for i in range(2)} | {"attention": "mid_block.attentions.0"},
        norm_out="conv_norm_out",
        attention=attention,
        place=PLACE,
    )


def _rules(config: VAEConfig, names: _Names) -> list[Rule]:
    vae_json(config)  # refuses what is not AutoencoderKL's
    last = len(config.channel_mults) - 1
    rules = _conv("quant_conv", "encoder/quant") + _conv("post_quant_conv", "decoder/post_quant")
    rules = rules if config.quant else []
    rules += _edges(config, names, "encoder") + _edges(config, names, "decoder")
    width = config.widths[0]
    for level, features in enumerate(config.widths):
        for i in range(config.blocks_per_level):
            theirs = names.down(level, names.block.format(i))
            rules += _block(names, theirs, f"encoder/block{level}_{i}", width != features)
            width = features
        if level < last:
            rules += _conv(names.down(level, names.resample["down"]), f"encoder/down{level}/space")
    width = config.widths[-1]
    for level, features in reversed(list(enumerate(config.widths))):
        for i in range(config.blocks_per_level + config.decoder_extra_blocks):
            theirs = names.up(level, names.block.format(i))
            rules += _block(names, theirs, f"decoder/block{level}_{i}", width != features)
            width = features
        if level:
            rules += _conv(names.up(level, names.resample["up"]), f"decoder/up{level}/space")
    return rules


def _edges(config: VAEConfig, names: _Names, side: str) -> list[Rule]:
    """What both sides have once."""
    rules = _conv(f"{side}.conv_in", f"{side}/conv_in/conv") + _conv(f"{side}.conv_out", f"{side}/conv_out/conv")
    rules += _norm(f"{side}.{names.norm_out}", f"{side}/norm_out")
    for block in ("block1", "block2"):
        rules += _block(names, f"{side}.{names.middle[block]}", f"{side}/middle/{block}", False)
    if config.middle != "attention":
        return rules
    theirs, ours = f"{side}.{names.middle['attention']}", f"{side}/middle/attention"
    rules += _norm(f"{theirs}.{names.attention['norm']}", f"{ours}/norm")
    rules += _conv(f"{theirs}.{names.attention['out']}", f"{ours}/out", names.place)
    for i, key in enumerate("qkv"):
        name = f"{theirs}.{names.attention[key]}"
        kernel, bias = (Part(path=f"{ours}/qkv/{leaf}", chunk=(i, 3)) for leaf in ("kernel", "bias"))
        rules.append(Rule(name=f"{name}.weight", parts=(kernel,), layout=names.place))
        rules.append(Rule(name=f"{name}.bias", parts=(bias,)))
    return rules


def _block(names: _Names, theirs: str, ours: str, shortcut: bool) -> list[Rule]:
    rules = _norm(f"{theirs}.norm1", f"{ours}/norm1") + _conv(f"{theirs}.conv1", f"{ours}/conv1/conv")
    rules += _norm(f"{theirs}.norm2", f"{ours}/norm2") + _conv(f"{theirs}.conv2", f"{ours}/conv2/conv")
    return rules + (_conv(f"{theirs}.{names.shortcut}", f"{ours}/shortcut") if shortcut else [])


def _conv(theirs: str, ours: str, layout: Layout = CONV2D) -> list[Rule]:
    return [rule(f"{theirs}.weight", f"{ours}/kernel", layout), rule(f"{theirs}.bias", f"{ours}/bias")]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [rule(f"{theirs}.weight", f"{ours}/scale"), rule(f"{theirs}.bias", f"{ours}/bias")]
