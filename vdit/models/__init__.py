"""The networks: diffusion transformer, VAE, text and image encoders."""

from vdit.lazy import exports

# Imported on first use, so that a config alone does not wait for jax, grain or flax.
_HOMES = {
    "Backbone": "backbone",
    "CLIPVisionConfig": "vision",
    "Conditioner": "conditioner",
    "Context": "backbone",
    "DiT": "dit.model",
    "DiTConfig": "dit.config",
    "DiscriminatorConfig": "vae.config",
    "Gaussian": "vae.model",
    "Network": "network",
    "Output": "backbone",
    "Spec": "backbone",
    "T5Config": "text.config",
    "TextConfig": "text.config",
    "Tokenizer": "text.tokenizer",
    "VAE": "vae.model",
    "VAEConfig": "vae.config",
    "VAELossConfig": "vae.config",
    "VideoVAE": "vae.video",
    "attention": "backbone",
    "dit_preset": "dit.config:preset",
    "embed_conditions": "conditioner",
    "load_tokenizer": "text.tokenizer",
    "smallest_row": "backbone",
    "t5_preset": "text.config",
    "t5_text": "text.config",
    "token_values": "backbone",
    "train_tokenizer": "text.tokenizer",
    "vae_preset": "vae.config:preset",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = exports(__name__, _HOMES)
