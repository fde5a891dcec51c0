"""Wan transformers give the reference's numbers, from diffusers folders and from Wan's own checkpoints."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.dit.inputs import as_row, model_of
from tests.pretrained.load import empty, fill
from tests.pretrained.reference import dense_inputs, enliven, saved
from vdit.data.patches import token_grid, unpatchify
from vdit.errors import WeightsError
from vdit.models.dit.config import DiTConfig, preset
from vdit.pretrained.wan import diffusers_rules, original_config, original_rules, wan_config, wan_json

SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 24,
    "freq_dim": 32, "ffn_dim": 48, "num_layers": 2,
}  # fmt: skip
IMAGE = {"in_channels": 10, "image_dim": 20, "added_kv_proj_dim": 32}
MODELS = {
    "Wan 2.1 T2V": {},
    "Wan, large norm_eps, patch of 2 frames": {"eps": 0.05, "patch_size": (2, 2, 2)},
    "Wan 2.1 I2V": IMAGE,
    "Wan 2.1 FLF2V": {**IMAGE, "pos_embed_seq_len": 10},
    "Wan 2.2 I2V A14B": {"in_channels": 10},
    "Wan 2.2 TI2V": {"in_channels": 6, "out_channels": 6},
}
PRESETS = {
    "wan2.1-t2v-1.3b": 1_418_996_800,
    "wan2.1-t2v-14b": 14_288_491_584,
    "wan2.1-i2v-14b": None,
    "wan2.2-ti2v-5b": None,
    "wan2.2-t2v-a14b": 14_288_491_584,
    "wan2.2-i2v-a14b": None,
}


def reference(**options):
    """diffusers' transformer; on the meta device it has shapes alone."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(**options)


def inputs_for(model, *, b=2, shape=(2, 4, 6), texts=512, seed=0):
    """(theirs, ours): the same random inputs in both forms, NumPy arrays."""
    rng, cfg = np.random.default_rng(seed), model.config
    latents = rng.normal(size=(b, cfg.in_channels, *shape)).astype(np.float32)
    text = rng.normal(size=(b, texts, cfg.text_dim)).astype(np.float32)
    time = rng.uniform(0, 1000, b).astype(np.float32)
    theirs = {"hidden_states": latents, "timestep": time, "encoder_hidden_states": text}
    ours = dense_inputs(latents, cfg.patch_size, channels=cfg.out_channels)
    ours |= {"time": time[:, None], "text": text, "text_segment_ids": np.ones((b, texts), np.int32)}
    if cfg.image_dim:
        tokens = cfg.pos_embed_seq_len or 5
        image = rng.normal(size=(b, tokens, cfg.image_dim)).astype(np.float32)
        # With positions theirs takes first and last frames as a batch of twice as many.
        halves = image.reshape(2 * b, tokens // 2, -1) if cfg.pos_embed_seq_len else image
        theirs["encoder_hidden_states_image"] = halves
        ours |= {"image": image, "image_segment_ids": np.ones((b, tokens), np.int32)}
    return theirs, ours


def run(torch, model, inputs):
    return model(**{name: torch.tensor(x) for name, x in inputs.items()}, return_dict=False)[0]


@functools.partial(jax.jit, static_argnums=0)
def _predict(config, params, row, time, text):
    return model_of(config).apply({"params": params}, row, time, text).prediction


def predict(config, params, inputs):
    return _predict(config, params, *as_row(inputs))


def run_ours(config, params, inputs, shape):
    """Prediction as latents [b c t h w]."""
    out = predict(config, params, inputs)
    latents = unpatchify(np.asarray(out), token_grid((*shape, 1), config.patch), config.patch)
    return np.moveaxis(latents, -1, 1)


def abstract(config: DiTConfig, inputs) -> dict:
    """Shapes of our parameters."""
    init = lambda: nn.meta.unbox(model_of(config).init(jax.random.key(0), *as_row(inputs)))["params"]  # noqa: E731
    return jax.eval_shape(init)


@pytest.fixture(scope="module")
def small(torch, tmp_path_factory):
    """name -> (their model, our config, rules, their tensors), built once each."""
    made = {}

    def get(name):
        if name not in made:
            model = enliven(torch, reference(**{**SMALL, **MODELS[name]}))
            json, tensors = saved(model, tmp_path_factory.mktemp("wan"))
            config = wan_config(json)
            made[name] = model, config, diffusers_rules(config), tensors
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_small_models_equal_the_reference(torch, parity, small, name):
    model, config, rules, tensors = small(name)
    theirs, ours = inputs_for(model)
    parity(f"{name}, transformer", run_ours(config, fill(rules, tensors), ours, (2, 4, 6)), run(torch, model, theirs))


def test_noise_levels_of_single_frames(torch, parity, small):
    """TI2V: theirs takes a time for each token, ours one for each slot; frame 0 is known, at level 0."""
    model, config, rules, tensors = small("Wan 2.2 TI2V")
    theirs, ours = inputs_for(model, shape=(3, 4, 6))
    ours["frame_index"] = ours["position"][..., 0]
    ours["time"] = np.array([[0, 700, 700], [0, 250, 900]], np.float32)
    ours["frame_segment_ids"] = np.ones((2, 3), np.int32)
    theirs["timestep"] = np.take_along_axis(ours["time"], ours["frame_index"], 1)
    got = run_ours(config, fill(rules, tensors), ours, (3, 4, 6))
    parity("Wan 2.2 TI2V, a noise level a frame", got, run(torch, model, theirs))


@pytest.mark.parametrize("name", ["Wan 2.1 T2V", "Wan 2.1 FLF2V", "Wan 2.2 I2V A14B"])
def test_original_checkpoints_hold_the_same(torch, small, name):
    """Our weights written under Wan's own names; diffusers' own conversion turns these into theirs."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    _, config, rules, tensors = small(name)
    original = empty(original_rules(config), fill(rules, tensors))
    converted = convert_wan_transformer_to_diffusers({k: torch.tensor(v) for k, v in original.items()})
    positions = {"img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed"}  # which it leaves alone
    converted = {positions.get(k, k): v.numpy() for k, v in converted.items()}
    assert converted.keys() == tensors.keys()
    for key, value in converted.items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)
    again = fill(original_rules(config), original)
    jax.tree.map(np.testing.assert_array_equal, again, fill(rules, tensors))


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_exact_both_ways_and_fill_every_parameter(small, name):
    model, config, rules, tensors = small(name)
    _, inputs = inputs_for(model)
    params = fill(rules, tensors)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    assert shapes(params) == shapes(abstract(config, inputs))
    for key, value in empty(rules, params).items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)
    assert wan_config(wan_json(config)) == config


def test_blocks_may_be_unrolled(torch, parity, small):
    model, config, _, tensors = small("Wan 2.1 I2V")
    config = dataclasses.replace(config, scan=False)
    theirs, ours = inputs_for(model)
    params = fill(diffusers_rules(config), tensors)
    parity("Wan 2.1 I2V, blocks unrolled", run_ours(config, params, ours, (2, 4, 6)), run(torch, model, theirs))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blocks.0.attn1.to_q.weight", "blocks.0.attn1.to_k.weight"),
        ("blocks.0.attn2.norm_k.weight", "blocks.0.attn2.norm_added_k.weight"),
        # (their biases may be swapped: each is added once, whatever the softmax)
        ("blocks.0.attn2.to_v.weight", "blocks.0.attn2.add_v_proj.weight"),
        ("blocks.0.norm2.weight", "blocks.1.norm2.weight"),
        ("blocks.0.scale_shift_table", "blocks.1.scale_shift_table"),
        ("condition_embedder.image_embedder.norm2.bias", "patch_embedding.bias"),
    ],
)
def test_a_swap_of_two_tensors_is_seen(torch, small, one, other):
    model, config, rules, tensors = small("Wan 2.1 I2V")
    theirs, ours = inputs_for(model)
    assert tensors[one].shape == tensors[other].shape
    params = fill(rules, {**tensors, one: tensors[other], other: tensors[one]})
    got, want = run_ours(config, params, ours, (2, 4, 6)), run(torch, model, theirs)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_clips_of_a_packed_row_read_their_own_image(small):
    """Two clips in one row, of unlike sizes, give what each gives alone."""
    model, config, rules, tensors = small("Wan 2.1 FLF2V")
    params = fill(rules, tensors)
    rows = [inputs_for(model, b=1, shape=shape, texts=3, seed=i)[1] for i, shape in enumerate([(1, 4, 2), (2, 2, 4)])]
    ids = ("segment_ids", "frame_segment_ids", "text_segment_ids", "image_segment_ids")
    second = {**rows[1], **{name: 2 * rows[1][name] for name in ids}, "frame_index": rows[1]["frame_index"] + 1}
    packed = {name: np.concatenate([rows[0][name], second[name]], axis=1) for name in second}
    want = np.concatenate([predict(config, params, row) for row in rows], axis=1)
    np.testing.assert_allclose(predict(config, params, packed), want, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_shapes_of_the_reference(torch, name):
    config = preset(name)
    with torch.device("meta"):
        model = reference(**{k: v for k, v in wan_json(config).items() if k[0] != "_"})
    theirs = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    ours = abstract(config, inputs_for(model, b=1, texts=1)[1])
    paths = {"/".join(k.key for k in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(ours)}
    assert {rule.name: rule.shape(paths) for rule in diffusers_rules(config)} == theirs
    count = sum(int(np.prod(shape)) for shape in paths.values())
    assert count == sum(p.numel() for p in model.parameters())
    assert PRESETS[name] in (None, count)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_one_block_at_true_width(torch, parity, tmp_path, name):
    one_block_at_true_width(torch, parity, tmp_path, name)


def test_one_block_of_the_smallest_at_true_width(torch, parity, tmp_path):
    one_block_at_true_width(torch, parity, tmp_path, "wan2.1-t2v-1.3b")


def one_block_at_true_width(torch, parity, tmp_path, name):
    options = {k: v for k, v in wan_json(preset(name, depth=1)).items() if k[0] != "_"}
    model = enliven(torch, reference(**options))
    json, tensors = saved(model, tmp_path)
    config = wan_config(json)
    theirs, ours = inputs_for(model, b=1)
    want = run(torch, model, theirs)
    del model
    got = run_ours(config, fill(diffusers_rules(config), tensors), ours, (2, 4, 6))
    parity(f"{name}, one block at true width", got, want)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"qk_norm": None}, "qk_norm"),
        ({"cross_attn_norm": False}, "cross_attn_norm"),
        ({"rope_max_seq_len": 4096}, "rope_max_seq_len"),
        ({"added_kv_proj_dim": 7}, "added_kv_proj_dim"),
        ({"in_channels": 3}, "in_channels"),
        ({"vace_layers": [0]}, "vace_layers"),
        ({"_class_name": "WanVACETransformer3DModel"}, "WanVACETransformer3DModel"),
    ],
)
def test_options_we_cannot_do_are_refused_by_name(changes, text):
    with pytest.raises(WeightsError, match=text):
        wan_config({**SMALL, **changes})


def test_configs_of_the_original_repositories():
    like = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "eps": 1e-6, "freq_dim": 256, "text_len": 512}
    large = {**like, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "out_dim": 16}
    small = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30, "in_dim": 16, "out_dim": 16}
    five = {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "in_dim": 48, "out_dim": 48}
    image = {**large, "model_type": "i2v", "in_dim": 36}
    assert original_config({**like, **small, "model_type": "t2v"}) == preset("wan2.1-t2v-1.3b")
    assert original_config({**large, "model_type": "t2v", "in_dim": 16}) == preset("wan2.2-t2v-a14b")
    assert original_config({**like, **five, "model_type": "ti2v"}) == preset("wan2.2-ti2v-5b")
    assert original_config(image, ["img_emb.proj.0.weight"]) == preset("wan2.1-i2v-14b")
    assert original_config(image, ["head.modulation"]) == preset("wan2.2-i2v-a14b")
    with pytest.raises(WeightsError, match="names"):
        original_config(image)
    with pytest.raises(WeightsError, match="s2v"):
        original_config({**large, "model_type": "s2v"})


def test_a_config_that_is_not_wan_is_not_exported():
    for changes in ({"modulation": "block"}, {"text_pool": True}, {"mlp_norm_eps": 1e-5}, {"text_width": None}):
        with pytest.raises(WeightsError, match=next(iter(changes))):
            wan_json(preset("wan2.1-t2v-1.3b", **changes))
