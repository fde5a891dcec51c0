"""Class-conditional DiT gives the reference's numbers, from diffusers folders and from original checkpoints."""

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
from vdit.data.patches import grid_position, unpatchify
from vdit.errors import WeightsError
from vdit.models.dit.config import preset
from vdit.nn.embedding import sincos_position
from vdit.pretrained import dit as maps
from vdit.pretrained.weights import Rule

SIDE, CLASSES = 8, 10
SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "sample_size": SIDE,
    "num_embeds_ada_norm": CLASSES, "out_channels": 8,
}  # fmt: skip
PRESETS = {
    "DiT-S/2": 33e6, "DiT-B/2": 130e6, "DiT-L/2": 458e6, "DiT-XL/2": 675e6,
    "DiT-S/8": 33e6, "DiT-XL/4": 676e6,
}  # fmt: skip


def diffusers_model(torch, **options):
    """diffusers' transformer with lively weights, the embedders of all blocks alike as in public weights."""
    from diffusers import DiTTransformer2DModel

    model = enliven(torch, DiTTransformer2DModel(**options))
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def original_model(torch, *, patch=2, width=32, heads=2, depth=2, classes=CLASSES):
    """The original's network with lively weights; its positions are what they are."""
    from tests.pretrained.original_dit import OriginalDiT

    options = {"side": SIDE, "channels": 4, "patch": patch}
    model = OriginalDiT(**options, width=width, heads=heads, depth=depth, classes=classes)
    fixed = model.pos_embed.clone()
    enliven(torch, model).pos_embed.copy_(fixed)
    return model


def draw(b=3):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(b, 4, SIDE, SIDE)).astype(np.float32)
    return latents, np.array([999, 500, 3][:b]), np.array([CLASSES, 0, 7][:b])  # the first has no class


@functools.partial(jax.jit, static_argnums=0)
def _predict(config, params, row, time, text):
    return model_of(config).apply({"params": params}, row, time, text).prediction


def predict(config, params, inputs):
    return _predict(config, params, *as_row(inputs))


def run_ours(config, params, latents, time, label):
    """Prediction and variance as [b 2c h w], from their inputs."""
    inputs = dense_inputs(latents[:, :, None], config.patch, channels=4)
    label = np.where(label == config.classes, 0, label + 1)
    inputs |= {"time": time[:, None].astype(np.float32), "label": label[:, None]}
    out = np.asarray(predict(config, params, inputs))
    grid = (1, SIDE // config.patch[1], SIDE // config.patch[2])
    halves = [unpatchify(half, grid, config.patch)[:, 0] for half in np.split(out, 2, -1)]
    return np.moveaxis(np.concatenate(halves, -1), -1, 1)


def run_diffusers(torch, model, latents, time, label):
    inputs = [torch.tensor(x) for x in (latents, time, label)]
    return model(inputs[0], timestep=inputs[1], class_labels=inputs[2], return_dict=False)[0]


def run_original(torch, model, latents, time, label):
    return model(*(torch.tensor(x) for x in (latents, time, label)))


def original_parts(model):
    """(config, rules, tensors that hold parameters), as an original checkpoint gives them."""
    tensors = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    config = maps.config_from_shapes({name: x.shape for name, x in tensors.items()}, heads=2)
    constants = maps.original_constants(config, {name: x.shape for name, x in tensors.items()})
    for name, value in constants.items():
        np.testing.assert_allclose(tensors.pop(name), value, atol=1e-5)
    return config, maps.original_rules(config), tensors


@pytest.fixture(scope="module")
def diffusers_parts(torch, tmp_path_factory):
    model = diffusers_model(torch, **SMALL)
    json, tensors = saved(model, tmp_path_factory.mktemp("dit"))
    config = maps.dit_config(json)
    return model, config, maps.diffusers_rules(config), tensors


@pytest.mark.parametrize("patch", [2, 4])
def test_diffusers_folders_give_diffusers_numbers(torch, parity, tmp_path, patch):
    model = diffusers_model(torch, **{**SMALL, "patch_size": patch, "norm_eps": 0.01})
    json, tensors = saved(model, tmp_path)
    config = maps.dit_config(json)
    got = run_ours(config, fill(maps.diffusers_rules(config), tensors), *draw())
    parity(f"DiT/{patch}, diffusers", got, run_diffusers(torch, model, *draw()))


@pytest.mark.parametrize("patch", [2, 8])
def test_original_checkpoints_give_the_papers_numbers(torch, parity, patch):
    model = original_model(torch, patch=patch)
    config, rules, tensors = original_parts(model)
    got = run_ours(config, fill(rules, tensors), *draw())
    parity(f"DiT/{patch}, original", got, run_original(torch, model, *draw()))


def test_one_block_at_true_width(torch, parity):
    model = original_model(torch, width=1152, heads=16, depth=1, classes=1000)
    config, _, tensors = original_parts(model)
    config = dataclasses.replace(config, heads=16)
    got = run_ours(config, fill(maps.original_rules(config), tensors), *draw(2))
    parity("DiT-XL/2, original, one block at true width", got, run_original(torch, model, *draw(2)))


@pytest.mark.parametrize("source", ["diffusers", "original"])
def test_maps_are_exact_both_ways_and_fill_every_parameter(torch, diffusers_parts, source):
    config, rules, tensors = diffusers_parts[1:] if source == "diffusers" else original_parts(original_model(torch))
    params = fill(rules, tensors)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract(config))
    back = empty(rules, params)
    assert back.keys() == tensors.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blocks.0.attn.proj.weight", "blocks.1.attn.proj.weight"),
        ("blocks.0.mlp.fc2.bias", "blocks.0.attn.proj.bias"),
        ("blocks.0.adaLN_modulation.1.bias", "blocks.1.adaLN_modulation.1.bias"),
        ("t_embedder.mlp.2.bias", "x_embedder.proj.bias"),
    ],
)
def test_a_swap_of_two_tensors_is_seen(torch, one, other):
    model = original_model(torch)
    config, rules, tensors = original_parts(model)
    assert tensors[one].shape == tensors[other].shape
    params = fill(rules, {**tensors, one: tensors[other], other: tensors[one]})
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(run_ours(config, params, *draw()), run_original(torch, model, *draw()), atol=1e-4)


def test_blocks_may_be_unrolled(torch, diffusers_parts):
    _, config, rules, tensors = diffusers_parts
    unrolled = dataclasses.replace(config, scan=False)
    params = fill(maps.diffusers_rules(unrolled), tensors)
    want = run_ours(config, fill(rules, tensors), *draw())
    np.testing.assert_allclose(run_ours(unrolled, params, *draw()), want, atol=1e-5)


def test_positions_are_the_fixed_table_on_squares_and_oblongs(torch):
    from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_2d_sincos_pos_embed_from_grid

    for side in (2, 16, 32):
        ours = sincos_position(jnp.asarray(grid_position((1, side, side)))[None], 64)[0]
        theirs = get_2d_sincos_pos_embed(64, side, base_size=side)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    place = grid_position((1, 3, 5))
    grid = torch.tensor(place[:, [2, 1]].T.astype(np.float32))  # column first, as theirs
    ours = sincos_position(jnp.asarray(place)[None], 64)[0]
    np.testing.assert_allclose(ours, get_2d_sincos_pos_embed_from_grid(64, grid), atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_shapes_of_both_layouts(torch, name):
    """Parameters as in the paper's table 1, where it has them, and as both references count them."""
    from diffusers import DiTTransformer2DModel

    from tests.pretrained.original_dit import OriginalDiT

    config = preset(name)
    ours = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(config))
    }
    assert sum(int(np.prod(shape)) for shape in ours.values()) == pytest.approx(PRESETS[name], rel=0.01)
    with torch.device("meta"):
        as_diffusers = dataclasses.replace(config, time_frequency_shift=1, mlp_norm_eps=1e-5)
        json = {key: value for key, value in maps.dit_json(as_diffusers).items() if key[0] != "_"}
        assert maps.dit_config(json) == as_diffusers
        theirs = DiTTransformer2DModel(**json).state_dict()
    assert written(maps.diffusers_rules(config), ours) == {key: tuple(x.shape) for key, x in theirs.items()}

    sizes = {"width": config.width, "depth": config.depth, "heads": config.heads, "patch": config.patch[1]}
    with torch.device("meta"):
        original = OriginalDiT(side=32, channels=4, classes=1000, **sizes)
    shapes = {key: tuple(x.shape) for key, x in original.state_dict().items()}
    assert maps.config_from_shapes(shapes) == config
    assert shapes.pop("pos_embed") == (1, (32 // config.patch[1]) ** 2, config.width)
    assert written(maps.original_rules(config), ours) == shapes


def written(rules: list[Rule], ours: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of their tensors by name."""
    return {name: rule.shape(ours) for rule in rules for name in (rule.name, *rule.copies)}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"activation_fn": "gelu"}, "activation_fn"),
        ({"norm_type": "ada_norm"}, "norm_type"),
        ({"attention_bias": False}, "attention_bias"),
        ({"out_channels": 5}, "out_channels"),
        ({"caption_channels": 4096}, "caption_channels"),
        ({"_class_name": "PixArtTransformer2DModel"}, "PixArtTransformer2DModel"),
    ],
)
def test_options_we_cannot_do_are_refused_by_name(changes, text):
    with pytest.raises(WeightsError, match=text):
        maps.dit_config({**SMALL, **changes})


def test_what_is_no_dit_is_refused():
    original = {
        "x_embedder.proj.weight": (48, 4, 2, 2), "y_embedder.embedding_table.weight": (11, 48),
        "final_layer.linear.weight": (32, 48), "blocks.0.attn.qkv.bias": (144,),
    }  # fmt: skip
    assert maps.config_from_shapes(original, heads=3).depth == 1
    with pytest.raises(WeightsError, match="heads"):
        maps.config_from_shapes(original)
    with pytest.raises(WeightsError, match=r"final_layer\.linear has 31"):
        maps.config_from_shapes({**original, "final_layer.linear.weight": (31, 48)}, heads=3)
    with pytest.raises(WeightsError, match=r"y_embedder\.embedding_table\.weight"):
        maps.config_from_shapes({"x_embedder.proj.weight": (48, 4, 2, 2)})
    config = preset("DiT-S/2")
    with pytest.raises(WeightsError, match="pos_embed"):
        maps.original_constants(config, {"pos_embed": (1, 15, 384)})
    with pytest.raises(WeightsError, match="time_frequency_shift"):
        maps.dit_json(config)
    for changes in ({"qk_norm": "head"}, {"patch": (1, 2, 4)}, {"classes": 0}, {"mlp_width": 7}):
        with pytest.raises(WeightsError, match=next(iter(changes))):
            maps.original_rules(dataclasses.replace(config, **changes))


def abstract(config) -> dict:
    """Shapes of our parameters."""
    one = jnp.ones((1, 1), jnp.int32)
    inputs = {name: one for name in ("segment_ids", "frame_index", "frame_segment_ids", "label")}
    inputs |= {"values": jnp.ones((1, 1, config.token_values)), "time": jnp.ones((1, 1))}
    inputs["position"] = jnp.zeros((1, 1, 3), jnp.int32)
    return jax.eval_shape(lambda: nn.meta.unbox(model_of(config).init(jax.random.key(0), *as_row(inputs)))["params"])
