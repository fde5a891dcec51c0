"""Properties of the CLIP image encoder; its numbers are held against the reference in tests/pretrained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdit.config import from_json, to_json
from vdit.errors import ConfigError, ShapeError
from vdit.models.vision import CLIPVision, CLIPVisionConfig, clip_pixels

CONFIG = CLIPVisionConfig(image_size=24, patch=8, width=16, layers=3, heads=2, mlp=24)


@pytest.fixture(scope="module")
def params():
    return nn.meta.unbox(CLIPVision(CONFIG).init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))["params"])


def test_the_last_layer_has_parameters_and_no_say(params):
    image = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    run = jax.jit(lambda params: CLIPVision(CONFIG).apply({"params": params}, image))
    out = run(params)
    assert out.shape == (2, CONFIG.tokens, CONFIG.width) == (2, 10, 16)
    silent = {"last_block", "last_norm"}
    assert silent < set(params)
    for name in params:
        changed = run(params | {name: jax.tree.map(lambda x: x * 1.5 + 0.1, params[name])})
        assert bool(np.array_equal(changed, out)) == (name in silent), name


def test_images_do_not_see_each_other_and_bfloat16_is_close(params):
    images = np.random.default_rng(1).normal(size=(2, 24, 24, 3)).astype(np.float32)
    run = jax.jit(CLIPVision(CONFIG).apply)
    both = run({"params": params}, images)
    np.testing.assert_allclose(run({"params": params}, images[1:])[0], both[1], atol=1e-5)
    half = CLIPVision(dataclasses.replace(CONFIG, dtype="bfloat16")).apply({"params": params}, images)
    assert half.dtype == jnp.float32
    assert np.abs(half - both).mean() < 0.03


def test_pixels_of_a_plain_colour_are_that_colour():
    image = np.full((50, 30, 3), (255, 0, 128), np.uint8)
    got = clip_pixels(image, CONFIG)
    want = (np.array([1, 0, 128 / 255]) - CONFIG.mean) / CONFIG.std
    assert got.shape == (24, 24, 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), atol=1e-5)


def test_the_middle_is_what_is_seen():
    image = np.zeros((24, 72, 3), np.uint8)
    image[:, 24:48] = 255
    assert np.all(clip_pixels(image, CONFIG)[:, 4:-4] > 1)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ShapeError, match=r"must be uint8 \[h w 3\]"):
        clip_pixels(image, CONFIG)


def test_images_of_another_size_are_refused(params):
    with pytest.raises(ShapeError, match=r"images of shape \(1, 32, 24, 3\) must be \[b 24 24 3\]"):
        CLIPVision(CONFIG).apply({"params": params}, jnp.zeros((1, 32, 24, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 1}, r"clip\.layers=1 must be at least 2"),
        ({"heads": 3}, r"clip\.width=16 must be a multiple of clip\.heads=3"),
        ({"patch": 25}, r"clip\.patch=25 must be at most clip\.image_size=24"),
        ({"patch": 0}, r"clip\.patch=0 must be at least 1"),
        ({"std": (1.0, 0.0, 1.0)}, r"clip\.std="),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_configs_go_through_json():
    assert from_json(CLIPVisionConfig, to_json(CONFIG)) == CONFIG
