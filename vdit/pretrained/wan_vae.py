"""Wan's video VAEs, 2.1 (4x8x8) and 2.2 (4x16x16): configs, latent statistics, and weight maps.

Names are those of diffusers' AutoencoderKLWan and of Wan's own files (Wan2.1_VAE.pth, Wan2.2_VAE.pth).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from vdit.errors import WeightsError
from vdit.models.vae.config import VAEConfig, preset
from vdit.pretrained.options import (
    ANYTHING,
    HEADS,
    LEVELS,
    WIDTH,
    flag,
    number,
    read_options,
    same_config,
    several,
    whole,
)
from vdit.pretrained.tensors import TensorFiles
from vdit.pretrained.weights import CONV2D, CONV3D, Layout, Rule, reshaped, rule
from vdit.types import Array

# What diffusers takes where config.json leaves an option out.
OPTIONS = {
    "base_dim": whole(96, high=WIDTH),
    "decoder_base_dim": whole(None, high=WIDTH, none=True),
    "z_dim": whole(16, high=HEADS),
    "dim_mult": several((1, 2, 4, 4), whole(high=HEADS), 1, LEVELS),
    "num_res_blocks": whole(2, high=100),
    "temperal_downsample": several((False, True, True), flag(), 0, LEVELS),
    "is_residual": flag(False),
    "patch_size": whole(None, high=16, none=True),
    "latents_mean": several(None, number(None, -1e6, 1e6), 1, HEADS, none=True),
    "latents_std": several(None, number(None, 1e-6, 1e6), 1, HEADS, none=True),
    "clip_output": ANYTHING,  # some files have it; no code reads it
}
FIXED = {"attn_scales": (), "dropout": 0.0}
# Fields of ours that say how to compute, not what.
APART = ("dtype", "conv", "remat")

# Of normalised latents, per channel, as Wan's code states them; its own checkpoints do not hold them.
WAN21_STATISTICS = {
    "mean": np.float32([
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ]),
    "std": np.float32([
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ]),
}  # fmt: skip
WAN22_STATISTICS = {
    "mean": np.float32([
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ]),
    "std": np.float32([
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ]),
}  # fmt: skip


def vae_config(json: dict) -> VAEConfig:
    """Read the config.json of diffusers' AutoencoderKLWan.

    Raises:
        WeightsError: an option is unknown, out of range, or asks for what cannot be done here.
    """
    sizes = ("in_channels", "out_channels", "scale_factor_temporal", "scale_factor_spatial")
    options = read_options(json, "AutoencoderKLWan", OPTIONS | dict.fromkeys(sizes, ANYTHING), FIXED)
    config = _config(options)
    # What the others imply has to agree with them.
    values = 3 * config.patch**2
    implied = dict(zip(sizes, (values, values, config.temporal_stride, config.spatial_stride), strict=True))
    read_options(json, "AutoencoderKLWan", OPTIONS, FIXED | implied)
    return config


def _config(options: dict) -> VAEConfig:
    levels = len(options["dim_mult"])
    return preset(
        "wan21",
        latent_channels=options["z_dim"],
        base_channels=options["base_dim"],
        decoder_base_channels=options["decoder_base_dim"],
        channel_mults=options["dim_mult"],
        blocks_per_level=options["num_res_blocks"],
        spatial_down=(True,) * (levels - 1),
        temporal_down=options["temperal_downsample"],
        patch=options["patch_size"] or 1,
        up_channels="keep" if options["is_residual"] else "halve",
        level_shortcut=options["is_residual"],
    )


def shape_of(files: TensorFiles) -> VAEConfig:
    """Tell the VAE of a file under Wan's own names from its tensors' shapes: of Wan 2.1's kind, or of 2.2's (4x16x16).

    Raises:
        WeightsError: this is no autoencoder of a Wan.
    """
    names = {"encoder.conv1.weight": 5, "conv2.weight": 5, "decoder.head.2.weight": 5}
    shapes = [files.info[name].shape if name in files.info else () for name in names]
    if any(len(shape) != sides or min(shape) < 1 for shape, sides in zip(shapes, names.values())):
        rule = f"a Wan's autoencoder has {', '.join(names)}, each with five sides"
        raise WeightsError(f"{files.path}: {rule}: take the right file")
    first, latent, last = shapes
    changes = {"latent_channels": latent[0], "base_channels": first[0]}
    decoder = {} if first[0] == last[1] else {"decoder_base_channels": last[1]}
    return preset("wan21" if first[1] == 3 else "wan22", **changes, **decoder)


def vae_json(config: VAEConfig, statistics: dict[str, Array] | None = None) -> dict:
    """Write what diffusers writes to config.json: the inverse of `vae_config` and `statistics`.

    Args:
        config: of the autoencoder.
        statistics: {"mean", "std"}, float32 [c]. None: leave them out.

    Raises:
        ConfigError: AutoencoderKLWan cannot express the config.
    """
    json = {
        "_class_name": "AutoencoderKLWan",
        "base_dim": config.base_channels,
        "decoder_base_dim": config.decoder_base_channels,
        "z_dim": config.latent_channels,
        "dim_mult": list(config.channel_mults),
        "num_res_blocks": config.blocks_per_level,
        "attn_scales": [],
        "temperal_downsample": list(config.temporal_down),
        "dropout": 0.0,
        "is_residual": config.level_shortcut,
        "in_channels": 3 * config.patch**2,
        "out_channels": 3 * config.patch**2,
        "patch_size": None if config.patch == 1 else config.patch,
        "scale_factor_temporal": config.temporal_stride,
        "scale_factor_spatial": config.spatial_stride,
    }
    theirs = _config(read_options(json, "AutoencoderKLWan", dict.fromkeys(json, ANYTHING), {}))
    same_config("AutoencoderKLWan", theirs, config, apart=APART)
    if statistics is not None:
        # The shortest decimals that give these float32 numbers back.
        json |= {f"latents_{name}": [float(str(x)) for x in np.float32(value)] for name, value in statistics.items()}
    return json


def statistics(json: dict) -> dict[str, np.ndarray]:
    """By which latents are normalised.

    Args:
        json: a config.json that `vae_config` has read.

    Returns:
        {"mean", "std"}, float32 [c]. Where the file has none, those that Wan's code states for 16 or 48 channels.

    Raises:
        WeightsError: the file has none and the number of channels is another, or it has another number of them.
    """
    channels = json.get("z_dim", 16)
    known = {16: WAN21_STATISTICS, 48: WAN22_STATISTICS}.get(channels, {})
    found = {}
    for name in ("mean", "std"):
        value = json.get(f"latents_{name}")
        if value is None and name not in known:
            raise WeightsError(f"AutoencoderKLWan's config.json has no latents_{name} for z_dim={channels}: add it")
        found[name] = np.float32(known[name] if value is None else value)
        if found[name].shape != (channels,):
            raise WeightsError(f"latents_{name} has shape {found[name].shape}: z_dim={channels} needs ({channels},)")
    return found


def diffusers_rules(config: VAEConfig) -> list[Rule]:
    """Map from AutoencoderKLWan's names.

    Args:
        config: of the autoencoder.

    Returns:
        One rule for each of its tensors.

    Raises:
        ConfigError: the config is not that of a Wan's autoencoder.
    """
    shortcut = config.level_shortcut

    def down(level: int, i: int) -> str:
        if shortcut:
            return f"encoder.down_blocks.{level}." + (f"resnets.{i}" if i < config.blocks_per_level else "downsampler")
        return f"encoder.down_blocks.{level * (config.blocks_per_level + 1) + i}"

    def up(step: int, i: int) -> str:
        last = "upsampler" if shortcut else "upsamplers.0"
        return f"decoder.up_blocks.{step}." + (f"resnets.{i}" if i < _decoder_blocks(config) else last)

    block = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "shortcut": "conv_shortcut"}
    middle = {"block1": "mid_block.resnets.0", "attention": "mid_block.attentions.0", "block2": "mid_block.resnets.1"}
    edges = {"conv_in": "conv_in", "norm_out": "norm_out", "conv_out": "conv_out"}
    quant = ("quant_conv", "post_quant_conv")
    return _rules(config, _Names(down=down, up=up, block=block, middle=middle, edges=edges, quant=quant))


def original_rules(config: VAEConfig) -> list[Rule]:
    """Map from the names in Wan's own Wan2.1_VAE.pth and Wan2.2_VAE.pth.

    Args:
        config: of the autoencoder.

    Returns:
        One rule for each of its tensors.

    Raises:
        ConfigError: the config is not that of a Wan's autoencoder.
    """

    def place(stack: str, blocks: int) -> Callable[[int, int], str]:
        if config.level_shortcut:
            return lambda level, i: f"{stack}.{level}.{stack.split('.')[1]}.{i}"
        return lambda level, i: f"{stack}.{level * (blocks + 1) + i}"

    names = _Names(
        down=place("encoder.downsamples", config.blocks_per_level),
        up=place("decoder.upsamples", _decoder_blocks(config)),
        block={
            "norm1": "residual.0",
            "conv1": "residual.2",
            "norm2": "residual.3",
            "conv2": "residual.6",
            "shortcut": "shortcut",
        },
        middle={"block1": "middle.0", "attention": "middle.1", "block2": "middle.2"},
        edges={"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"},
        quant=("conv1", "conv2"),
    )
    return _rules(config, names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Names:
    """How a layout names the pieces.

    down(level, i), up(step, i): the i-th residual block; one past the last, the resampling.
    block, middle, edges: by our names. quant: after the encoder, before the decoder.
    """

    down: Callable[[int, int], str]
    up: Callable[[int, int], str]
    block: dict[str, str]
    middle: dict[str, str]
    edges: dict[str, str]
    quant: tuple[str, str]


def _decoder_blocks(config: VAEConfig) -> int:
    return config.blocks_per_level + config.decoder_extra_blocks


def _rules(config: VAEConfig, names: _Names) -> list[Rule]:
    vae_json(config)  # refuses what is not Wan's
    levels = len(config.channel_mults)
    rules = _conv(names.quant[0], "encoder/quant") + _conv(names.quant[1], "decoder/post_quant")
    rules += _edges(config, names, "encoder", config.widths[-1], pixels="conv_in")
    rules += _edges(config, names, "decoder", config.decoder_widths[0], pixels="conv_out")
    width = config.widths[0]
    for level, features in enumerate(config.widths):
        for i in range(config.blocks_per_level):
            rules += _block(names, names.down(level, i), f"encoder/block{level}_{i}", width, features)
            width = features
        if level < levels - 1:
            theirs = names.down(level, config.blocks_per_level)
            rules += _resample(theirs, f"encoder/down{level}", config.temporal_down[level])
    width = config.decoder_widths[-1]
    for step, level in enumerate(reversed(range(levels))):
        features = config.decoder_widths[level]
        for i in range(_decoder_blocks(config)):
            rules += _block(names, names.up(step, i), f"decoder/block{level}_{i}", width, features)
            width = features
        if level:
            theirs = names.up(step, _decoder_blocks(config))
            rules += _resample(theirs, f"decoder/up{level}", config.temporal_down[level - 1])
            width = width // 2 if config.up_channels == "halve" else width
    return rules


def _edges(config: VAEConfig, names: _Names, side: str, width: int, *, pixels: str) -> list[Rule]:
    """What both sides have once. width: of norm_out. pixels: which convolution sees folded pixels."""
    patches = _patches(config.patch)
    rules = []
    for edge in ("conv_in", "conv_out"):
        theirs, ours = f"{side}.{names.edges[edge]}", f"{side}/{edge}/conv"
        rules.append(rule(f"{theirs}.weight", f"{ours}/kernel", patches[edge] if edge == pixels else CONV3D))
        bias = {"layout": patches["bias"]} if edge == pixels == "conv_out" else {}
        rules.append(rule(f"{theirs}.bias", f"{ours}/bias", **bias))
    rules += _norm(f"{side}.{names.edges['norm_out']}", f"{side}/norm_out", width)
    width = (config.widths if side == "encoder" else config.decoder_widths)[-1]
    for block in ("block1", "block2"):
        rules += _block(names, f"{side}.{names.middle[block]}", f"{side}/middle/{block}", width, width)
    theirs, ours = f"{side}.{names.middle['attention']}", f"{side}/middle/attention"
    rules.append(rule(f"{theirs}.norm.gamma", f"{ours}/norm/scale", reshaped((width, 1, 1), (width,))))
    return rules + _conv(f"{theirs}.to_qkv", f"{ours}/qkv", CONV2D) + _conv(f"{theirs}.proj", f"{ours}/out", CONV2D)


def _block(names: _Names, theirs: str, ours: str, width: int, features: int) -> list[Rule]:
    name = {key: f"{theirs}.{value}" for key, value in names.block.items()}
    rules = _norm(name["norm1"], f"{ours}/norm1", width) + _conv(name["conv1"], f"{ours}/conv1/conv")
    rules += _norm(name["norm2"], f"{ours}/norm2", features) + _conv(name["conv2"], f"{ours}/conv2/conv")
    return rules + (_conv(name["shortcut"], f"{ours}/shortcut") if width != features else [])


def _resample(theirs: str, ours: str, time: bool) -> list[Rule]:
    rules = _conv(f"{theirs}.resample.1", f"{ours}/space", CONV2D)
    # Up in time is a causal convolution, which has its own level in the tree; down is not.
    path = f"{ours}/time/conv" if ours.startswith("decoder") else f"{ours}/time"
    return rules + (_conv(f"{theirs}.time_conv", path) if time else [])


def _conv(theirs: str, ours: str, layout: Layout = CONV3D) -> list[Rule]:
    return [rule(f"{theirs}.weight", f"{ours}/kernel", layout), rule(f"{theirs}.bias", f"{ours}/bias")]


def _norm(theirs: str, ours: str, width: int) -> list[Rule]:
    return [rule(f"{theirs}.gamma", f"{ours}/scale", reshaped((width, 1, 1, 1), (width,)))]


def _patches(p: int) -> dict[str, Layout]:
    """Layouts of what sees pixels folded into channels: theirs in the order (c, w, h), ours in (h, w, c)."""

    def read_in(x: Array) -> Array:
        o, _, *kernel = x.shape
        return x.reshape(o, 3, p, p, *kernel).transpose(4, 5, 6, 3, 2, 1, 0).reshape(*kernel, 3 * p * p, o)

    def write_in(x: Array) -> Array:
        *kernel, _, o = x.shape
        return x.reshape(*kernel, p, p, 3, o).transpose(6, 5, 4, 3, 0, 1, 2).reshape(o, 3 * p * p, *kernel)

    def read_out(x: Array) -> Array:
        _, i, *kernel = x.shape
        return x.reshape(3, p, p, i, *kernel).transpose(4, 5, 6, 3, 2, 1, 0).reshape(*kernel, i, 3 * p * p)

    def write_out(x: Array) -> Array:
        *kernel, i, _ = x.shape
        return x.reshape(*kernel, i, p, p, 3).transpose(6, 5, 4, 3, 0, 1, 2).reshape(3 * p * p, i, *kernel)

    return {
        "conv_in": Layout(read=read_in, write=write_in),
        "conv_out": Layout(read=read_out, write=write_out),
        "bias": Layout(
            read=lambda x: x.reshape(3, p, p).transpose(2, 1, 0).reshape(-1),
            write=lambda x: x.reshape(p, p, 3).transpose(2, 1, 0).reshape(-1),
        ),
    }
