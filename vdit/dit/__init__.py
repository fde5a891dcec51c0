"""The diffusion transformer: config, presets, model."""

from vdit.dit.config import DiTConfig, preset
from vdit.dit.model import DiT
from vdit.dit.past import Past
from vdit.dit.reuse import Residuals, Reusing

__all__ = ["DiT", "DiTConfig", "Past", "Residuals", "Reusing", "preset"]
