"""Wan transformers give the reference's numbers, from diffusers folders and from Wan's own checkpoints."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained.load import empty, fill
from tests.pretrained.reference import dense_inputs, enliven, saved
from vdit.data.patches import token_grid, unpatchify
from vdit.dit.config import DiTConfig, preset
from vdit.dit.model import DiT
from vdit.errors import WeightsError
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
    ours |= {"time": time[:, None], "text": text, "text_clip": np.ones((b, texts), np.int32)}
    if cfg.image_dim:
        tokens = cfg.pos_embed_seq_len or 5
        image = rng.normal(size=(b, tokens, cfg.image_dim)).astype(np.float32)
        # With positions theirs takes first and last frames as a batch of twice as many.
        halves = image.reshape(2 * b, tokens // 2, -1) if cfg.pos_embed_seq_len else image
        theirs["encoder_hidden_states_image"] = halves
        ours |= {"image": image, "image_clip": np.ones((b, tokens), np.int32)}
    return theirs, ours


def run(torch, model, inputs):
    return model(**{name: torch.tensor(x) for name, x in inputs.items()}, return_dict=False)[0]


def run_ours(config, params, inputs, shape):
    """Prediction as latents [b c t h w]."""
    out = jax.jit(DiT(config).apply)({"params": params}, **inputs)
    latents = unpatchify(np.asarray(out), token_grid((*shape, 1), config.patch), config.patch)
    return np.moveaxis(latents, -1, 1)


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
