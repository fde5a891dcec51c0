"""T5 and umT5 encoders: configs and weight maps, of transformers' folders and of Wan's own checkpoints."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from vdit.errors import ConfigError, WeightsError
from vdit.models.text.config import T5Config, t5_preset
from vdit.pretrained.options import (
    ANYTHING,
    HEADS,
    LAYERS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Option,
    flag,
    number,
    read_options,
    whole,
    words,
)
from vdit.pretrained.tensors import TensorFiles
from vdit.pretrained.weights import LINEAR, Rule, rule

# What the encoder has, by the names of T5Config and of the public config.json.
_NAMES = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "mlp": "d_ff",
    "layers": "num_layers",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "eps": "layer_norm_epsilon",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
_OPTIONS = {
    "vocab_size": whole(None, high=VOCABULARY),
    "d_model": whole(None, high=WIDTH),
    "num_heads": whole(None, high=HEADS),
    "d_kv": whole(64, high=WIDTH),
    "d_ff": whole(None, high=TOKENS),
    "num_layers": whole(None, high=LAYERS),
    "relative_attention_num_buckets": whole(32, high=4096),
    "relative_attention_max_distance": whole(128, high=TOKENS),
    "layer_norm_epsilon": number(1e-6, 0.0, 0.1),
    "eos_token_id": whole(1, 0, high=VOCABULARY),
    "pad_token_id": whole(0, 0, high=VOCABULARY),
    "dense_act_fn": words(none=True),
    "is_gated_act": flag(none=True),
}
# Options that say nothing of what an encoder computes: of training, of decoding, of the file.
_NO_MATTER = (
    "architectures", "bos_token_id", "classifier_dropout", "decoder_start_token_id", "dropout_rate", "dtype",
    "gradient_checkpointing", "initializer_factor", "is_encoder_decoder", "model_type", "n_positions",
    "num_decoder_layers", "output_past", "scalable_attention", "scale_decoder_outputs", "task_specific_params",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
)  # fmt: skip
# feed_forward_proj -> (gated, activation). "gelu" alone is the exact one, but "gated-gelu" is the tanh one.
_MLP = {
    "relu": (False, "relu"),
    "gated-relu": (True, "relu"),
    "gelu_new": (False, "gelu_tanh"),
    "gated-gelu": (True, "gelu_tanh"),
    "gated-gelu_new": (True, "gelu_tanh"),
}
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Of whole models, which public folders of encoders hold now and then: not read.
UNUSED = ("decoder.block.", "decoder.final_layer_norm.", "lm_head.")


def t5_config(json: Mapping[str, Any]) -> T5Config:
    """Read the config.json of transformers' T5EncoderModel or UMT5EncoderModel.

    The file does not say how many sentinels the tokenizer has: extra_ids is that of the public models of the family.

    Raises:
        WeightsError: an option is unknown, missing, out of range, or asks for what cannot be done here.
    """
    family = json.get("model_type")
    if family not in ("t5", "umt5"):
        raise WeightsError(f"model_type={family!r} in config.json is not that of a text encoder known here: t5 or umt5")
    known: dict[str, Option] = dict.fromkeys(_NO_MATTER, ANYTHING) | _OPTIONS
    # Absent, this is version 1.0 of T5, and umT5's gated.
    known["feed_forward_proj"] = words("relu" if family == "t5" else "gated-gelu")
    values = read_options(json, json.get("_class_name", ""), known, {"is_decoder": False})
    missing = [name for name in _NAMES.values() if values[name] is None]
    if missing:
        raise WeightsError(f"config.json lacks {', '.join(missing)}: it must say what the encoder is made of")
    kind = values["feed_forward_proj"]
    if kind not in _MLP:
        raise WeightsError(f"feed_forward_proj={kind!r} in config.json is not supported: use one of {', '.join(_MLP)}")
    gated, activation = _MLP[kind]
    derived = {"is_gated_act": gated, "dense_act_fn": "relu" if activation == "relu" else "gelu_new"}
    for name, value in derived.items():
        if values[name] not in (None, value):
            raise WeightsError(f"{name}={values[name]!r} in config.json contradicts feed_forward_proj={kind!r}")
    fields = {ours: values[theirs] for ours, theirs in _NAMES.items()}
    per_family = {"per_layer_bias": True, "extra_ids": 300} if family == "umt5" else {}
    return T5Config(**fields, **per_family, gated=gated, activation=activation)


def t5_json(config: T5Config) -> dict[str, Any]:
    """Write our config as the config.json of T5EncoderModel or UMT5EncoderModel: the inverse of `t5_config`."""
    kinds = {value: name for name, value in reversed(_MLP.items()) if name != "gated-gelu_new"}
    umt5 = config.per_layer_bias
    return {
        "architectures": ["UMT5EncoderModel" if umt5 else "T5EncoderModel"],
        "model_type": "umt5" if umt5 else "t5",
        **{theirs: getattr(config, ours) for ours, theirs in _NAMES.items()},
        "feed_forward_proj": kinds[config.gated, config.activation],
        "is_encoder_decoder": False,
        "tie_word_embeddings": True,
        "use_cache": False,
    }


def shape_of(files: TensorFiles) -> T5Config:
    """Tell the config of a umT5 encoder that comes without one from its tensors' shapes.

    Args:
        files: tensors under Wan's or transformers' names.

    Raises:
        WeightsError: this is no umT5 encoder.
    """
    layouts = (
        ("token_embedding.weight", "blocks.0.attn.q.weight", "blocks.0.pos_embedding.embedding.weight",
         "blocks.0.ffn.fc1.weight", r"blocks\.(\d{1,4})\."),
        ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight",
         "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
         "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", r"encoder\.block\.(\d{1,4})\."),
    )  # fmt: skip
    for *names, block in layouts:
        shapes = [files.info[name].shape if name in files.info else () for name in names]
        if all(len(shape) == 2 and min(shape) > 0 for shape in shapes) and shapes[1][0] % shapes[2][1] == 0:
            (vocabulary, width), (heads, _), (buckets, count), (mlp, _) = shapes
            layers = {match[1] for name in files.info if (match := re.match(block, name))}
            return t5_preset(
                "umt5-xxl", vocab_size=vocabulary, width=width, heads=count, head_dim=heads // count,
                layers=len(layers), mlp=mlp, buckets=buckets,
            )  # fmt: skip
    raise WeightsError(f"{files.path}: holds no umT5 encoder as Wan's repositories name it: take the right file")


def diffusers_rules(config: T5Config, names: Collection[str] | None = None) -> list[Rule]:
    """Map from transformers' names.

    Args:
        config: of the encoder.
        names: those of the checkpoint at hand, whose embedding table is under one name or under several that are tied.
            None: under the one that transformers writes.

    Returns:
        One rule for each of its tensors.
    """
    found = [name for name in _EMBEDDINGS if names is not None and name in names] or [_EMBEDDINGS[0]]
    rules = [rule(found[0], "embed/embedding", copies=tuple(found[1:]))]
    for i in range(config.layers):
        theirs = f"encoder.block.{i}.layer"
        attention = {name: f"{theirs}.0.SelfAttention.{name[0]}" for name in ("q", "k", "v", "out")}
        mlp = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}
        mlp = {name: f"{theirs}.1.DenseReluDense.{value}" for name, value in mlp.items()}
        norms = {"attention_norm": f"{theirs}.0.layer_norm", "mlp_norm": f"{theirs}.1.layer_norm"}
        bias = f"{theirs}.0.SelfAttention.relative_attention_bias.weight"
        rules += _layer(config, i, attention | mlp, norms, bias)
    return [*rules, rule("encoder.final_layer_norm.weight", "norm/scale")]


def original_rules(config: T5Config) -> list[Rule]:
    """Map from the names of Wan's own repositories (models_t5_umt5-xxl-enc-bf16.pth).

    Args:
        config: of the encoder.

    Returns:
        One rule for each of its tensors.

    Raises:
        ConfigError: the encoder's MLP is not gated, for which there are no names.
    """
    if not config.gated:
        raise ConfigError("text.t5.gated=False has no names in Wan's own checkpoints: its T5 is gated")
    rules = [rule("token_embedding.weight", "embed/embedding")]
    for i in range(config.layers):
        theirs = f"blocks.{i}"
        linears = {name: f"{theirs}.attn.{name[0]}" for name in ("q", "k", "v", "out")}
        linears |= {"gate": f"{theirs}.ffn.gate.0", "up": f"{theirs}.ffn.fc1", "down": f"{theirs}.ffn.fc2"}
        norms = {"attention_norm": f"{theirs}.norm1", "mlp_norm": f"{theirs}.norm2"}
        shared = "" if not config.per_layer_bias else f"{theirs}."
        rules += _layer(config, i, linears, norms, f"{shared}pos_embedding.embedding.weight")
    return [*rules, rule("norm.weight", "norm/scale")]


def _layer(config: T5Config, i: int, linears: dict[str, str], norms: dict[str, str], bias: str) -> list[Rule]:
    """Rules of layer i. linears, norms: our name in a block -> theirs; bias: their table of relative positions."""
    block, layer = ("blocks", i) if config.scan else (f"block_{i}", None)
    rules = [rule(f"{name}.weight", f"{block}/{ours}/kernel", LINEAR, layer=layer) for ours, name in linears.items()]
    rules += [rule(f"{name}.weight", f"{block}/{ours}/scale", layer=layer) for ours, name in norms.items()]
    if config.per_layer_bias:
        rules.append(rule(bias, f"{block}/relative_bias", layer=layer))
    elif i == 0:
        rules.append(rule(bias, "relative_bias"))
    return rules
