"""VAE configs: presets, strides, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from vdit.errors import ConfigError
from vdit.models.vae import VAE, DiscriminatorConfig, VAEConfig, VAELossConfig, preset


@pytest.mark.parametrize("name", ["wan21", "base", "small", "tiny"])
def test_presets_are_4x8x8(name):
    config = preset(name)
    assert (config.temporal_stride, config.spatial_stride) == (4, 8)
    assert config.latent_shape(17, 64, 96)[:3] == (5, 8, 12)
    params = jax.eval_shape(VAE(config).init, jax.random.key(0), jnp.zeros((1, 5, 16, 16, 3)))
    assert jax.tree.leaves(params)


@pytest.mark.parametrize(("name", "strides"), [("wan22", (4, 16)), ("sd", (1, 8))])
def test_presets_of_other_strides(name, strides):
    config = preset(name)
    assert (config.temporal_stride, config.spatial_stride) == strides


def test_wan_has_as_many_parameters_as_the_reference():
    params = jax.eval_shape(VAE(preset("wan21")).init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(meta.unbox(params))) == 126_892_531


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: preset("huge"), "'huge'"),
        (lambda: VAEConfig(temporal_down=(True,)), "temporal_down"),
        (lambda: VAEConfig(spatial_down=(False, True, True)), "halves nothing"),
        (lambda: VAEConfig(base_channels=3, channel_mults=(1, 1, 1, 1)), "must be even"),
        (lambda: VAEConfig(block_kernel=(3, 2, 3)), "block_kernel"),
        (lambda: VAEConfig(patch=0), "vae.patch=0"),
        (lambda: VAEConfig(decoder_base_channels=0), "decoder_base_channels"),
        (lambda: VAEConfig(out_width=0), "vae.out_width=0"),
        (lambda: VAEConfig(linear_path=True), r"vae.temporal_down=\(False, True, True\)"),
        (lambda: VAEConfig(norm="group", norm_groups=5), "norm_groups=5"),
        (lambda: VAEConfig(level_shortcut=True), "up_channels='keep'"),
        (
            lambda: VAEConfig(level_shortcut=True, up_channels="keep", channel_mults=(1, 2, 4, 8)),
            "regroup 384 channels x 1 into 768",
        ),
        (lambda: DiscriminatorConfig(temporal_down=(True,)), "temporal_down"),
        (lambda: VAELossConfig(kl_weight=-1.0), "kl_weight"),
        (lambda: VAELossConfig(perceptual_weight=1.0), "perceptual_weights"),
    ],
)
def test_what_cannot_be_built_is_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
