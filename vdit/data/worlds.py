"""Rendered worlds as a library of videos."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from vdit.data.clips import DecodedClip
from vdit.worlds import World

# Worlds are drawn at the size asked for; this only stands for an aspect ratio.
NOMINAL = 720


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldHandle:
    """One scene, rendered when it is read."""

    world: World
    item: int
    id: str
    height: int
    width: int
    fps: float
    label: int = 0
    seconds: float = math.inf
    elastic: bool = True

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> DecodedClip:
        scene = self.world.render(self.item, size=size, frames=frames, fps=fps)
        return DecodedClip(video=scene.video, captions=(scene.caption, scene.detailed), actions=scene.actions)


class WorldDataset:
    """The scenes of a world; each takes one of `aspects` (width / height)."""

    def __init__(self, world: World, *, aspects: tuple[float, ...] = (1.0,)):
        self.world = world
        self.aspects = aspects
        self.broken: dict[str, str] = {}
        self.summary = None

    def __len__(self) -> int:
        return len(self.world)

    def name(self, item: int) -> str:
        return f"{self.world.name}[{item}]"

    def open(self, item: int, rng: np.random.Generator) -> WorldHandle:
        aspect = float(rng.choice(self.aspects))
        return WorldHandle(world=self.world, item=item, id=self.name(item), fps=self.world.fps,
                            height=round(NOMINAL / math.sqrt(aspect)),
                            width=round(NOMINAL * math.sqrt(aspect)))
