"""Language models from outside: Llama, SmolLM2, Qwen2, Qwen2.5 and Qwen3, from folders of transformers and GGUF."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vdit import paths
from vdit.dist.mesh import platform
from vdit.errors import WeightsError
from vdit.language.local import LocalLM
from vdit.models.lm.chat import TEMPLATE_LIMIT, ChatTemplate
from vdit.models.lm.config import LMConfig, llama3_divisors
from vdit.models.lm.model import LanguageModel
from vdit.models.lm.tokenizer import LMTokenizer, bpe_json, load_lm_tokenizer
from vdit.paths import MIB, read_text
from vdit.pretrained.gguf import GGUF, open_gguf
from vdit.pretrained.model import one_device
from vdit.pretrained.open import open_tensors
from vdit.pretrained.options import (
    ANYTHING,
    HEADS,
    LAYERS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Option,
    check_option,
    flag,
    number,
    read_options,
    several,
    whole,
)
from vdit.pretrained.tensors import FIX, TensorFiles, read_json
from vdit.pretrained.weights import LINEAR, SAME, Layout, Rule, linear, load, rule
from vdit.reprs import literal
from vdit.train.state import abstract_params

FAMILIES = ("llama", "qwen2", "qwen3")
CONTEXT = 1 << 24
CONFIG_LIMIT = 8 * MIB  # of a tokenizer_config.json, which may describe thousands of added tokens
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
ROPE = "rope_freqs.weight"  # in GGUF files: what the rotary frequencies are divided by; the config holds it
UNUSED = (ROPE,)


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


_GGUF_NAMES = {
    "layers": "block_count", "context": "context_length", "width": "embedding_length", "mlp": "feed_forward_length",
    "heads": "attention.head_count", "eps": "attention.layer_norm_rms_epsilon",
}  # fmt: skip
# Values that ask for what is not done here, where they are there.
_GGUF_REFUSED = ("rope.scaling.type", "attention.sliding_window", "expert_count", "logit_scale", "residual_scale")


def gguf_config(file: GGUF) -> LMConfig:
    """Read what a GGUF file says of its language model.

    Raises:
        WeightsError: it is none known here, or a value is missing, out of range, or asks for what cannot be done here.
    """
    path, values = file.tensors.path, file.values
    family = values.get("general.architecture")
    if family not in FAMILIES:
        rule = f"is not that of a language model known here: {', '.join(FAMILIES)}"
        raise WeightsError(f"{path}: general.architecture={family!r} {rule}")
    for name in _GGUF_REFUSED:
        value = values.get(f"{family}.{name}")
        if value not in (None, "none", 0, 0.0):
            raise WeightsError(f"{path}: {family}.{name}={literal(value)} is not supported; take another file")
    fields: dict[str, Any] = {}
    for ours, theirs in _GGUF_NAMES.items():
        value = values.get(f"{family}.{theirs}")
        check_option(f"{family}.{theirs}", value, _OPTIONS[_NAMES[ours]], where=str(path))
        fields[ours] = value
    info = file.tensors.info
    table = info["token_embd.weight"].shape if "token_embd.weight" in info else ()
    if len(table) != 2:
        raise WeightsError(f"{path}: holds no token_embd.weight [vocabulary width]; download it again")
    heads = fields["heads"]
    extra = {
        "kv_heads": values.get(f"{family}.attention.head_count_kv", heads),
        "head_dim": values.get(f"{family}.attention.key_length", fields["width"] // heads),
    }
    for name, high in (("kv_heads", HEADS), ("head_dim", WIDTH)):
        check_option(f"{family}.{name}", extra[name], whole(None, high=high), where=str(path))
    turned = values.get(f"{family}.rope.dimension_count", extra["head_dim"])
    if turned != extra["head_dim"]:
        raise WeightsError(f"{path}: rope.dimension_count={turned!r} must be {extra['head_dim']}, the size of a head")
    theta = values.get(f"{family}.rope.freq_base", 10_000.0)
    check_option(f"{family}.rope.freq_base", theta, number(None, 1.0, 1e12), where=str(path))
    divisors = file.tensors.read(ROPE).reshape(-1).tolist() if ROPE in info else []
    return LMConfig(
        **fields, **extra, vocab_size=table[0], rope_theta=float(theta), rope_divisors=tuple(divisors),
        tied="output.weight" not in info, qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
    )  # fmt: skip


def gguf_rules(config: LMConfig, *, turned: bool) -> list[Rule]:
    """Map from llama.cpp's names.

    Args:
        config: of the model.
        turned: whether rows of queries and keys are in the order of Llama's first code, which turns neighbours: so
            files of the family "llama" have them.

    Returns:
        One rule for each of its tensors.
    """
    names = {
        "attention/q": "attn_q", "attention/k": "attn_k", "attention/v": "attn_v", "attention/out": "attn_output",
        "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
    }  # fmt: skip
    norms = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
    if config.qk_norm:
        norms |= {f"attention/{name}_norm": f"attn_{name}_norm" for name in "qk"}
    rules = [rule("token_embd.weight", "embed/embedding"), rule("output_norm.weight", "norm/scale")]
    if not config.tied:
        rules.append(rule("output.weight", "head/kernel", LINEAR))
    for i in range(config.layers):
        block, layer = layer_path(config, i)
        for ours, theirs in names.items():
            biased = config.qkv_bias and ours[-2:] in ("/q", "/k", "/v")
            heads = {"attention/q": config.heads, "attention/k": config.kv_heads}.get(ours) if turned else None
            layouts = (_neighbours(heads, LINEAR), _neighbours(heads, SAME)) if heads else (LINEAR, SAME)
            rules.append(rule(f"blk.{i}.{theirs}.weight", f"{block}/{ours}/kernel", layouts[0], layer=layer))
            if biased:
                rules.append(rule(f"blk.{i}.{theirs}.bias", f"{block}/{ours}/bias", layouts[1], layer=layer))
        for ours, theirs in norms.items():
            rules.append(rule(f"blk.{i}.{theirs}.weight", f"{block}/{ours}/scale", layer=layer))
    return rules


def _neighbours(heads: int, layout: Layout) -> Layout:
    """Rows of each head from pairs of neighbours to pairs half a head apart; then `layout`."""

    def turn(x, ours: bool):
        size = x.shape[0] // heads // 2
        shape = (heads, size, 2) if ours else (heads, 2, size)
        return x.reshape(*shape, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return Layout(read=lambda x: layout.read(turn(x, True)), write=lambda x: turn(layout.write(x), False))


_WORDS = {"smollm": "digits", "qwen2": "qwen2", "llama-bpe": "llama3", "llama3": "llama3", "gpt-2": "gpt2",
          "gpt2": "gpt2"}  # fmt: skip


def gguf_tokenizer(file: GGUF) -> LMTokenizer:
    """Read the tokenizer of a GGUF file.

    Raises:
        WeightsError: it is of a kind that is not known here.
        TextError: it is damaged.
    """
    path, values = file.tensors.path, file.values
    kind, words = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    tokens, merges, types = (values.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type"))
    if kind != "gpt2" or words not in _WORDS:
        raise WeightsError(
            f"{path}: its tokenizer ({kind!r}, {words!r}) is not known here: gpt2 with {', '.join(_WORDS)} is; take "
            "the model's folder"
        )
    lists = [x if isinstance(x, list) else [] for x in (tokens, merges, types)]
    texts = all(isinstance(x, str) for x in (*lists[0], *lists[1]))
    if not texts or not lists[0] or not lists[1] or len(lists[2]) != len(lists[0]):
        raise WeightsError(f"{path}: its tokenizer has no tokens, merges and token types that go together; {FIX}")
    special, added = ([i for i, t in enumerate(lists[2]) if t == number] for number in (3, 4))
    return LMTokenizer(model=bpe_json(lists[0], lists[1], words=_WORDS[words], special=special, added=added))


def open_lm(
    path: str | Path, *, mesh: Mesh | None = None, dtype: str | None = None, batch: int = 8, scan: bool = True
) -> LocalLM:
    """Open a language model from a public folder or a GGUF file, with its weights.

    Args:
        path: a folder of transformers (config.json, safetensors, tokenizer.json) of a model of text or of SmolVLM2, or
            a .gguf file of a model of text; "hf://org/name" too.
        mesh: devices to split the weights over (vdit/dist/rules.py). None: the first device.
        dtype: of the weights and products: "float32" or "bfloat16". None: float32 on a CPU, bfloat16 elsewhere.
        batch: most conversations at a time.
        scan: layers as one stack, which compiles in seconds. False writes tokens in about half of the time on a
            CPU, and compiles for about 20 seconds more.

    Returns:
        The model, which answers requests (vdit/language/base.py).

    Raises:
        WeightsError: it is no language model known here, or a file is missing, damaged or contradictory.
        TextError: its tokenizer or chat template cannot be used.

    Example:
        model = open_lm("SmolLM2-135M-Instruct")
        model.complete([Request(messages=(user("Say hello."),))], GenerationOptions(max_tokens=16))
    """
    place = paths.local_weights(path, error=WeightsError)
    dtype = dtype or ("float32" if platform() == "cpu" else "bfloat16")
    if dtype not in ("float32", "bfloat16"):
        raise WeightsError(f"dtype={dtype!r} must be float32 or bfloat16")
    if not place.is_file() and read_json(place / "config.json").get("model_type") == "smolvlm":
        from vdit.pretrained import smolvlm  # it stands on this module

        return smolvlm.open_vlm(place, mesh=mesh, dtype=dtype, batch=batch)
    opened = _open_gguf(place, scan) if place.is_file() else _open_folder(place, scan)
    model = LanguageModel(dataclasses.replace(opened.config, dtype=dtype))
    abstract = abstract_params(lambda key: model.init(key, *[_one_token()] * 3)["params"], mesh or one_device())
    params = load(opened.rules, opened.tensors, abstract, dtype=dtype, ignore=UNUSED)
    return LocalLM(
        name=place.stem if place.is_file() else place.name, model=model, params=params, tokenizer=opened.tokenizer,
        template=opened.template, stop_ids=opened.stop_ids, mesh=mesh, batch=batch,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """What a folder or file holds of a language model, but for the numbers of its tensors."""

    config: LMConfig
    rules: Sequence[Rule]
    tensors: TensorFiles
    tokenizer: LMTokenizer
    template: ChatTemplate
    stop_ids: tuple[int, ...]


def _one_token() -> np.ndarray:
    return np.ones((1, 1), np.int32)


def _open_folder(folder: Path, scan: bool) -> _Opened:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such file or folder: give a folder of transformers, or a .gguf file")
    json = read_json(folder / "config.json")
    config = dataclasses.replace(lm_config(json), scan=scan)
    tokenizer = load_lm_tokenizer(folder)
    return _Opened(
        config=config, rules=lm_rules(config), tensors=open_tensors(folder), tokenizer=tokenizer,
        template=folder_template(folder), stop_ids=folder_stop_ids(folder, json, tokenizer),
    )  # fmt: skip


def folder_template(folder: Path) -> ChatTemplate:
    """Read the chat template of a public folder: from chat_template.jinja, or tokenizer_config.json.

    Raises:
        WeightsError: there is none, so that the model is none to talk to; or a file is damaged.
    """
    config = read_json(folder / "tokenizer_config.json", limit=CONFIG_LIMIT) if _has(folder, "tokenizer_config") else {}
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, Mapping)}
        source = named.get("default")
    if _has(folder, "chat_template"):
        source = read_json(folder / "chat_template.json").get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        source = read_text(folder / "chat_template.jinja", limit=TEMPLATE_LIMIT, error=WeightsError, fix=FIX)
    if not isinstance(source, str) or not source:
        raise WeightsError(f"{folder}: has no chat template: take the model that was trained to follow instructions")
    special = special_tokens(config)
    return ChatTemplate(source=source, bos=special.get("bos_token", ""), eos=special.get("eos_token", ""))


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of the special tokens that a tokenizer_config.json names."""
    found = {}
    for name, value in config.items():
        value = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(value, str):
            found[name] = value
    return found


def folder_stop_ids(folder: Path, json: Mapping[str, Any], tokenizer: LMTokenizer) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: of generation_config.json, config.json and tokenizer_config.json.

    Raises:
        WeightsError: none of them names one.
    """
    sources = [json, read_json(folder / "generation_config.json") if _has(folder, "generation_config") else {}]
    ids: set[int] = set()
    for source in sources:
        value = source.get("eos_token_id")
        for i in value if isinstance(value, list | tuple) else (value,):
            if type(i) is int and 0 <= i < VOCABULARY:
                ids.add(i)
    if _has(folder, "tokenizer_config"):
        named = special_tokens(read_json(folder / "tokenizer_config.json", limit=CONFIG_LIMIT))
        ids |= {i for i in (tokenizer.id_of(named.get("eos_token", "")),) if i is not None}
    if not ids:
        raise WeightsError(f"{folder}: no file names the token that ends an answer (eos_token_id): {FIX}")
    return tuple(sorted(ids))


def _has(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").is_file()


def _open_gguf(path: Path, scan: bool) -> _Opened:
    file = open_gguf(path)
    config, tokenizer = dataclasses.replace(gguf_config(file), scan=scan), gguf_tokenizer(file)
    source = file.values.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source:
        raise WeightsError(f"{path}: has no chat template: take the model that was trained to follow instructions")
    ends = {file.values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    ids = tuple(sorted(i for i in ends if type(i) is int))
    if not ids:
        raise WeightsError(f"{path}: names no token that ends an answer (tokenizer.ggml.eos_token_id): {FIX}")
    texts = {name: tokenizer.token_of(file.values.get(f"tokenizer.ggml.{name}_token_id", -1) or 0) or ""
             for name in ("bos", "eos")}  # fmt: skip
    return _Opened(
        config=config, rules=gguf_rules(config, turned=file.values["general.architecture"] == "llama"),
        tensors=file.tensors, tokenizer=tokenizer, template=ChatTemplate(source=source, **texts), stop_ids=ids,
    )  # fmt: skip
