"""Language models give transformers' logits, and in greedy decoding its tokens, from its folders."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.pretrained.load import empty, fill
from tests.pretrained.reference import enliven, saved
from vdit.errors import WeightsError
from vdit.models.lm.config import lm_preset
from vdit.models.lm.generate import Decoding, generate, pad_prompts
from vdit.models.lm.model import LanguageModel
from vdit.pretrained.lm import lm_config, lm_json, lm_rules

SMALL = {
    "vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 40, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MODELS = {
    "Llama": ("Llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-2}),
    "SmolLM2": ("Llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "Llama 3.2": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "Qwen2.5": ("Qwen2", {"tie_word_embeddings": True, "head_dim": None}),
    "Qwen3": ("Qwen3", {"tie_word_embeddings": False, "num_key_value_heads": 3, "head_dim": 16}),
}
TRUE = {
    "SmolLM2-135M": ("Llama", "smollm2-135m"),
    "Qwen2.5 0.5B": ("Qwen2", "qwen2.5-0.5b"),
    "Qwen3 0.6B": ("Qwen3", "qwen3-0.6b"),
}


def reference(family, **options):
    import transformers

    options = {name: value for name, value in options.items() if name != "head_dim" or value is not None}
    return getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**options))


def ours(config, params, ids):
    """Logits [b n v] of whole rows of ids."""
    model = LanguageModel(config)
    position = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)

    def run(params):
        hidden = model.apply({"params": params}, ids, position, np.ones_like(ids)).hidden
        return model.apply({"params": params}, hidden, method="logits")

    return jax.jit(run)(params)


def some_ids(vocabulary, shape=(2, 19), seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, shape).astype(np.int32)


@pytest.mark.parametrize("name", MODELS)
def test_small_models_give_the_reference_numbers(torch, parity, tmp_path, name):
    family, options = MODELS[name]
    model = enliven(torch, reference(family, **SMALL | options))
    options, state = saved(model, tmp_path)
    config = lm_config(options)
    rules = lm_rules(config)
    if config.tied:  # files leave the copy of a tied table out
        rules = [dataclasses.replace(rule, copies=()) for rule in rules]
    params = fill(rules, state)
    ids = some_ids(61)
    tree = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), ids, ids, ids)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, nn.meta.unbox(tree))
    want = model(torch.tensor(ids).long()).logits
    parity(f"{name} logits", ours(config, params, ids), want)
    again = empty(rules, params)
    assert set(again) == set(state)
    assert all(np.array_equal(again[key], tensor) for key, tensor in state.items())
    if not config.rope_divisors:
        assert lm_config(json.loads(json.dumps(lm_json(config)))) == config

    if name not in ("SmolLM2", "Qwen3"):  # between them they have everything that generation sees
        return
    # Prompts of several lengths in one batch, each as transformers continues it alone.
    prompts = [some_ids(61, n, seed=n).tolist() for n in (1, 7, 12)]
    made = generate(LanguageModel(config), params, pad_prompts(prompts), Decoding.make(3, max_tokens=16), max_tokens=16)
    for prompt, tokens in zip(prompts, np.asarray(made.tokens), strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0)
        assert tokens.tolist() == theirs[0, len(prompt) :].tolist()


def test_layers_that_are_not_stacked_give_the_same(torch, parity, tmp_path):
    model = enliven(torch, reference("Qwen3", **SMALL | MODELS["Qwen3"][1]), seed=3)
    options, state = saved(model, tmp_path)
    config, ids = dataclasses.replace(lm_config(options), scan=False), some_ids(61)
    params = fill(lm_rules(config), state)
    parity("Qwen3 logits, layers apart", ours(config, params, ids), model(torch.tensor(ids).long()).logits)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "Qwen3 0.6B")) for n in TRUE])
def test_models_of_true_width_give_the_reference_numbers(torch, parity, name):
    family, preset = TRUE[name]
    config = lm_preset(preset, layers=2, vocab_size=97)
    options = lm_json(config)
    model = reference(family, **options).eval()
    for i, parameter in enumerate(model.parameters()):
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    assert lm_config(json.loads(model.config.to_json_string())) == config
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    ids = some_ids(97, (1, 24))
    params = fill(lm_rules(config), state)
    parity(f"{name} logits, true width, 2 layers", ours(config, params, ids), model(torch.tensor(ids).long()).logits)


def test_swapped_tensors_are_found(torch, tmp_path):
    model = enliven(torch, reference("Qwen2", **SMALL | MODELS["Qwen2.5"][1]), seed=2)
    options, state = saved(model, tmp_path)
    config, ids = lm_config(options), some_ids(61)
    rules = [dataclasses.replace(rule, copies=()) for rule in lm_rules(config)]
    want = np.asarray(model(torch.tensor(ids).long()).logits)
    run = jax.jit(lambda params: ours(config, params, ids))
    # The bias of keys adds the same to all scores of a query but for their turn; it is small here.
    names = [name for name in state if "layers.2" not in name]
    pairs = [(a, b) for a in names for b in names if a < b and state[a].shape == state[b].shape]
    assert len(pairs) > 20
    for a, b in pairs:
        gap = np.abs(run(fill(rules, state | {a: state[b], b: state[a]})) - want).max()
        assert gap > 1e-3, (a, b)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "llama3"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"num_experts": 8}, "num_experts"),
    ],
)
def test_what_cannot_be_done_is_refused(change, named):
    with pytest.raises(WeightsError) as error:
        lm_config({"model_type": "llama", **SMALL, **change})
    assert named in str(error.value)
