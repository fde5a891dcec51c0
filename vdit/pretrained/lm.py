"""Language models: configs and weight maps of transformers' folders (Llama, SmolLM2, Qwen2, Qwen2.5, Qwen3)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vdit.errors import WeightsError
from vdit.models.lm.config import LMConfig, llama3_divisors
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
    several,
    whole,
)
from vdit.pretrained.weights import LINEAR, Rule, linear, rule

FAMILIES = ("llama", "qwen2", "qwen3")
CONTEXT = 1 << 24
# What the model has, by the names of LMConfig and of the public config.json.
_NAMES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "eps": "rms_norm_eps",
    "context": "max_position_embeddings",
    "tied": "tie_word_embeddings",
}
_OPTIONS: dict[str, Option] = {
    "vocab_size": whole(None, high=VOCABULARY),
    "hidden_size": whole(None, high=WIDTH),
    "num_hidden_layers": whole(None, high=LAYERS),
    "num_attention_heads": whole(None, high=HEADS),
    "num_key_value_heads": whole(None, high=HEADS, none=True),
    "head_dim": whole(None, high=WIDTH, none=True),
    "intermediate_size": whole(None, high=TOKENS),
    "rms_norm_eps": number(1e-6, 0.0, 0.1),
    "max_position_embeddings": whole(None, high=CONTEXT),
    "tie_word_embeddings": flag(False),
    "rope_theta": number(None, 1.0, 1e12, none=True),
    "rope_scaling": ANYTHING,
    "rope_parameters": ANYTHING,
    # Tokens that end an answer, and others that generation needs: one id or several.
    "bos_token_id": ANYTHING,
    "eos_token_id": ANYTHING,
    "pad_token_id": ANYTHING,
    "layer_types": several(None, Option(kind="text", choices=("full_attention",)), 1, LAYERS, none=True),
}
# What transformers takes where a family's config.json leaves an option out.
_ABSENT = {
    "llama": {"max_position_embeddings": 2048, "vocab_size": 32000},
    "qwen2": {"max_position_embeddings": 32768, "vocab_size": 151936},
    "qwen3": {"max_position_embeddings": 32768, "vocab_size": 151936, "head_dim": 128},
}
# Options that say nothing of what the model computes: of training, of the file, of a window that is not used.
_NO_MATTER = (
    "architectures", "attention_dropout", "dtype", "initializer_range", "is_llama_config", "max_window_layers",
    "model_type", "pretraining_tp", "resid_pdrop", "rope_interleaved", "sliding_window", "torch_dtype",
    "transformers.js_config", "transformers_version", "use_cache", "return_dict", "output_attentions",
    "output_hidden_states", "tokenizer_class", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id",
    "problem_type", "perceiver_config", "pixel_shuffle_factor", "qk_layer_norms", "use_resampler",
    "neftune_noise_alpha", "flax_config",
)  # fmt: skip
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
_LLAMA3 = {"factor": "factor", "low_freq_factor": "low", "high_freq_factor": "high",
           "original_max_position_embeddings": "original"}  # fmt: skip
# A buffer of old checkpoints, which holds what rope_theta says.
UNUSED = ("rotary_emb.inv_freq",)


def lm_config(json: Mapping[str, Any], *, known: Collection[str] = ()) -> LMConfig:
    """Read the config.json of transformers' LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM.

    Args:
        json: content of config.json, or of the text_config of a larger model.
        known: names of options that may be there beside those of the family, and change nothing.

    Returns:
        Our config of the same model.

    Raises:
        WeightsError: an option is unknown, missing, out of range, or asks for what cannot be done here.
    """
    family = json.get("model_type", "llama")
    if family not in FAMILIES:
        rule = f"is not that of a language model known here: {', '.join(FAMILIES)}"
        raise WeightsError(f"model_type={family!r} in config.json {rule}")
    options = dict.fromkeys((*_NO_MATTER, *known), ANYTHING) | _OPTIONS
    values = read_options(json, "", options, _FIXED)
    values |= {name: value for name, value in _ABSENT[family].items() if values[name] is None}
    missing = [name for name in _NAMES.values() if values[name] is None]
    if missing:
        raise WeightsError(f"config.json lacks {', '.join(missing)}: it must say what the model is made of")
    fields = {ours: values[theirs] for ours, theirs in _NAMES.items()}
    heads = fields["heads"]
    head_dim = values["head_dim"] or fields["width"] // heads
    theta, divisors = _rope(values, head_dim)
    return LMConfig(
        **fields, kv_heads=values["num_key_value_heads"] or heads, head_dim=head_dim, rope_theta=theta,
        rope_divisors=divisors, qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
    )  # fmt: skip


def _rope(values: Mapping[str, Any], head_dim: int) -> tuple[float, tuple[float, ...]]:
    """Base and divisors of the rotary frequencies, in the files of transformers 4 and 5."""
    found = values["rope_parameters"] or values["rope_scaling"] or {}
    if not isinstance(found, Mapping):
        raise WeightsError(f"rope_scaling={found!r} in config.json must be an object: download the file again")
    theta = found.get("rope_theta") or values["rope_theta"] or 10_000.0
    kind = found.get("rope_type", found.get("type", "default"))
    numbers = {name: value for name, value in found.items() if name not in ("rope_type", "type", "rope_theta")}
    if kind == "default":
        numbers.pop("mrope_section", None)
    allowed = {"default": (), "llama3": tuple(_LLAMA3)}.get(kind)
    if allowed is None or set(numbers) - set(allowed) or set(allowed) - set(numbers):
        raise WeightsError(f"rope_scaling of type {kind!r} in config.json is not supported here: default or llama3 are")
    if not all(isinstance(x, int | float) and 0 < x < 1e12 for x in (theta, *numbers.values())):
        raise WeightsError("rope_theta and rope_scaling in config.json must hold positive numbers: download it again")
    if kind == "default":
        return float(theta), ()
    return float(theta), llama3_divisors(head_dim, theta, **{_LLAMA3[name]: x for name, x in numbers.items()})


def lm_rules(config: LMConfig, prefix: str = "model.", head: str = "lm_head.weight") -> list[Rule]:
    """Map from transformers' names.

    Args:
        config: of the model.
        prefix: of its tensors but the output's: "model.", or "model.text_model." inside a larger model.
        head: name of the output's matrix.

    Returns:
        One rule for each of its tensors.
    """
    embedding = f"{prefix}embed_tokens.weight"
    if config.tied:
        rules = [rule(embedding, "embed/embedding", copies=(head,))]
    else:
        rules = [rule(embedding, "embed/embedding"), rule(head, "head/kernel", LINEAR)]
    attention = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    linears = {f"attention/{ours}": f"self_attn.{theirs}" for ours, theirs in attention.items()}
    linears |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.qk_norm:
        norms |= {f"attention/{name}_norm": f"self_attn.{name}_norm" for name in "qk"}
    for i in range(config.layers):
        block, layer = layer_path(config, i)
        for ours, theirs in linears.items():
            bias = config.qkv_bias and ours[-2:] in ("/q", "/k", "/v")
            rules += linear(f"{prefix}layers.{i}.{theirs}", f"{block}/{ours}", layer=layer, bias=bias)
        for ours, theirs in norms.items():
            rules.append(rule(f"{prefix}layers.{i}.{theirs}.weight", f"{block}/{ours}/scale", layer=layer))
    return [*rules, rule(f"{prefix}norm.weight", "norm/scale")]


def layer_path(config: LMConfig, i: int) -> tuple[str, int | None]:
    """Where layer i is among our parameters: its path, and its place in the stack if layers are stacked."""
    return ("blocks", i) if config.scan else (f"block_{i}", None)


def lm_json(config: LMConfig) -> dict[str, Any]:
    """Write our config as a config.json that transformers reads: the inverse of `lm_config`.

    Raises:
        WeightsError: no family of transformers has such a model.
    """
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (config.qk_norm and config.qkv_bias) or config.rope_divisors:
        raise WeightsError("lm.rope_divisors, or lm.qk_norm with lm.qkv_bias, cannot be written for transformers")
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    return {
        "architectures": [names[family]],
        "model_type": family,
        **{theirs: getattr(config, ours) for ours, theirs in _NAMES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_parameters": rope,
    }
