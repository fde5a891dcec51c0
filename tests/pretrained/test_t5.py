"""T5 and umT5 encoders give transformers' numbers, from its folders and under Wan's own names."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.pretrained.load import empty, fill
from tests.pretrained.reference import enliven, saved
from vdit.config import from_json, to_json
from vdit.errors import ConfigError, WeightsError
from vdit.models.text.config import T5Config, t5_preset
from vdit.models.text.t5 import T5Encoder, relative_bucket
from vdit.pretrained.t5 import UNUSED, diffusers_rules, original_rules, t5_config, t5_json

SMALL = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 3}
TRUE = {"vocab_size": 80, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 1, "num_heads": 64}
MODELS = {
    "T5 1.0": ("T5", {"feed_forward_proj": "relu"}),
    "T5 1.1": ("T5", {"feed_forward_proj": "gated-gelu"}),
    "umT5": ("UMT5", {"feed_forward_proj": "gated-gelu"}),
    "umT5, other buckets and eps": (
        "UMT5",
        {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 30, "layer_norm_epsilon": 0.01},
    ),
}


def reference(family, **options):
    import transformers

    config = getattr(transformers, f"{family}Config")(**options)
    return getattr(transformers, f"{family}EncoderModel")(config)


def public_json(model):
    """config.json as it would be saved."""
    return json.loads(model.config.to_json_string())


def captions(vocabulary, lengths=(40, 1, 17), length=40, seed=0):
    """ids [b length], as Wan pads them: an end token after each caption, then padding."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(lengths), length), np.int32)
    for row, count in zip(ids, lengths, strict=True):
        row[: count - 1] = rng.integers(2, vocabulary, count - 1)
        row[count - 1] = 1
    return ids


def theirs(torch, model, ids):
    """What Wan's pipeline makes of ids: masked padding, and zeros in its place."""
    mask = torch.tensor(ids != 0)
    out = model(torch.tensor(ids).long(), attention_mask=mask.long()).last_hidden_state
    return (out * mask[..., None]).numpy()


def ours(config, params, ids):
    position = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return jax.jit(T5Encoder(config).apply)({"params": params}, ids, np.ones_like(ids), position)


def shapes(config):
    one = np.zeros((1, 1), np.int32)
    tree = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), one, one, one)["params"]
    return jax.tree.map(lambda x: x.shape, nn.meta.unbox(tree))


@pytest.mark.parametrize("name", MODELS)
def test_small_encoders_give_the_reference_numbers(torch, parity, tmp_path, name):
    family, options = MODELS[name]
    model = enliven(torch, reference(family, **SMALL | options))
    options, state = saved(model, tmp_path)
    config = t5_config(options)
    rules = diffusers_rules(config, state)
    params = fill(rules, state)
    assert jax.tree.map(np.shape, params) == shapes(config)
    ids = captions(60)
    want = theirs(torch, model, ids)
    parity(f"{name} encoder", ours(config, params, ids), want)

    again = empty(rules, params)
    assert set(again) == set(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(again[key], tensor, err_msg=key)
    assert t5_config(t5_json(config)) == config
    unrolled = dataclasses.replace(config, scan=False)
    parity(f"{name} encoder, layers apart", ours(unrolled, fill(diffusers_rules(unrolled), state), ids), want)


@pytest.mark.parametrize("name", ["umT5", "T5 1.0"])
def test_encoders_of_true_width_give_the_reference_numbers(torch, parity, name):
    family, options = MODELS[name]
    # Its own initialisation leaves no weight at zero or one but the norms'.
    model = reference(family, **TRUE | options).eval()
    for i, parameter in enumerate(model.parameters()):
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    config = t5_config(public_json(model))
    ids = captions(80, (24, 9), 24)
    params = fill(diffusers_rules(config, state), state)
    parity(f"{name} encoder, xxl width, 1 layer", ours(config, params, ids), theirs(torch, model, ids))


@pytest.mark.parametrize("name", ["umT5", "T5 1.1"])
def test_wans_own_names_hold_the_same_weights(torch, parity, tmp_path, name):
    family, options = MODELS[name]
    model = enliven(torch, reference(family, **SMALL | options), seed=1)
    options, state = saved(model, tmp_path)
    config = t5_config(options)
    # Wan's own layout, spelled out from transformers' by its module tree.
    spelled = [
        ("encoder.block.", "blocks."), (".layer.0.SelfAttention.relative_attention_bias", ".pos_embedding.embedding"),
        (".layer.0.SelfAttention", ".attn"), (".layer.0.layer_norm", ".norm1"), (".layer.1.layer_norm", ".norm2"),
        (".layer.1.DenseReluDense.wi_0", ".ffn.gate.0"), (".layer.1.DenseReluDense.wi_1", ".ffn.fc1"),
        (".layer.1.DenseReluDense.wo", ".ffn.fc2"), ("shared", "token_embedding"),
        ("encoder.final_layer_norm", "norm"),
    ]  # fmt: skip
    original = {}
    for key, tensor in state.items():
        for a, b in spelled:
            key = key.replace(a, b)
        if not config.per_layer_bias:
            key = key.replace("blocks.0.pos_embedding", "pos_embedding")
        original[key] = tensor
    ids = captions(60)
    params = fill(original_rules(config), original)
    parity(f"{name} encoder, Wan's names", ours(config, params, ids), theirs(torch, model, ids))
    back = empty(original_rules(config), params)
    assert all(np.array_equal(back[key], tensor) for key, tensor in original.items())


def test_swapped_tensors_are_found(torch, tmp_path):
    family, options = MODELS["umT5"]
    model = enliven(torch, reference(family, **SMALL | options), seed=2)
    options, state = saved(model, tmp_path)
    config, ids = t5_config(options), captions(60)
    want = theirs(torch, model, ids)
    run = jax.jit(T5Encoder(config).apply)
    position = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    pairs = [
        (a, b) for a in state for b in state if a < b and state[a].shape == state[b].shape and ".block.1." not in a + b
    ]
    assert len(pairs) > 10
    for a, b in pairs:
        params = fill(diffusers_rules(config), state | {a: state[b], b: state[a]})
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            np.testing.assert_allclose(run({"params": params}, ids, np.ones_like(ids), position), want, atol=1e-4)


def test_buckets_are_the_reference_s_at_every_distance(torch):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-700, 701)
    for buckets, most in ((32, 128), (32, 100), (12, 30), (64, 256), (8, 16)):
        want = T5Attention._relative_position_bucket(torch.tensor(distance), True, buckets, most)
        np.testing.assert_array_equal(relative_bucket(distance, buckets, most), want, err_msg=f"{buckets} {most}")


def test_a_tied_table_may_have_any_of_its_names(torch, tmp_path):
    options, state = saved(enliven(torch, reference("T5", **SMALL)), tmp_path)
    config = t5_config(options)
    table = state["shared.weight"]
    both = state | {"encoder.embed_tokens.weight": table}
    np.testing.assert_array_equal(fill(diffusers_rules(config, both), both)["embed"]["embedding"], table)
    one = {key: tensor for key, tensor in both.items() if key != "shared.weight"}
    np.testing.assert_array_equal(fill(diffusers_rules(config, one), one)["embed"]["embedding"], table)


def test_the_decoder_of_a_whole_model_is_what_is_unused(torch):
    import transformers

    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL, feed_forward_proj="gated-gelu"))
    names = set(model.state_dict())
    used = {n for r in diffusers_rules(t5_config(public_json(model)), names) for n in (r.name, *r.copies)}
    assert {name for name in names - used if not name.startswith(UNUSED)} == set()
    assert not any(name.startswith(UNUSED) for name in used)


def test_public_configs_read_as_the_presets():
    """The options of the public repositories, as their files have them."""
    wan = {
        "architectures": ["UMT5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64, "d_model": 4096,
        "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
        "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "umt5", "num_decoder_layers": 24,
        "num_heads": 64, "num_layers": 24, "output_past": True, "pad_token_id": 0,
        "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "scalable_attention": True,
        "tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer", "torch_dtype": "bfloat16",
        "transformers_version": "4.49.0", "use_cache": True, "vocab_size": 256384,
    }  # fmt: skip
    assert t5_config(wan) == t5_preset("umt5-xxl")
    t5 = wan | {"model_type": "t5", "vocab_size": 32128}
    assert t5_config(t5) == t5_preset("t5-v1_1-xxl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type='bert'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj='gated-silu' .* is not supported"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj='gelu' .* is not supported"),
        ({"dense_act_fn": "relu", "feed_forward_proj": "gated-gelu"}, "dense_act_fn='relu' .* contradicts"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"sparse_step": 2}, "sparse_step=2 .* is no option"),
        ({"d_model": None}, "d_model=None .* whole number"),
    ],
)
def test_what_cannot_be_done_is_refused(change, message):
    with pytest.raises(WeightsError, match=message) as error:
        t5_config({"model_type": "t5", **SMALL, **change})
    assert "\n" not in str(error.value)


def test_configs_go_through_json_and_refuse_nonsense():
    config = t5_preset("t5-v1_1-small", scan=False)
    assert from_json(T5Config, to_json(config)) == config
    with pytest.raises(ConfigError, match="T5 preset 'umt5-large' is unknown"):
        t5_preset("umt5-large")
    with pytest.raises(ConfigError, match=r"text\.t5\.buckets=30 must be a multiple of 4"):
        t5_preset("umt5-xxl", buckets=30)
    with pytest.raises(ConfigError, match="gated=False"):
        original_rules(t5_preset("t5-v1_1-small", gated=False))
