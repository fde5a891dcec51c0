"""A clip in chunks gives the numbers of the whole clip; nothing sees what comes later."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from vdit.errors import ShapeError
from vdit.models.vae import VAE, VAEConfig, decode_stream, encode_stream
from vdit.models.vae.blocks import fold, unfold
from vdit.models.vae.config import preset

CONFIGS = {
    "wan": VAEConfig(latent_channels=3, base_channels=4, channel_mults=(1, 2, 2, 2), blocks_per_level=1,
        decoder_extra_blocks=0),
    "own": VAEConfig(
        latent_channels=3,
        base_channels=8,
        channel_mults=(1, 1),
        spatial_down=(False,),
        temporal_down=(True,),
        patch=2,
        patch_frames=2,
        middle="none",
        blocks_per_level=1,
        norm_out=False,
        out_width=12,
    ),
    "tiny": preset("tiny", latent_channels=3, base_channels=8, patch=2, linear_path=True),
}
FRAMES, LATENT_FRAMES = 13, 4


class Model:
    """A VAE with every parameter drawn at random, so that no branch is idle, and its jitted methods."""

    def __init__(self, config):
        self.config, self.vae = config, VAE(config)
        side = 2 * config.spatial_stride
        self.video = jax.random.uniform(jax.random.key(0), (1, FRAMES, side, side, 3), minval=-1, maxval=1)
        shapes = meta.unbox(jax.eval_shape(self.vae.init, jax.random.key(1), self.video)["params"])
        draw = np.random.default_rng(2).normal
        self.params = jax.tree.map(lambda x: draw(0.0, np.prod(x.shape[:-1]) ** -0.5, x.shape), shapes)
        self.params = jax.tree.map(jnp.float32, self.params)
        self.encode_chunk = functools.partial(jax.jit(self._method("encode_chunk")), self.params)
        self.decode_chunk = functools.partial(jax.jit(self._method("decode_chunk")), self.params)
        self.latents = self.encode_chunk(self.video, None)[0].mean
        self.decoded = self.decode_chunk(self.latents, None)[0]

    def _method(self, name):
        return lambda params, x, cache: self.vae.apply({"params": params}, x, cache, method=name)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return Model(CONFIGS[request.param])


def test_shapes(model):
    side = 2 * model.config.spatial_stride
    assert model.latents.shape == (1, *model.config.latent_shape(FRAMES, side, side))
    assert model.latents.shape == (1, LATENT_FRAMES, 2, 2, 3)
    assert model.decoded.shape == model.video.shape


def test_encode_in_chunks_is_encode_of_the_whole(model):
    means, cache = [], None
    for start, stop in ((0, 1), (1, 5), (5, 13)):
        gaussian, cache = model.encode_chunk(model.video[:, start:stop], cache)
        means.append(gaussian.mean)
    np.testing.assert_allclose(jnp.concatenate(means, 1), model.latents, atol=2e-5)


def test_decode_in_chunks_is_decode_of_the_whole(model):
    frames, cache = [], None
    for start, stop in ((0, 1), (1, 2), (2, 4)):
        part, cache = model.decode_chunk(model.latents[:, start:stop], cache)
        frames.append(part)
    np.testing.assert_allclose(jnp.concatenate(frames, 1), model.decoded, atol=2e-5)


def test_streams_cover_the_clip_once(model):
    parts = list(encode_stream(model.encode_chunk, model.config, model.video, latent_frames=2))
    assert [part.mean.shape[1] for part in parts] == [2, 2]
    np.testing.assert_allclose(jnp.concatenate([p.mean for p in parts], 1), model.latents, atol=2e-5)
    chunks = list(decode_stream(model.decode_chunk, model.config, model.latents, latent_frames=3))
    stride = model.config.temporal_stride
    assert [chunk.shape[1] for chunk in chunks] == [1, 3 * stride]
    np.testing.assert_allclose(jnp.concatenate(chunks, 1), model.decoded, atol=2e-5)


def test_the_cache_does_not_grow(model):
    sizes, cache = [], None
    for start in range(LATENT_FRAMES):
        _, cache = model.decode_chunk(model.latents[:, start : start + 1], cache)
        sizes.append(jax.tree.map(jnp.shape, cache))
    assert all(size == sizes[0] for size in sizes)


def test_an_image_is_the_first_frame_of_a_video(model):
    gaussian, _ = model.encode_chunk(model.video[:, :1], None)
    np.testing.assert_allclose(gaussian.mean, model.latents[:, :1], atol=2e-5)
    frame, _ = model.decode_chunk(model.latents[:, :1], None)
    np.testing.assert_allclose(frame, model.decoded[:, :1], atol=2e-5)


def test_parameters_do_not_depend_on_the_clip_they_are_made_for(model):
    image = jax.eval_shape(model.vae.init, jax.random.key(0), model.video[:, :1])["params"]
    assert jax.tree.map(jnp.shape, meta.unbox(image)) == jax.tree.map(jnp.shape, model.params)


def test_latents_see_no_frame_to_come(model):
    stride = model.config.temporal_stride

    def frames(video):
        return jnp.sum(jnp.sin(model.encode_chunk(video, None)[0].mean), axis=(0, 2, 3, 4))

    jacobian = jax.jit(jax.jacrev(frames))(model.video)
    seen = np.abs(jacobian).sum(axis=(1, 3, 4, 5))  # [latent frame, frame]
    for i in range(LATENT_FRAMES):
        last = i * stride
        assert np.all(seen[i, last + 1 :] == 0.0), f"latent frame {i} sees a frame after {last}"
        assert seen[i, last] > 0.0


def test_frames_see_no_latent_to_come(model):
    stride = model.config.temporal_stride

    def frames(latents):
        return jnp.sum(jnp.sin(model.decode_chunk(latents, None)[0]), axis=(0, 2, 3, 4))

    jacobian = jax.jit(jax.jacrev(frames))(model.latents)
    seen = np.abs(jacobian).sum(axis=(1, 3, 4, 5))  # [frame, latent frame]
    for i in range(FRAMES):
        last = -(-i // stride)
        assert np.all(seen[i, last + 1 :] == 0.0), f"frame {i} sees a latent frame after {last}"
        assert seen[i, last] > 0.0


def test_what_networks_leave_out_passes_by_the_linear_path():
    """Networks of zeros: a latent is a linear map of its pixels, the first frame's repeated, and pixels of a latent."""
    config = CONFIGS["tiny"]
    vae, video = VAE(config), jax.random.uniform(jax.random.key(0), (1, 5, 8, 8, 3), minval=-1, maxval=1)
    params = jax.tree.map(jnp.zeros_like, meta.unbox(vae.init(jax.random.key(1), video)["params"]))
    kernels = {}
    for i, half in enumerate(("encoder", "decoder")):
        shape = params[half]["linear_path"]["kernel"].shape
        params[half]["linear_path"]["kernel"] = jax.random.normal(jax.random.key(i), shape)
        kernels[half] = params[half]["linear_path"]["kernel"][0, 0, 0]

    latents = vae.apply({"params": params}, video, method="encode").mean
    decoded = vae.apply({"params": params}, latents, method="decode")

    pixels = fold(jnp.concatenate([jnp.repeat(video[:, :1], 3, axis=1), video], axis=1), 4, 4)
    np.testing.assert_allclose(latents, pixels @ kernels["encoder"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decoded, unfold(latents @ kernels["decoder"], 4, 4)[:, 3:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 12, 16, 16, 3), ("12 frames", "1 + 4k", "9 or 13")),
        ((1, 0, 16, 16, 3), ("0 frames", "use 1")),
        ((1, 13, 12, 16, 3), ("height 12", "multiple of 8", "8 or 16")),
        ((1, 13, 16, 4, 3), ("width 4", "multiple of 8", "use 8")),
        ((13, 16, 16, 3), ("[b t h w 3]",)),
    ],
)
def test_a_wrong_shape_is_named_with_the_nearest_right_one(shape, words):
    vae = VAE(CONFIGS["wan"])
    with pytest.raises(ShapeError) as error:
        jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros(shape))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_later_chunk_must_be_whole_groups(model):
    _, cache = model.encode_chunk(model.video[:, :1], None)
    with pytest.raises(ShapeError, match="5 frames must be 4k after the first chunk: use 4 or 8"):
        model.encode_chunk(model.video[:, 1:6], cache)
    with pytest.raises(ShapeError, match="latents of shape"):
        model.decode_chunk(model.latents[..., :2], None)
