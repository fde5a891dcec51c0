"""From a model's folder to videos."""

from vdit.infer.generator import Generator
from vdit.infer.loading import load, load_vae, open_generator
from vdit.vae.video import VideoVAE

__all__ = ["Generator", "VideoVAE", "load", "load_vae", "open_generator"]
