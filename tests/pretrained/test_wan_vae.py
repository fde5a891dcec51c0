"""Wan's VAEs beside diffusers' AutoencoderKLWan: whole, in chunks, images; small and at true width."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from tests.pretrained.load import empty, fill
from tests.pretrained.vae_reference import Ours, randomise, swap_two_of_one_shape
from vdit.errors import ConfigError, WeightsError
from vdit.models.vae import VAE, preset
from vdit.pretrained.wan_vae import diffusers_rules, original_rules, statistics, vae_config, vae_json

SMALL = {"z_dim": 4, "latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
RESIDUAL = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
REFERENCES = {
    "Wan 2.1 VAE": SMALL | {"base_dim": 8},
    "Wan 2.2 VAE": SMALL | RESIDUAL | {"base_dim": 4, "decoder_base_dim": 6},
}


class Pair:
    """The reference, saved in its public format and read back, and ours with its weights."""

    def __init__(self, torch, name, options, folder):
        from diffusers import AutoencoderKLWan
        from safetensors.numpy import load_file

        self.name, self.torch = name, torch
        self.reference = randomise(torch, AutoencoderKLWan(**options))
        self.reference.save_pretrained(folder)
        self.json = json.loads((folder / "config.json").read_text())
        self.state = load_file(folder / "diffusion_pytorch_model.safetensors")
        self.config = vae_config(self.json)
        self.rules = diffusers_rules(self.config)
        self.ours = Ours(self.config, self.rules, self.state)

    def video(self, frames, height=2, width=3):
        """Noise; sides in latents."""
        s = self.config.spatial_stride
        generator = self.torch.Generator().manual_seed(frames)
        return self.torch.rand((1, 3, frames, height * s, width * s), generator=generator) * 2 - 1

    def encode(self, video):
        moments = self.reference.encode(video).latent_dist
        return self.torch.cat([moments.mean, moments.logvar], 1)

    def decode(self, latents):
        return self.reference.decode(latents).sample


@pytest.fixture(scope="module", params=REFERENCES)
def pair(request, torch, tmp_path_factory):
    return Pair(torch, request.param, REFERENCES[request.param], tmp_path_factory.mktemp("vae"))


@pytest.mark.parametrize("frames", [1, 9])
def test_whole_clips_are_the_references(pair, parity, frames):
    video = pair.video(frames)
    moments = pair.encode(video)
    parity(f"{pair.name} encode", pair.ours.encode(video), moments)
    latents = 2 * moments[:, :4]
    parity(f"{pair.name} decode", pair.ours.decode(latents).clip(-1, 1), pair.decode(latents))


def test_chunks_are_the_references(pair, parity):
    video = pair.video(9)
    moments = pair.encode(video)
    parity(f"{pair.name} encode in chunks", pair.ours.encode(video, (1, 5)), moments)
    latents = 2 * moments[:, :4]
    ours = pair.ours.decode(latents, (1, 2))
    parity(f"{pair.name} decode in chunks", ours.clip(-1, 1), pair.decode(latents))


def test_swapped_tensors_are_noticed(pair):
    video = pair.video(1)
    names = [f"{side}.mid_block.resnets.{i}.conv2.weight" for side in ("encoder", "decoder") for i in (0, 1)]
    wrong = swap_two_of_one_shape(swap_two_of_one_shape(pair.state, *names[:2]), *names[2:])
    params = fill(pair.rules, wrong)
    moments = pair.encode(video)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(pair.ours.encode(video, params=params), moments, atol=1e-4)
    frames = pair.ours.decode(moments[:, :4], params=params).clip(-1, 1)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(frames, pair.decode(moments[:, :4]), atol=1e-4)


def test_map_and_config_go_both_ways(pair):
    back = empty(pair.rules, pair.ours.params)
    assert set(back) == set(pair.state)
    for name, tensor in pair.state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
        assert back[name].dtype == tensor.dtype
    assert statistics(pair.json)["std"].tolist() == [1.5] * 4
    written = vae_json(pair.config, statistics(pair.json))
    assert written == {name: value for name, value in pair.json.items() if name != "_diffusers_version"}


@pytest.mark.parametrize(
    ("name", "options", "frames"),
    [
        ("Wan 2.1 VAE, true width", {"num_res_blocks": 1}, 5),
        ("Wan 2.2 VAE, true width", {"num_res_blocks": 1, **RESIDUAL, "base_dim": 160, "decoder_base_dim": 256,
            "z_dim": 48, "dim_mult": [1, 2, 2], "temperal_downsample": [False, True], "scale_factor_spatial": 8,
            "scale_factor_temporal": 2, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}, 5),
    ],
    ids=["2.1", "2.2"],
)  # fmt: skip
def test_true_width(torch, parity, tmp_path, name, options, frames):
    pair = Pair(torch, name, options, tmp_path)
    video = pair.video(frames, 1, 2)
    moments = pair.encode(video)
    parity(f"{name} encode", pair.ours.encode(video), moments)
    latents = 2 * moments[:, : pair.config.latent_channels]
    parity(f"{name} decode", pair.ours.decode(latents).clip(-1, 1), pair.decode(latents))


def shapes(rules, config):
    """Shapes of their tensors, from those of our parameters."""
    s = config.spatial_stride
    tree = jax.eval_shape(VAE(config).init, jax.random.key(0), jnp.zeros((1, 1, s, s, 3)))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(meta.unbox(tree))
    ours = {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    assert sorted(part.path for rule in rules for part in rule.parts) == sorted(ours)
    return {rule.name: rule.shape(ours) for rule in rules}


@pytest.mark.parametrize("name", ["wan21", "wan22"])
def test_presets_have_the_names_and_shapes_of_the_public_models(torch, name):
    from diffusers import AutoencoderKLWan

    config = preset(name)
    with torch.device("meta"):
        options = {key: value for key, value in vae_json(config).items() if key != "_class_name"}
        reference = AutoencoderKLWan(**options)
    theirs = {key: tuple(tensor.shape) for key, tensor in reference.state_dict().items()}
    assert shapes(diffusers_rules(config), config) == theirs


def test_original_names_of_wan21_are_those_that_diffusers_converts(torch):
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    config = preset("wan21")
    original, diffusers = original_rules(config), diffusers_rules(config)
    converted = convert_wan_vae_to_diffusers({rule.name: rule.parts for rule in original})
    assert converted == {rule.name: rule.parts for rule in diffusers}
    assert len(original) == 194


def test_original_names_of_wan22():
    config = preset("wan22")
    names = shapes(original_rules(config), config)
    # The file's own names, at least one of each kind, with the shapes that Wan's code gives them.
    expected = {
        "conv1.weight": (96, 96, 1, 1, 1),
        "conv2.weight": (48, 48, 1, 1, 1),
        "encoder.conv1.weight": (160, 12, 3, 3, 3),
        "encoder.downsamples.0.downsamples.0.residual.2.weight": (160, 160, 3, 3, 3),
        "encoder.downsamples.1.downsamples.0.shortcut.weight": (320, 160, 1, 1, 1),
        "encoder.downsamples.0.downsamples.2.resample.1.weight": (160, 160, 3, 3),
        "encoder.downsamples.1.downsamples.2.time_conv.weight": (320, 320, 3, 1, 1),
        "encoder.middle.1.to_qkv.weight": (1920, 640, 1, 1),
        "encoder.head.0.gamma": (640, 1, 1, 1),
        "decoder.upsamples.0.upsamples.3.resample.1.weight": (1024, 1024, 3, 3),
        "decoder.upsamples.0.upsamples.3.time_conv.weight": (2048, 1024, 3, 1, 1),
        "decoder.upsamples.2.upsamples.0.shortcut.weight": (512, 1024, 1, 1, 1),
        "decoder.upsamples.3.upsamples.2.residual.6.bias": (256,),
        "decoder.head.2.weight": (12, 256, 3, 3, 3),
    }
    assert {name: names.get(name) for name in expected} == expected


def test_original_names_hold_the_same_numbers(pair):
    original = original_rules(pair.config)
    theirs = {rule.parts: rule.name for rule in pair.rules}
    state = {rule.name: pair.state[theirs[rule.parts]] for rule in original}
    jax.tree.map(np.testing.assert_array_equal, fill(original, state), pair.ours.params)


def test_statistics_of_the_public_models():
    wan21, wan22 = statistics({}), statistics({"z_dim": 48})
    assert wan21["mean"][:2].tolist() == np.float32([-0.7571, -0.7089]).tolist()
    assert wan22["std"].shape == (48,)
    written = vae_json(preset("wan21"), wan21)
    assert written["latents_mean"][0] == -0.7571
    np.testing.assert_array_equal(statistics(written)["std"], wan21["std"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"dropout": 0.1}, "dropout"),
        ({"spectral": True}, "spectral"),
        ({"in_channels": 12}, "in_channels"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial"),
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
    ],
)
def test_options_that_cannot_be_done_are_named(options, words):
    with pytest.raises(WeightsError, match=words):
        vae_config(options)


def test_what_the_family_cannot_express_is_refused():
    with pytest.raises(ConfigError, match="decoder_extra_blocks"):
        vae_json(preset("tiny"))
    with pytest.raises(ConfigError, match="AutoencoderKLWan cannot express"):
        diffusers_rules(preset("sd"))
    with pytest.raises(WeightsError, match=r"latents_mean .*z_dim=5"):
        statistics({"z_dim": 5})
    with pytest.raises(WeightsError, match="latents_std has shape"):
        statistics({"z_dim": 2, "latents_mean": [0, 0], "latents_std": [1]})
