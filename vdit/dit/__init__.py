"""The diffusion transformer: config, presets, model."""

from vdit.dit.config import DiTConfig, preset
from vdit.dit.model import DiT

__all__ = ["DiT", "DiTConfig", "preset"]
