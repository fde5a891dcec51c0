"""From a trained checkpoint to videos."""

from vdit.infer.generator import Generator, load, load_vae
from vdit.vae.video import VideoVAE

__all__ = ["Generator", "VideoVAE", "load", "load_vae"]
