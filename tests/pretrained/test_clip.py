"""CLIP image encoders give transformers' numbers, from its folders and under Wan's own names."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.pretrained.load import empty, fill
from tests.pretrained.reference import enliven, saved
from vdit.errors import WeightsError
from vdit.models.vision import CLIPVision, CLIPVisionConfig, clip_pixels
from vdit.pretrained.clip import (
    ORIGINAL_UNUSED,
    UNUSED,
    clip_config,
    clip_json,
    clip_preprocessor_json,
    diffusers_rules,
    original_rules,
)

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 30,
    "patch_size": 7, "hidden_act": "gelu",
}  # fmt: skip
TRUE = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 2, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip


def reference(**options):
    from transformers import CLIPVisionConfig as Config
    from transformers import CLIPVisionModel

    return CLIPVisionModel(Config(**options))


def images(size, b=2, seed=0):
    return np.random.default_rng(seed).normal(size=(b, size, size, 3)).astype(np.float32)


def theirs(torch, model, image):
    """What Wan's image-to-video pipeline takes."""
    return model(torch.tensor(image.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states[-2]


def ours(config, params, image):
    return jax.jit(CLIPVision(config).apply)({"params": params}, image)


def shapes(config):
    image = np.zeros((1, config.image_size, config.image_size, 3), np.float32)
    tree = jax.eval_shape(CLIPVision(config).init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda x: x.shape, nn.meta.unbox(tree))


@pytest.mark.parametrize("change", [{}, {"hidden_act": "quick_gelu", "layer_norm_eps": 0.01}], ids=["gelu", "quick"])
def test_small_encoders_give_the_reference_numbers(torch, parity, tmp_path, change):
    model = enliven(torch, reference(**SMALL | change))
    options, state = saved(model, tmp_path)
    config = clip_config(options)
    rules = diffusers_rules(config, state)
    params = fill(rules, state)
    assert jax.tree.map(np.shape, params) == shapes(config)
    image = images(30)
    want = theirs(torch, model, image)
    parity(f"CLIP image encoder, {config.activation}", ours(config, params, image), want)

    again = empty(rules, params)
    assert set(again) == set(state)
    assert all(np.array_equal(again[key], tensor) for key, tensor in state.items())
    assert clip_config(clip_json(config), clip_preprocessor_json(config)) == config
    apart = dataclasses.replace(config, scan=False)
    parity("CLIP image encoder, layers apart", ours(apart, fill(diffusers_rules(apart, state), state), image), want)


def test_the_encoder_of_true_width_gives_the_reference_numbers(torch, parity):
    model = reference(**TRUE).eval()
    for i, parameter in enumerate(model.parameters()):
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    config = clip_config({"model_type": "clip_vision_model", **TRUE})
    image = images(224, b=1)
    params = fill(diffusers_rules(config, state), state)
    parity("CLIP image encoder, ViT-H width, 2 layers", ours(config, params, image), theirs(torch, model, image))


def test_older_folders_have_their_prefix(torch, tmp_path):
    options, state = saved(enliven(torch, reference(**SMALL)), tmp_path)
    config = clip_config(options)
    old = {f"vision_model.{key}": tensor for key, tensor in state.items()}
    jax.tree.map(
        np.testing.assert_array_equal,
        fill(diffusers_rules(config, old), old),
        fill(diffusers_rules(config, state), state),
    )
    assert {rule.name for rule in diffusers_rules(config)} == set(old)
    assert not any(name.startswith(UNUSED) for name in (*old, *state))
    assert all(n.startswith(UNUSED) for n in ("vision_model.embeddings.position_ids", "visual_projection.weight"))


def wans(state):
    """The same weights under the names of Wan's own repositories, with the parts that are not used."""
    spelled = {
        "embeddings.class_embedding": "cls_embedding", "embeddings.position_embedding.weight": "pos_embedding",
        "embeddings.patch_embedding": "patch_embedding", "pre_layrnorm": "pre_norm", "post_layernorm": "post_norm",
        "encoder.layers": "transformer", "layer_norm": "norm", "self_attn.out_proj": "attn.proj",
        "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
    }  # fmt: skip
    found = {"log_scale": np.float32(4.6), "textual.norm.weight": np.ones(3), "visual.head": np.ones((32, 8))}
    for key, tensor in state.items():
        if "q_proj" in key:
            parts = [state[key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
            key, tensor = key.replace("self_attn.q_proj", "attn.to_qkv"), np.concatenate(parts)
        elif "k_proj" in key or "v_proj" in key:
            continue
        for a, b in spelled.items():
            key = key.replace(a, b)
        found[f"visual.{key}"] = tensor.reshape(1, -1, tensor.shape[-1]) if "_embedding" in key[:13] else tensor
    found["visual.patch_embedding.weight"] = state["embeddings.patch_embedding.weight"]
    return found


def test_wans_own_names_hold_the_same_weights(torch, parity, tmp_path):
    model = enliven(torch, reference(**SMALL), seed=1)
    options, state = saved(model, tmp_path)
    config = clip_config(options)
    original = wans(state)
    used = {key: tensor for key, tensor in original.items() if not key.startswith(ORIGINAL_UNUSED)}
    assert len(original) - len(used) == 3
    params = fill(original_rules(config), used)
    image = images(30)
    parity("CLIP image encoder, Wan's names", ours(config, params, image), theirs(torch, model, image))
    back = empty(original_rules(config), params)
    assert all(np.array_equal(back[key], tensor) for key, tensor in used.items())


def test_swapped_tensors_are_found(torch, tmp_path):
    model = enliven(torch, reference(**SMALL), seed=2)
    options, state = saved(model, tmp_path)
    config, image = clip_config(options), images(30)
    want = theirs(torch, model, image).numpy()
    run = jax.jit(CLIPVision(config).apply)
    # The last layer and norm are not run; a key's bias adds the same to all scores of a query.
    names = [n for n in state if not any(part in n for part in ("layers.1", "layers.2", "post_", "k_proj.bias"))]
    pairs = [(a, b) for a in names for b in names if a < b and state[a].shape == state[b].shape]
    assert len(pairs) > 20
    for a, b in pairs:
        params = fill(diffusers_rules(config, state), state | {a: state[b], b: state[a]})
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            np.testing.assert_allclose(run({"params": params}, image), want, atol=1e-4)


@pytest.mark.parametrize("shape", [(224, 224), (480, 832), (833, 481), (100, 37), (225, 300), (1, 5), (224, 1000)])
def test_pixels_are_those_of_the_image_processor(torch, shape):
    from transformers import CLIPImageProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (*(-(-n // 3) for n in shape), 3), dtype=np.uint8)
    image = np.kron(small, np.ones((3, 3, 1), np.uint8))[: shape[0], : shape[1]]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    for config in (CLIPVisionConfig(), CLIPVisionConfig(image_size=97, patch=7, mean=mean, std=std)):
        options = clip_preprocessor_json(config)
        processor = CLIPImageProcessorPil(**{key: options[key] for key in options if "type" not in key})
        want = processor(images=image, return_tensors="np", input_data_format="channels_last").pixel_values[0]
        np.testing.assert_array_equal(clip_pixels(image, config), want.transpose(1, 2, 0))
    usual = CLIPImageProcessor()  # the torchvision one where that is installed: equal to rounding
    want = usual(images=image, return_tensors="np", input_data_format="channels_last").pixel_values[0]
    np.testing.assert_allclose(clip_pixels(image, CLIPVisionConfig()), want.transpose(1, 2, 0), atol=0.03)


def test_wans_public_configs_read_as_the_defaults():
    options = {
        "_name_or_path": "image_encoder", "architectures": ["CLIPVisionModel"], "attention_dropout": 0.0,
        "dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1280, "image_size": 224, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 5120, "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model", "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 32,
        "patch_size": 14, "projection_dim": 1024, "torch_dtype": "bfloat16", "transformers_version": "4.49.0",
    }  # fmt: skip
    processor = {
        "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224},
    }  # fmt: skip
    assert clip_config(options, processor) == clip_config(options) == CLIPVisionConfig()
    assert clip_config(options, processor | {"size": 224, "crop_size": 224}) == CLIPVisionConfig()


@pytest.mark.parametrize(
    ("change", "processor", "message"),
    [
        ({"model_type": "siglip_vision_model"}, {}, "model_type='siglip_vision_model'"),
        ({"hidden_act": "silu"}, {}, "hidden_act='silu' .* must be gelu"),
        ({"num_channels": 4}, {}, "num_channels=4 .* must be 3"),
        ({"depth_scale": 1}, {}, "depth_scale=1 .* is no option"),
        ({}, {"resample": 2}, "resample=2 .* must be 3"),
        ({}, {"size": {"height": 224, "width": 224}}, "size=.* is not supported"),
        ({}, {"rescale_factor": 1}, "another size or scale of pixels"),
        ({}, {"do_pad": True}, "do_pad=True .* is no option"),
    ],
)
def test_what_cannot_be_done_is_refused(change, processor, message):
    with pytest.raises(WeightsError, match=message) as error:
        clip_config({"model_type": "clip_vision_model", **change}, processor)
    assert "\n" not in str(error.value)
