"""Class-conditional DiT: configs and weight maps, of diffusers folders and of the original checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdit.data.patches import grid_position
from vdit.errors import WeightsError
from vdit.models.dit.config import CLASS_CONDITIONAL, SIZES, DiTConfig
from vdit.nn.embedding import sincos_position
from vdit.pretrained.options import HEADS, LAYERS, TOKENS, WIDTH, number, read_options, whole
from vdit.pretrained.weights import LINEAR, Layout, Part, Rule, linear, rule

# Options of diffusers' DiTTransformer2DModel that we read, and their defaults. The side of the latents that it was
# trained at (sample_size), and groups of a norm it does not have, are no part of the network.
_DIFFUSERS = {
    "num_attention_heads": whole(16, high=HEADS),
    "attention_head_dim": whole(72, high=WIDTH),
    "in_channels": whole(4, high=WIDTH),
    "out_channels": whole(None, high=WIDTH, none=True),
    "num_layers": whole(28, high=LAYERS),
    "sample_size": whole(32, high=4096),
    "norm_num_groups": whole(32, high=WIDTH, none=True),
    "patch_size": whole(2, high=64),
    "num_embeds_ada_norm": whole(1000, high=TOKENS),
    "norm_eps": number(1e-5, 0.0, 0.1),
}
_DIFFUSERS_FIXED = {
    "dropout": 0.0,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
_HIDDEN, _TIME_FEATURES = 4, 256  # both sources have them built in


def dit_config(json: Mapping[str, Any]) -> DiTConfig:
    """Read the config of diffusers' DiTTransformer2DModel (transformer/config.json).

    It differs from the original DiT in the frequencies of the time embedding, and in the epsilon of the norm before the
    MLP. Its weights are used with its own numbers.

    Args:
        json: content of config.json.

    Returns:
        Our config of the same transformer.

    Raises:
        WeightsError: an option is unknown, out of range, or asks for what cannot be done here.
    """
    values = read_options(json, "DiTTransformer2DModel", _DIFFUSERS, _DIFFUSERS_FIXED)
    channels, out = values["in_channels"], values["out_channels"] or values["in_channels"]
    if out not in (channels, 2 * channels):
        raise WeightsError(f"out_channels={out} in config.json must be in_channels={channels} or twice that")
    options = {
        "in_channels": channels,
        "learn_variance": out == 2 * channels,
        "patch": (1, values["patch_size"], values["patch_size"]),
        "width": values["num_attention_heads"] * values["attention_head_dim"],
        "heads": values["num_attention_heads"],
        "depth": values["num_layers"],
        "classes": values["num_embeds_ada_norm"],
        "time_features": _TIME_FEATURES,
        "time_frequency_shift": 1,
        "norm_eps": 1e-6,
        "mlp_norm_eps": values["norm_eps"],
    }
    return DiTConfig(**{**CLASS_CONDITIONAL, **options})


def dit_json(config: DiTConfig, *, sample_size: int = 32) -> dict[str, Any]:
    """Write our config as that of diffusers' DiTTransformer2DModel: the inverse of `dit_config`.

    Args:
        config: of a model with diffusers' numbers. One that came from an original checkpoint has others.
        sample_size: side of the latents that the model is meant for.

    Raises:
        WeightsError: diffusers has no such model.
    """
    _check(config, {"time_frequency_shift": 1, "norm_eps": 1e-6}, "diffusers' DiT")
    return {
        "_class_name": "DiTTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.head_dim,
        "dropout": 0.0,
        "in_channels": config.in_channels,
        "norm_elementwise_affine": False,
        "norm_eps": config.norm_eps if config.mlp_norm_eps is None else config.mlp_norm_eps,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": config.heads,
        "num_embeds_ada_norm": config.classes,
        "num_layers": config.depth,
        "out_channels": config.in_channels * (2 if config.learn_variance else 1),
        "patch_size": config.patch[1],
        "sample_size": sample_size,
        "upcast_attention": False,
    }


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], *, heads: int | None = None) -> DiTConfig:
    """Tell the config of an original checkpoint, which has none beside it, from its tensors' shapes.

    Args:
        shapes: of the tensors, by name.
        heads: of the attention, which shapes do not tell. None: those of S, B, L or XL, by the width.

    Raises:
        WeightsError: this is no checkpoint of the original DiT, or its width is unknown and `heads` is None.
    """
    names = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
    absent = [name for name in names if name not in shapes]
    if absent:
        raise WeightsError(f"tensors {', '.join(absent)} are not there: this is no checkpoint of the original DiT")
    for name, sides in zip(names, (4, 2, 2)):
        if len(shapes[name]) != sides or min(shapes[name]) < 1:
            raise WeightsError(f"{name} is {list(shapes[name])}: it must have {sides} sides of at least 1")
    (width, channels, patch, _), (rows, _), (out, _) = (shapes[name] for name in names)
    known = {size["width"]: size["heads"] for name, size in SIZES.items() if name != "tiny"}
    heads = heads or known.get(width)
    if heads is None:
        raise WeightsError(f"a DiT of width {width} is none of {sorted(known)}: say how many heads it has")
    if out not in (patch * patch * channels, 2 * patch * patch * channels):
        raise WeightsError(
            f"final_layer.linear has {out} outputs: it must be patch^2 * channels = {patch * patch * channels}, or "
            "twice that where the variance is learned"
        )
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    options = {
        "in_channels": channels,
        "learn_variance": out == 2 * patch * patch * channels,
        "patch": (1, patch, patch),
        "width": width,
        "heads": heads,
        "depth": len(blocks) or 1,
        "classes": rows - 1,
        "time_features": _TIME_FEATURES,
    }
    return DiTConfig(**{**CLASS_CONDITIONAL, **options})


def diffusers_rules(config: DiTConfig) -> list[Rule]:
    """Map from diffusers' names. Each block there has embedders of its own, all with the same numbers.

    Args:
        config: our config of a class-conditional DiT.

    Returns:
        One rule for each of its tensors.

    Raises:
        WeightsError: the config is not that of a DiT.
    """
    _check(config, {}, "DiT")
    rules = [
        rule("pos_embed.proj.weight", "patch_embed/kernel", _patch_kernel(config)),
        rule("pos_embed.proj.bias", "patch_embed/bias"),
        *linear("proj_out_1", "head_modulation"),
        *_head("proj_out_2", config),
    ]
    embedders = [
        *linear("timestep_embedder.linear_1", "time_in"),
        *linear("timestep_embedder.linear_2", "time_out"),
        rule("class_embedder.embedding_table.weight", "label_embed/embedding", _NULL_LAST),
    ]
    for embedder in embedders:
        name, *copies = (f"transformer_blocks.{i}.norm1.emb.{embedder.name}" for i in range(config.depth))
        rules.append(Rule(name=name, parts=embedder.parts, layout=embedder.layout, copies=tuple(copies)))
    names = {
        "modulation/projection": "norm1.linear",
        "attention/q": "attn1.to_q",
        "attention/k": "attn1.to_k",
        "attention/v": "attn1.to_v",
        "attention/out": "attn1.to_out.0",
        "mlp/up": "ff.net.0.proj",
        "mlp/down": "ff.net.2",
    }
    for i in range(config.depth):
        ours, layer = _block(config, i)
        for path, name in names.items():
            rules += linear(f"transformer_blocks.{i}.{name}", f"{ours}/{path}", layer=layer)
    return rules


def original_rules(config: DiTConfig) -> list[Rule]:
    """Map from the original repository's names. `original_constants` covers what is no parameter.

    Args:
        config: our config of a class-conditional DiT.

    Returns:
        One rule for each of its tensors.

    Raises:
        WeightsError: the config is not that of a DiT.
    """
    _check(config, {}, "DiT")
    rules = [
        rule("x_embedder.proj.weight", "patch_embed/kernel", _patch_kernel(config)),
        rule("x_embedder.proj.bias", "patch_embed/bias"),
        *linear("t_embedder.mlp.0", "time_in"),
        *linear("t_embedder.mlp.2", "time_out"),
        rule("y_embedder.embedding_table.weight", "label_embed/embedding", _NULL_LAST),
        *linear("final_layer.adaLN_modulation.1", "head_modulation"),
        *_head("final_layer.linear", config),
    ]
    names = {
        "modulation/projection": "adaLN_modulation.1",
        "attention/out": "attn.proj",
        "mlp/up": "mlp.fc1",
        "mlp/down": "mlp.fc2",
    }
    for i in range(config.depth):
        ours, layer = _block(config, i)
        for path, name in names.items():
            rules += linear(f"blocks.{i}.{name}", f"{ours}/{path}", layer=layer)
        for theirs, leaf, layout in (("weight", "kernel", LINEAR), ("bias", "bias", None)):
            parts = tuple(Part(path=f"{ours}/attention/{part}/{leaf}", layer=layer) for part in "qkv")
            options = {} if layout is None else {"layout": layout}
            rules.append(Rule(name=f"blocks.{i}.attn.qkv.{theirs}", parts=parts, **options))
    return rules


def original_constants(config: DiTConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors of an original checkpoint that hold no parameter: the fixed positions of its square of tokens.

    Args:
        config: our config of the transformer.
        shapes: of the checkpoint's tensors, by name.

    Returns:
        Name -> the values that the tensor must have to 1e-5 (theirs are made in float64), float32 [1 n d].

    Raises:
        WeightsError: the table is of another shape.
    """
    if "pos_embed" not in shapes:
        return {}
    shape = tuple(shapes["pos_embed"])
    side = math.isqrt(shape[1]) if len(shape) == 3 else 0
    if shape != (1, side * side, config.width):
        raise WeightsError(f"pos_embed is {shape}: it must be [1, n, {config.width}] with n a square number")
    position = jnp.asarray(grid_position((1, side, side)))[None]
    return {"pos_embed": np.asarray(sincos_position(position, config.width))}


def _block(config: DiTConfig, i: int) -> tuple[str, int | None]:
    return ("blocks", i) if config.scan else (f"block_{i}", None)


# Their table of classes ends with "no class", ours begins with it.
_NULL_LAST = Layout(
    read=lambda x: x[np.roll(np.arange(x.shape[0]), 1)], write=lambda x: x[np.roll(np.arange(x.shape[0]), -1)]
)


def _patch_kernel(config: DiTConfig) -> Layout:
    """Conv2d [d c h w] and our kernel [(h w c) d]."""
    _, h, w = config.patch
    return Layout(
        read=lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        write=lambda x: x.reshape(h, w, -1, x.shape[1]).transpose(3, 2, 0, 1),
    )


def _head(name: str, config: DiTConfig) -> list[Rule]:
    """Their outputs are ordered (h w s c), ours (s h w c), where s counts prediction and variance."""
    kinds, pixels = 2 if config.learn_variance else 1, math.prod(config.patch)

    def swap(x, first, second):
        return x.reshape(first, second, config.in_channels, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    bias = Layout(read=lambda x: swap(x, pixels, kinds), write=lambda x: swap(x, kinds, pixels))
    kernel = Layout(read=lambda x: bias.read(x).transpose(1, 0), write=lambda x: bias.write(x.transpose(1, 0)))
    return [rule(f"{name}.weight", "head/kernel", kernel), rule(f"{name}.bias", "head/bias", bias)]


def _check(config: DiTConfig, more: Mapping[str, Any], family: str) -> None:
    """A config that no class-conditional DiT has is none."""
    free = ("in_channels", "classes", "learn_variance", "text_pool")
    wanted = {name: value for name, value in CLASS_CONDITIONAL.items() if name not in free}
    wanted |= {"condition_channels": 0, "time_features": _TIME_FEATURES, **more}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise WeightsError(
                f"backbone.{name}={getattr(config, name)!r}, {family} has {value!r}: this model is not of that "
                "architecture, and cannot be written in its layout"
            )
    if config.hidden != _HIDDEN * config.width or config.patch[0] != 1 or config.patch[1] != config.patch[2]:
        raise WeightsError(
            f"backbone.mlp_width={config.hidden}, backbone.patch={config.patch} are not {family}'s: it has "
            f"{_HIDDEN * config.width} and a square of one frame"
        )
    if not config.classes:
        raise WeightsError(f"backbone.classes=0 is not {family}'s: it has at least one class")
