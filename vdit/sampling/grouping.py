"""How video frames are grouped by what a model makes at once: the lengths that canvases and their known ends have."""

from __future__ import annotations

import dataclasses

import numpy as np

from vdit.errors import ShapeError
from vdit.models.dit.config import DiTConfig
from vdit.models.vae.config import VAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouping:
    """`first` video frames, then `step` at a time: those of each frame of tokens.

    A canvas, and a known head of it, is `first` + a multiple of `step` frames; a known tail, and what lies between
    known ends, a multiple of `step`.
    """

    first: int
    step: int

    @classmethod
    def of(cls, vae: VAEConfig, dit: DiTConfig) -> Grouping:
        """The first latent frame is one video frame, each other one temporal_stride; a token is patch[0] of them."""
        stride, patch = vae.temporal_stride, dit.patch[0]
        return cls(first=1 + (patch - 1) * stride, step=patch * stride)

    def head(self, most: int) -> int:
        """The longest canvas or head of at most so many frames; 0 if there is none."""
        return 0 if most < self.first else self.first + (most - self.first) // self.step * self.step

    def tail(self, most: int) -> int:
        """The longest tail, or passage, of at most so many frames; 0 if there is none."""
        return max(0, most) // self.step * self.step

    def passage(self, least: int) -> int:
        """The shortest multiple of `step` from `least` up."""
        return -(-least // self.step) * self.step

    def canvas(self, least: int) -> int:
        """The shortest canvas of at least so many frames."""
        return self.first + self.passage(max(0, least - self.first))

    def index(self, frames: int) -> np.ndarray:
        """int [frames]: the group that each frame of a canvas is in."""
        return np.maximum(0, -(-(np.arange(frames) - self.first + 1) // self.step))

    def check_passage(self, name: str, frames: int) -> None:
        """ShapeError unless `frames` can lie between known ends."""
        if frames < 1 or frames % self.step:
            low = max(self.step, self.tail(frames))
            near = f"{low} or {low + self.step}"
            raise ShapeError(f"{name}={frames} must be a multiple of {self.step}, made at once: use {near}")
