"""The causal video VAE: model, losses, latent statistics."""

from vdit.vae.config import DiscriminatorConfig, VAEConfig, VAELossConfig, preset
from vdit.vae.model import VAE, Gaussian

__all__ = ["VAE", "DiscriminatorConfig", "Gaussian", "VAEConfig", "VAELossConfig", "preset"]
