"""Noise schedules, what networks predict, training objectives and guidance; no networks, no samplers."""

from vdit.diffusion.config import DiffusionConfig
from vdit.diffusion.guidance import Guidance, guide
from vdit.diffusion.objectives import (
    add_noise,
    diffusion_loss,
    draw_levels,
    from_clean_and_noise,
    target,
    to_clean_and_noise,
)
from vdit.diffusion.schedules import DDPM, Flow, Schedule, make_schedule

__all__ = [
    "DDPM",
    "DiffusionConfig",
    "Flow",
    "Guidance",
    "Schedule",
    "add_noise",
    "diffusion_loss",
    "draw_levels",
    "from_clean_and_noise",
    "guide",
    "make_schedule",
    "target",
    "to_clean_and_noise",
]
