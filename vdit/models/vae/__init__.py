"""The causal video VAE: model, losses, latent statistics."""

from vdit.models.vae.config import DiscriminatorConfig, VAEConfig, VAELossConfig, preset
from vdit.models.vae.losses import VAELoss, make_loss
from vdit.models.vae.model import VAE, Discriminator, Gaussian
from vdit.models.vae.statistics import add_latents, denormalise, empty_moments, latent_statistics, normalise
from vdit.models.vae.video import decode_stream, encode_stream

__all__ = [
    "VAE",
    "Discriminator",
    "DiscriminatorConfig",
    "Gaussian",
    "VAEConfig",
    "VAELoss",
    "VAELossConfig",
    "add_latents",
    "decode_stream",
    "denormalise",
    "empty_moments",
    "encode_stream",
    "latent_statistics",
    "make_loss",
    "normalise",
    "preset",
]
