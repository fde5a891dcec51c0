"""What the VAE and its discriminator are trained on, by one backward pass for both.

The generator's term sees the discriminator's parameters through stop_gradient, the discriminator's terms
see the reconstruction through stop_gradient: the gradient of the sum is, for each network, the gradient
of its own loss. Devices of the mesh in context share the clips (vdit/models/vae/split.py); the losses are those of one
device.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax.linen import meta

from vdit.dist.rules import constrain
from vdit.errors import ConfigError
from vdit.models.vae import split
from vdit.models.vae.config import DiscriminatorConfig, VAEConfig, VAELossConfig
from vdit.models.vae.discriminator import Discriminator
from vdit.models.vae.model import VAE
from vdit.models.vae.perceptual import load_squeezenet, perceptual_distance
from vdit.reprs import short_repr
from vdit.types import Array, PyTree


def to_float(video: Array) -> Array:
    """uint8 in 0..255 to float32 in [-1, 1]; floats pass: `[...] -> [...]`."""
    if video.dtype == jnp.uint8:
        return video.astype(jnp.float32) / 127.5 - 1.0
    return video.astype(jnp.float32)


def reconstruction_loss(config: VAELossConfig, x: Array, y: Array) -> Array:
    """Mean distance between two arrays of the same shape: a scalar."""
    error = jnp.abs(x - y)
    if config.reconstruction == "l1":
        return jnp.mean(error)
    if config.reconstruction == "mse":
        return jnp.mean(jnp.square(error))
    if config.reconstruction == "huber":
        delta = config.huber_delta
        return jnp.mean(jnp.where(error < delta, 0.5 * jnp.square(error) / delta, error - 0.5 * delta))
    raise ConfigError(f"vae_loss.reconstruction={config.reconstruction!r} must be l1, mse or huber")


def hinge_discriminator_loss(real: Array, fake: Array) -> Array:
    """Wants scores of real above 1 and of fake below -1: scores of any shape -> scalar."""
    return jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake))


def hinge_generator_loss(fake: Array) -> Array:
    """Wants scores of fake high: scores of any shape -> scalar."""
    return -jnp.mean(fake)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # hashed by identity: it holds arrays
class VAELoss:
    """`loss(params, batch, key, step) -> (scalar, metrics)`, to be differentiated in `params`.

    params: {"vae": ..., "disc": ...}, the second only where config.adversarial_weight is not 0.
    batch: {"video": [b t h w 3], uint8, or float in [-1, 1]}. step: counts from 0.
    squeezenet: parameters of the perceptual features, None where their weight is 0.
    """

    vae: VAE
    config: VAELossConfig
    discriminator: Discriminator | None = None
    squeezenet: PyTree = None

    def init(self, key: Array, video: Array, *, boxed: bool = False) -> PyTree:
        """Fresh parameters for videos of this shape; `boxed` keeps the logical axis names on them."""
        keys = jax.random.split(key)
        params = {"vae": self.vae.init(keys[0], to_float(video))["params"]}
        if self.discriminator is not None:
            params["disc"] = self.discriminator.init(keys[1], to_float(video))["params"]
        return params if boxed else meta.unbox(params)

    def __call__(
        self, params: PyTree, batch: PyTree, key: Array, step: Array
    ) -> tuple[Array, dict[str, Array]]:
        config = self.config
        video = to_float(batch["video"])
        sample_key, frame_key = jax.random.split(key)
        gaussian = split.encode(self.vae.config, params["vae"], video)
        recon = split.decode(self.vae.config, params["vae"], gaussian.sample(sample_key))
        metrics = {
            "reconstruction": reconstruction_loss(config, recon, video),
            "kl": jnp.mean(gaussian.kl()),
            "psnr": -10.0 * jnp.log10(jnp.mean(jnp.square(jnp.clip(recon, -1, 1) - video)) / 4.0 + 1e-12),
        }
        loss = metrics["reconstruction"] + config.kl_weight * metrics["kl"]
        if self.squeezenet is not None:
            metrics["perceptual"] = self._perceptual(recon, video, frame_key)
            loss = loss + config.perceptual_weight * metrics["perceptual"]
        if self.discriminator is not None:
            generator, discriminator = self._adversarial(params["disc"], recon, video)
            metrics |= {"generator": generator, "discriminator": discriminator}
            on = jnp.asarray(step >= config.adversarial_start, jnp.float32)
            loss = loss + on * (config.adversarial_weight * generator + discriminator)
        metrics["loss"] = loss
        return loss, metrics

    def _adversarial(self, params: PyTree, recon: Array, video: Array) -> tuple[Array, Array]:
        def score(params: PyTree, x: Array) -> Array:
            return split.score(self.discriminator.config, params, x)

        generator = hinge_generator_loss(score(jax.lax.stop_gradient(params), recon))
        fake = score(params, jax.lax.stop_gradient(recon))
        return generator, hinge_discriminator_loss(score(params, video), fake)

    def _perceptual(self, recon: Array, video: Array, key: Array) -> Array:
        frames = jax.random.permutation(key, video.shape[1])[: self.config.perceptual_frames]
        # A few frames: whole where they are looked at.
        x, y = (constrain(v[:, frames], ("batch", *[None] * 4)).reshape(-1, *v.shape[2:]) for v in (recon, video))
        return jnp.mean(perceptual_distance(self.squeezenet, x, y))


def make_loss(
    vae: VAEConfig, config: VAELossConfig, discriminator: DiscriminatorConfig | None = None
) -> VAELoss:
    """The loss that the configs ask for, with its networks; reads the perceptual weights from disk."""
    adversarial = config.adversarial_weight > 0
    return VAELoss(
        vae=VAE(vae),
        config=config,
        discriminator=Discriminator(discriminator or DiscriminatorConfig()) if adversarial else None,
        squeezenet=load_squeezenet(config.perceptual_weights) if config.perceptual_weight > 0 else None,
    )
