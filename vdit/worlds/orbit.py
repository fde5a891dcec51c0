"""A still 3D scene on a chequered floor, seen by a camera that orbits it: the world of 3D consistency."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from vdit.errors import ConfigError
from vdit.worlds.base import View, World, WorldSample, article, join_words, register, sentence
from vdit.worlds.draw import COLOURS, to_uint8
from vdit.worlds.raycast import KINDS, Camera, Solid, draw_scene

# Lengths in metres of the scene: z points up, the floor is z = 0. With these the solids stay in the frame.
_SPREAD = 0.8
_SPHERES = (0.22, 0.34)
_CUBES = (0.18, 0.27)
_TARGET = (0.0, 0.0, 0.25)
_DISTANCE = (3.2, 3.9)
_ELEVATION = (24.0, 42.0)  # degrees
_SPEED = (15.0, 45.0)  # degrees per second
_LARGE = {"sphere": 0.28, "cube": 0.225}
_TILE = 0.5
_FLOORS = (80.0, 120.0)


@register("orbit")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Orbit(World):
    """Coloured spheres and cubes that stand on a floor while the camera goes round them.

    solids: the least and the most of them. kinds: what they may be.
    meta's camera has centre [t 3], intrinsics [3 3] (pixels) and extrinsics [t 4 4] (world to camera: x
    right, y down, z forward), and degrees_per_second, positive when the camera moves to its right.
    Objects have position [t 3] (the centre), projected [t 2] (x, y in pixels), depth [t] along the
    camera's axis, yaw in radians, and visibility [t], as rendered. In the first frame every solid is in
    sight, at least in part. actions: [t 1], degrees that the camera turns to its right from the frame before, / 10.
    """

    solids: tuple[int, int] = (2, 4)
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.solids[0] <= self.solids[1] <= 4:
            raise ConfigError(f"solids is {self.solids}; give (least, most) with 1 <= least <= most <= 4")
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ConfigError(f"kinds is {self.kinds}; choose one or more from {', '.join(KINDS)}")

    def _render(self, i: int, view: View) -> WorldSample:
        random = self._random(0, i)
        count = int(random.integers(self.solids[0], self.solids[1] + 1))
        colours = random.permutation(list(COLOURS))[:count].tolist()
        speed = float(random.uniform(*_SPEED) * random.choice([-1, 1]))
        elevation, distance = float(random.uniform(*_ELEVATION)), float(random.uniform(*_DISTANCE))

        def camera_at(azimuth: np.ndarray) -> Camera:
            return Camera.orbiting(view.size, azimuth, math.radians(elevation), distance, _TARGET)

        while True:
            solids, start = _scatter(random, count, self.kinds), random.uniform(0, 2 * math.pi)
            if _in_sight(solids, camera_at(np.array([start])).centre[0]):
                break
        camera = camera_at(start + math.radians(speed) * view.times)
        floor = float(random.uniform(*_FLOORS))
        video, visibility = draw_scene(camera, solids, [COLOURS[c] for c in colours], floor, _TILE)
        short, detailed = _captions(solids, colours, speed if view.frames > 1 else 0.0)
        return WorldSample(
            video=to_uint8(video),
            fps=view.fps,
            caption=short,
            detailed=detailed,
            actions=_turns(speed / view.fps, view.frames),
            meta=self._meta(
                i,
                view,
                background={"level": floor},
                camera={
                    "kind": "orbit",
                    "centre": camera.centre,
                    "intrinsics": camera.intrinsics,
                    "extrinsics": camera.extrinsics,
                    "target": _TARGET,
                    "distance": distance,
                    "elevation": elevation,
                    "degrees_per_second": speed,
                },
                objects=[
                    _facts(camera, solid, colour, seen)
                    for solid, colour, seen in zip(solids, colours, visibility.T)
                ],
            ),
        )


def _turns(degrees: float, frames: int) -> np.ndarray:
    """Actions float32 [t 1] of a camera that turns by as many degrees a frame."""
    turns = np.full((frames, 1), degrees / 10, np.float32)
    turns[0] = 0
    return turns


def _facts(camera: Camera, solid: Solid, colour: str, visibility: np.ndarray) -> dict[str, Any]:
    """What meta says of one solid."""
    frames = len(camera.centre)
    projected, depth = camera.project(np.array(solid.centre))
    return {
        "colour": colour,
        "shape": solid.kind,
        "size": solid.size,
        "yaw": solid.yaw,
        "position": np.tile(np.array(solid.centre), (frames, 1)),
        "velocity": np.zeros((frames, 3)),
        "projected": projected,
        "depth": depth,
        "visibility": visibility,
    }


def _scatter(random: np.random.Generator, count: int, kinds: tuple[str, ...]) -> list[Solid]:
    """Solids that stand on the floor, their bounding spheres apart."""
    solids: list[Solid] = []
    while len(solids) < count:
        solids = solids if random.uniform() < 0.9 else []  # start again now and then: a corner may be full
        kind = kinds[random.integers(len(kinds))]
        size = random.uniform(*(_SPHERES if kind == "sphere" else _CUBES))
        angle, reach = random.uniform(0, 2 * math.pi), _SPREAD * math.sqrt(random.uniform())
        centre = (reach * math.cos(angle), reach * math.sin(angle), size)
        solid = Solid(kind=kind, size=size, centre=centre, yaw=random.uniform(0, math.pi / 2))
        if all(math.dist(solid.centre, other.centre) > solid.bound + other.bound for other in solids):
            solids.append(solid)
    return solids


def _in_sight(solids: list[Solid], eye: np.ndarray) -> bool:
    """Whether none hides most of another from a place [3], so that a caption may name them all."""
    sight = np.array([solid.centre for solid in solids]) - eye
    distance = np.linalg.norm(sight, axis=1)
    sight /= distance[:, None]
    apart = np.arccos(np.clip(sight @ sight.T, -1, 1))
    wide = np.arcsin([solid.size for solid in solids] / distance)
    pairs = np.triu_indices(len(solids), 1)
    return bool((apart > 0.9 * np.maximum(wide[:, None], wide))[pairs].all())


def _captions(solids: list[Solid], colours: list[str], speed: float) -> tuple[str, str]:
    things = [f"{colour} {solid.kind}" for colour, solid in zip(colours, solids)]
    sizes = ["large" if solid.size >= _LARGE[solid.kind] else "small" for solid in solids]
    sized = join_words([article(f"{size} {thing}") for size, thing in zip(sizes, things)])
    short = f"{join_words([article(thing) for thing in things])} on a chequered floor"
    stand = "stands" if len(things) == 1 else "stand"
    detailed = f"{sentence(sized)} {stand} on a grey chequered floor."
    if speed:
        side = "right" if speed > 0 else "left"
        pace = "quickly" if abs(speed) >= 30 else "slowly"
        short += f", the camera orbits to the {side}"
        what = "it" if len(things) == 1 else "them"
        detailed += (
            f" Nothing moves but the camera, which orbits {pace} around {what} to the {side} and looks down "
            "from above."
        )
    return short, detailed
