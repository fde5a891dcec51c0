"""The networks: diffusion transformer, VAE, text and image encoders."""
