"""From a model's folder to videos."""

from vdit.generate.generator import Generator
from vdit.generate.loading import load, load_vae, open_generator
from vdit.models.vae.video import VideoVAE

__all__ = ["Generator", "VideoVAE", "load", "load_vae", "open_generator"]
