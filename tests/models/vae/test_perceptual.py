"""Perceptual distance with the real SqueezeNet weights, where they are present."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data_paths import shared_data
from vdit.errors import ConfigError, ShapeError
from vdit.models.vae import VAEConfig, VAELossConfig, make_loss
from vdit.models.vae.losses import load_squeezenet, perceptual_distance, squeezenet_features


@pytest.fixture(scope="module")
def weights():
    pytest.importorskip("h5py")
    return shared_data("weights", "squeezenet11", "squeezenet_notop_tf.h5")


def shapes_image(side=48):
    """A red disc on a blue chequerboard [1 side side 3] in [-1, 1]: edges and texture to lose."""
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side, 3), -0.8, np.float32)
    image[..., 2] = np.where((x // 4 + y // 4) % 2, 0.8, -0.2)
    image[(x - side / 2) ** 2 + (y - side / 2) ** 2 < (side / 4) ** 2] = (0.9, -0.7, -0.7)
    return image[None]


def blur(image, passes):
    for _ in range(passes):
        for axis in (1, 2):
            image = (np.roll(image, 1, axis) + image + np.roll(image, -1, axis)) / 3
    return image


def test_distance_is_zero_for_itself_and_grows_with_blur(weights):
    params = load_squeezenet(weights)
    distance = jax.jit(lambda x, y: perceptual_distance(params, x, y))
    sharp = shapes_image()
    values = [float(distance(sharp, blur(sharp, passes))[0]) for passes in (0, 1, 3, 9)]
    assert values[0] < 1e-6
    assert values == sorted(values)
    assert values[1] > 0.01
    assert np.isclose(distance(blur(sharp, 3), sharp)[0], values[2], rtol=1e-4)


def test_features_are_those_of_a_trained_network(weights):
    """A network with weights in the wrong places still passes the tests above; it would not be sparse."""
    features = squeezenet_features(load_squeezenet(weights), shapes_image())
    assert [f.shape[-1] for f in features] == [64, 128, 256, 384, 512]
    assert all(0.02 < float((f > 0).mean()) < 0.9 for f in features)


def test_the_term_is_part_of_the_loss_and_trains_the_vae(weights):
    vae = VAEConfig(
        latent_channels=2, base_channels=8, channel_mults=(1,), spatial_down=(), temporal_down=(), patch=8,
        middle="none", blocks_per_level=1,
    )  # fmt: skip
    config = VAELossConfig(perceptual_weight=0.5, perceptual_weights=str(weights), kl_weight=0.0)
    loss = make_loss(vae, config)
    batch = {"video": jnp.asarray(shapes_image(32))[None]}
    params = jax.jit(loss.init)(jax.random.key(0), batch["video"])
    value, metrics = jax.jit(loss)(params, batch, jax.random.key(1), 0)
    np.testing.assert_allclose(value, metrics["reconstruction"] + 0.5 * metrics["perceptual"], rtol=1e-5)
    assert float(metrics["perceptual"]) > 0.05


def test_small_images_are_refused(weights):
    with pytest.raises(ShapeError, match="32"):
        squeezenet_features(load_squeezenet(weights), jnp.zeros((1, 24, 48, 3)))


def test_a_missing_or_wrong_file_is_named(tmp_path):
    pytest.importorskip("h5py")
    with pytest.raises(ConfigError, match=r"none\.h5"):
        load_squeezenet(tmp_path / "none.h5")
    wrong = tmp_path / "wrong.h5"
    wrong.write_bytes(b"not an h5 file")
    with pytest.raises(ConfigError, match=r"wrong\.h5"):
        load_squeezenet(wrong)


def test_without_h5py_the_mend_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match="\\[data\\]"):
        load_squeezenet(tmp_path / "any.h5")
