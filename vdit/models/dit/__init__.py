"""The diffusion transformer: config, presets, model."""

from vdit.models.dit.config import DiTConfig, preset
from vdit.models.dit.model import DiT

__all__ = ["DiT", "DiTConfig", "preset"]
