"""Stable Diffusion's VAE beside diffusers' AutoencoderKL."""

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
from vdit.pretrained.kl_vae import (
    diffusers_rules,
    old_diffusers_rules,
    original_rules,
    statistics,
    vae_config,
    vae_json,
)

OPTIONS = {
    "SD VAE": {"block_out_channels": [16, 32, 48], "norm_num_groups": 8, "layers_per_block": 2},
    "SD VAE, no quant": {"block_out_channels": [8, 16], "norm_num_groups": 4, "use_quant_conv": False,
        "use_post_quant_conv": False, "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    "SD VAE, true width": {"block_out_channels": [128, 512], "layers_per_block": 1},
}  # fmt: skip


class Pair:
    """The reference, saved in its public format and read back, and ours with its weights."""

    def __init__(self, torch, name, options, folder):
        from diffusers import AutoencoderKL
        from safetensors.numpy import load_file

        self.name, self.torch, levels = name, torch, len(options["block_out_channels"])
        types = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
        self.reference = randomise(torch, AutoencoderKL(**options, **types))
        self.reference.save_pretrained(folder)
        self.json = json.loads((folder / "config.json").read_text())
        self.state = load_file(folder / "diffusion_pytorch_model.safetensors")
        self.config = vae_config(self.json)
        self.rules = diffusers_rules(self.config)
        self.ours = Ours(self.config, self.rules, self.state)
        s = self.config.spatial_stride
        self.video = torch.rand((1, 3, 2, 6 * s, 4 * s), generator=torch.Generator().manual_seed(0)) * 2 - 1

    def encode(self, video):
        """Frame by frame: mean and log variance `[1 c t h w]`."""
        moments = [self.reference.encode(frame).latent_dist for frame in video.unbind(2)]
        return self.torch.stack([self.torch.cat([m.mean, m.logvar], 1) for m in moments], 2)

    def decode(self, latents):
        return self.torch.stack([self.reference.decode(frame).sample for frame in latents.unbind(2)], 2)


@pytest.fixture(scope="module", params=OPTIONS)
def pair(request, torch, tmp_path_factory):
    return Pair(torch, request.param, OPTIONS[request.param], tmp_path_factory.mktemp("vae"))


def test_frames_are_the_references(pair, parity):
    moments = pair.encode(pair.video)
    parity(f"{pair.name} encode", pair.ours.encode(pair.video), moments)
    latents = 2 * moments[:, : pair.config.latent_channels]
    parity(f"{pair.name} decode", pair.ours.decode(latents), pair.decode(latents))


def test_swapped_tensors_are_noticed(pair):
    attention = "{}.mid_block.attentions.0.to_{}.weight"
    names = [attention.format(side, key) for side in ("encoder", "decoder") for key in "qv"]
    wrong = swap_two_of_one_shape(swap_two_of_one_shape(pair.state, *names[:2]), *names[2:])
    params = fill(pair.rules, wrong)
    moments = pair.encode(pair.video)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(pair.ours.encode(pair.video, params=params), moments, atol=1e-4)
    latents = moments[:, : pair.config.latent_channels]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(pair.ours.decode(latents, params=params), pair.decode(latents), atol=1e-4)


def test_map_and_config_go_both_ways(pair):
    back = empty(pair.rules, pair.ours.params)
    assert set(back) == set(pair.state)
    for name, tensor in pair.state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    written = vae_json(pair.config, statistics(pair.json))
    assert vae_config(written) == pair.config
    assert {name: written[name] for name in ("scaling_factor", "shift_factor")} == {
        name: pair.json[name] for name in ("scaling_factor", "shift_factor")
    }


def test_original_names_are_those_that_diffusers_converts(pair):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    original = empty(original_rules(pair.config), pair.ours.params)
    back = convert_ldm_vae_checkpoint(original, pair.json)
    assert set(back) == set(pair.state)
    for name, tensor in pair.state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_names_from_before_diffusers_0_15_are_still_read_by_it(pair, torch, tmp_path):
    from diffusers import AutoencoderKL
    from safetensors.numpy import save_file

    pair.reference.save_config(tmp_path)
    old = empty(old_diffusers_rules(pair.config), pair.ours.params)
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    back = AutoencoderKL.from_pretrained(tmp_path).state_dict()
    for name, tensor in pair.state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_preset_has_the_names_and_shapes_of_the_public_model(torch):
    from diffusers import AutoencoderKL

    config = preset("sd")
    with torch.device("meta"):
        options = {key: value for key, value in vae_json(config).items() if key != "_class_name"}
        reference = AutoencoderKL(**options)
    theirs = {key: tuple(tensor.shape) for key, tensor in reference.state_dict().items()}
    tree = jax.eval_shape(VAE(config).init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(meta.unbox(tree))
    ours = {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    assert {rule.name: rule.shape(ours) for rule in diffusers_rules(config)} == theirs
    assert sum(np.prod(shape) for shape in theirs.values()) == 83_653_863


def test_statistics():
    assert statistics({})["std"].tolist() == np.float32([1 / 0.18215] * 4).tolist()
    assert statistics({"shift_factor": 0.5})["mean"].tolist() == [0.5] * 4
    apart = statistics({"latents_mean": [1, 2, 3, 4], "latents_std": [1, 1, 1, 2], "scaling_factor": 0.5})
    assert apart["mean"].tolist() == [1, 2, 3, 4]
    assert apart["std"].tolist() == [2, 2, 2, 4]
    written = vae_json(preset("sd"), apart)
    np.testing.assert_array_equal(statistics(written)["std"], apart["std"])
    with pytest.raises(WeightsError, match="both"):
        statistics({"latents_mean": [1, 2, 3, 4]})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types"),
        ({"act_fn": "mish"}, "act_fn"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv"),
        ({"in_channels": 4}, "in_channels"),
        ({"tiling": 4}, "tiling"),
    ],
)
def test_options_that_cannot_be_done_are_named(options, words):
    with pytest.raises(WeightsError, match=words):
        vae_config(options)


def test_what_the_family_cannot_express_is_refused():
    with pytest.raises(ConfigError, match="AutoencoderKL cannot express"):
        diffusers_rules(preset("wan21"))
