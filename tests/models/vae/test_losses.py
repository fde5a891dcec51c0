"""Losses: one backward pass gives each network the gradient of its own loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.dist.mesh import compiler_options
from vdit.errors import ConfigError, ShapeError
from vdit.models.vae import DiscriminatorConfig, Gaussian, VAEConfig, VAELossConfig, make_loss
from vdit.models.vae.losses import (
    _noisy,
    edge_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    reconstruction_loss,
    to_float,
)

VAE_CONFIG = VAEConfig(
    latent_channels=2, base_channels=8, channel_mults=(1,), spatial_down=(), temporal_down=(), patch=4,
    patch_frames=2, middle="none", blocks_per_level=1,
)  # fmt: skip
DISCRIMINATOR = DiscriminatorConfig(base_channels=4, channel_mults=(1, 2), temporal_down=(False, True))
START = 3


@pytest.fixture(scope="module")
def adversarial():
    config = VAELossConfig(adversarial_weight=0.5, adversarial_start=START, kl_weight=0.01)
    loss = make_loss(VAE_CONFIG, config, DISCRIMINATOR)
    video = jax.random.uniform(jax.random.key(0), (2, 5, 16, 16, 3), minval=-1, maxval=1)
    params = jax.jit(loss.init)(jax.random.key(1), video)
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return loss, params, {"video": video}, grad


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_one_backward_is_the_two_separate_ones(adversarial):
    loss, params, batch, grad = adversarial
    key = jax.random.key(2)
    (_, metrics), grads = grad(params, batch, key, START)

    def recon(vae):
        return loss.vae.apply({"params": vae}, batch["video"], jax.random.split(key)[0])

    def score(disc, video):
        return loss.discriminator.apply({"params": disc}, video)

    def generator_alone(vae):
        video, gaussian = recon(vae)
        distance = jnp.mean(jnp.abs(video - batch["video"]))
        return distance + 0.01 * jnp.mean(gaussian.kl()) + 0.5 * hinge_generator_loss(score(params["disc"], video))

    def discriminator_alone(disc):
        fake = recon(params["vae"])[0]
        return hinge_discriminator_loss(score(disc, batch["video"]), score(disc, fake))

    alone = {
        "vae": jax.jit(jax.grad(generator_alone))(params["vae"]),
        "disc": jax.jit(jax.grad(discriminator_alone))(params["disc"]),
    }
    assert largest(alone["vae"]) > 1e-3
    assert largest(alone["disc"]) > 1e-3
    assert float(metrics["generator"]) != 0.0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, alone)


def test_before_its_start_the_discriminator_neither_learns_nor_is_heard(adversarial):
    _, params, batch, grad = adversarial
    key = jax.random.key(2)
    (value, metrics), grads = grad(params, batch, key, START - 1)
    assert largest(grads["disc"]) == 0.0
    np.testing.assert_allclose(value, metrics["reconstruction"] + 0.01 * metrics["kl"], rtol=1e-6)


def test_without_weight_there_is_no_discriminator():
    loss = make_loss(VAE_CONFIG, VAELossConfig())
    params = jax.eval_shape(loss.init, jax.random.key(0), jnp.zeros((1, 3, 8, 8, 3)))
    assert set(params) == {"vae"}


def test_equivariance_compares_changed_latents_with_the_video_changed_alike():
    loss = make_loss(VAE_CONFIG, VAELossConfig(reconstruction="mse", equivariance_weight=0.25))
    video = jax.random.uniform(jax.random.key(0), (1, 3, 16, 16, 3), minval=-1, maxval=1)
    params = jax.jit(loss.init)(jax.random.key(1), video)
    vae, called = {"params": params["vae"]}, jax.jit(loss)

    def changed(x, flip, quarter):
        half = jax.image.resize(x, (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2, x.shape[4]), "linear")
        return jnp.rot90(half[:, :, ::-1] if flip else half, quarter, (2, 3))

    @jax.jit
    def by_hand(key):
        latents = loss.vae.apply(vae, video, method="encode").sample(jax.random.split(key)[0])
        turns = [(flip, quarter) for flip in (False, True) for quarter in range(4)]
        again = [loss.vae.apply(vae, changed(latents, *turn), method="decode") for turn in turns]
        return jnp.stack([jnp.mean((one - changed(video, *turn)) ** 2) for one, turn in zip(again, turns)])

    found = set()
    for seed in range(24):
        key = jax.random.key(seed)
        value, metrics = called(params, {"video": video}, key, 0)
        rest = metrics["reconstruction"] + 1e-4 * metrics["kl"]
        np.testing.assert_allclose(value, rest + 0.25 * metrics["equivariance"], rtol=1e-5)
        expected = np.asarray(by_hand(key))
        nearest = int(np.abs(expected - metrics["equivariance"]).argmin())
        np.testing.assert_allclose(metrics["equivariance"], expected[nearest], rtol=1e-4)
        found.add(nearest)
    assert len(found) >= 6  # of the square's eight symmetries


def test_equivariance_takes_any_shape():
    loss = make_loss(VAE_CONFIG, VAELossConfig(equivariance_weight=0.25))
    video = jnp.zeros((1, 3, 4, 24, 3))  # one latent high
    params = jax.jit(loss.init)(jax.random.key(1), video)
    assert np.isfinite(jax.jit(loss)(params, {"video": video}, jax.random.key(0), 0)[0])


def test_latent_noise_is_in_standard_deviations_of_each_channel_and_has_a_strength_for_each_clip():
    noisy = jax.jit(_noisy, static_argnums=1)
    latents = jax.random.normal(jax.random.key(0), (64, 3, 8, 8, 2)) * jnp.array([0.1, 10.0])
    noise = np.asarray(noisy(latents, 0.3, jax.random.key(1)) - latents) / np.array([0.1, 10.0])
    strengths = noise.std((1, 2, 3))  # [clips channels]
    np.testing.assert_allclose(strengths[:, 0], strengths[:, 1], rtol=0.35)
    assert 0.2 < np.sqrt(np.mean(strengths**2)) < 0.4
    assert strengths.max() > 4 * strengths.min()


def test_latent_noise_is_for_the_decoder_alone():
    video = jax.random.uniform(jax.random.key(0), (2, 3, 16, 16, 3), minval=-1, maxval=1)
    without, noisy = (make_loss(VAE_CONFIG, VAELossConfig(reconstruction="mse", latent_noise=s)) for s in (0.0, 2.0))
    params = jax.jit(without.init)(jax.random.key(1), video)
    one, other = (jax.jit(loss)(params, {"video": video}, jax.random.key(2), 0)[1] for loss in (without, noisy))
    np.testing.assert_allclose(one["kl"], other["kl"], rtol=1e-5)
    assert abs(other["reconstruction"] - one["reconstruction"]) > 1e-4  # which way is a matter of training
    assert np.isfinite(jax.grad(lambda x: _noisy(x, 0.3, jax.random.key(0)).sum())(jnp.ones((1, 2, 2, 2, 1)))).all()
    with pytest.raises(ConfigError, match=r"-0\.5"):
        VAELossConfig(latent_noise=-0.5)


def test_it_learns_and_takes_uint8():
    loss = make_loss(VAE_CONFIG, VAELossConfig(reconstruction="mse"))
    video = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8, 3), dtype=np.uint8)
    params = jax.jit(loss.init)(jax.random.key(0), video)

    @jax.jit
    def descend(params, key):
        grad, metrics = jax.grad(loss, has_aux=True)(params, {"video": video}, key, 0)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grad), metrics["reconstruction"]

    values = []
    for i in range(40):
        params, value = descend(params, jax.random.key(i))
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]


def test_uint8_spans_minus_one_to_one():
    np.testing.assert_allclose(to_float(jnp.array([0, 255], jnp.uint8)), [-1.0, 1.0])


def test_kl_is_that_of_integration():
    mean, logvar = 0.7, -1.3
    x = np.linspace(-12, 12, 200_001)
    p = np.exp(-((x - mean) ** 2) / (2 * np.exp(logvar))) / np.sqrt(2 * np.pi * np.exp(logvar))
    with np.errstate(divide="ignore"):
        log_p = -((x - mean) ** 2) / (2 * np.exp(logvar)) - 0.5 * (np.log(2 * np.pi) + logvar)
    log_q = -(x**2) / 2 - 0.5 * np.log(2 * np.pi)
    numeric = np.sum(p * (log_p - log_q)) * (x[1] - x[0])
    got = Gaussian(mean=jnp.full((1,), mean), logvar=jnp.full((1,), logvar)).kl()
    np.testing.assert_allclose(got, numeric, rtol=1e-5)
    assert float(Gaussian(mean=jnp.zeros(1), logvar=jnp.zeros(1)).kl()[0]) == 0.0


def test_samples_have_the_moments_of_the_distribution():
    gaussian = Gaussian(mean=jnp.full((20_000,), 2.0), logvar=jnp.full((20_000,), np.log(0.25)))
    sample = gaussian.sample(jax.random.key(0))
    np.testing.assert_allclose([sample.mean(), sample.std()], [2.0, 0.5], atol=0.02)


@pytest.mark.parametrize(
    ("name", "expected"), [("l1", (0.05 + 0.5) / 2), ("mse", (0.0025 + 0.25) / 2), ("huber", (0.0125 + 0.45) / 2)]
)
def test_reconstruction_by_hand(name, expected):
    config = VAELossConfig(reconstruction=name, huber_delta=0.1)
    got = reconstruction_loss(config, jnp.array([0.05, -0.5]), jnp.zeros(2))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_discriminator_takes_images_and_sees_motion(adversarial):
    loss, params, batch, _ = adversarial
    score = jax.jit(lambda video: loss.discriminator.apply({"params": params["disc"]}, video))
    assert score(batch["video"][:, :1]).shape == (2, 1, 4, 4)
    video = batch["video"]
    assert score(video).shape == (2, 3, 4, 4)
    assert float(jnp.abs(score(video) - score(video[:, ::-1])[:, ::-1]).max()) > 1e-4


def test_the_loss_runs_with_the_compiler_options(adversarial):
    loss, params, batch, grad = adversarial
    (plain, _), _ = grad(params, batch, jax.random.key(2), START)
    fast, _ = jax.jit(loss, compiler_options=compiler_options())(params, batch, jax.random.key(2), START)
    np.testing.assert_allclose(plain, fast, rtol=1e-5)


def test_the_decoder_alone_learns_from_the_mean_of_the_latents(adversarial):
    """Nothing is asked of the encoder then: neither gradient nor divergence nor equivariance."""
    loss, params, batch, _ = adversarial
    config = VAELossConfig(
        decoder_reconstruction="mse", decoder_edge_weight=0.3, kl_weight=0.5, equivariance_weight=0.5
    )
    alone = make_loss(VAE_CONFIG, config).for_decoder()
    (value, metrics), grads = jax.jit(jax.value_and_grad(alone, has_aux=True))(params, batch, jax.random.key(2), 0)
    again, _ = loss.vae.apply({"params": params["vae"]}, batch["video"])
    expected = jnp.mean(jnp.square(again - batch["video"])) + 0.3 * edge_loss(again, batch["video"])
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert largest(grads["vae"]["encoder"]) == 0.0
    assert largest(grads["vae"]["decoder"]) > 0.0
    assert "equivariance" not in metrics


def test_edges_are_compared_by_strength_not_by_place():
    def edge(*levels):
        """Black, these grey levels of a column each, white: 16 columns."""
        row = jnp.concatenate([-jnp.ones(8 - len(levels)), jnp.asarray(levels, jnp.float32), jnp.ones(8)])
        return jnp.broadcast_to(row[None, None, None, :, None], (1, 2, 16, 16, 3))

    true, moved, blurred = edge(-1, -1), edge(-1, 1), edge(-0.4, 0.4)
    assert float(edge_loss(true, true)) == 0.0
    assert float(edge_loss(moved, true)) == 0.0  # by a pixel, in the same windows
    assert float(edge_loss(edge(1, 1, 1, 1), true)) > 0.1
    assert float(edge_loss(blurred, true)) > 0.1
    # A distance of pixels says the opposite.
    assert float(jnp.mean(jnp.square(blurred - true))) < float(jnp.mean(jnp.square(moved - true)))
    turned = [video.swapaxes(2, 3) for video in (blurred, true)]
    assert float(edge_loss(*turned)) == pytest.approx(float(edge_loss(blurred, true)), rel=1e-6)
    assert np.isfinite(jax.grad(edge_loss)(jnp.zeros((1, 1, 8, 8, 3)), jnp.ones((1, 1, 8, 8, 3)))).all()
    with pytest.raises(ShapeError, match="4x16"):
        edge_loss(true[:, :, :4], true[:, :, :4])
