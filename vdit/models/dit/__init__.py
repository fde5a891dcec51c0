"""The diffusion transformer: config, presets, model."""

from vdit.models.dit.config import DiTConfig, preset
from vdit.models.dit.model import DiT
from vdit.models.dit.past import KVCache
from vdit.models.dit.reuse import Residuals, Reusing

__all__ = ["DiT", "DiTConfig", "KVCache", "Residuals", "Reusing", "preset"]
