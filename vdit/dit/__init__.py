"""The diffusion transformer: config, presets, model."""

from vdit.dit.config import DiTConfig, preset
from vdit.dit.model import DiT
from vdit.dit.past import Past

__all__ = ["DiT", "DiTConfig", "Past", "preset"]
