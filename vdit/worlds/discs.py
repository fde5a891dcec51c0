"""Two worlds of balls in a box: "bounce", without gravity and without loss, and "collide", with both."""

from __future__ import annotations

import dataclasses

import numpy as np

from vdit.errors import ConfigError
from vdit.worlds.base import View, World, WorldSample, join_words, list_balls, register, sentence
from vdit.worlds.draw import COLOURS, SHAPES, canvas, grey, paint, to_uint8
from vdit.worlds.physics import WALLS, Contact, Discs, Motion, simulate

_WALL = 0.03  # thickness of the box's walls, in short sides of the frame
_WALL_LEVEL = 150.0
_RADII = (0.08, 0.14)
_LARGE = 0.11
_FILLED = 0.4  # of a short side squared, by all balls together
_REST = 0.02  # seconds of fall: slower contacts than that keep their speed, see Discs
_GREYS = (28.0, 84.0)
_WALL_NAMES = {
    "left": "the left wall",
    "right": "the right wall",
    "top": "the ceiling",
    "bottom": "the floor",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Balls(World):
    """balls: the least and the most balls of a clip. radii: the least and the largest, in short sides of the frame."""

    balls: tuple[int, int] = (2, 4)
    radii: tuple[float, float] = _RADII

    def __post_init__(self):
        super().__post_init__()
        _check_range("radii", self.radii, 0.02, 0.2)
        if not 1 <= self.balls[0] <= self.balls[1] <= 6:
            raise ConfigError(f"balls is {self.balls}; give (least, most) with 1 <= least <= most <= 6")
        filled = self.balls[1] * np.pi * self.radii[1] ** 2
        if filled > _FILLED:
            raise ConfigError(f"balls={self.balls} of radii={self.radii} may fill {filled:.2f} short sides squared, "
                              f"more than {_FILLED}, and would find no places: give fewer or smaller ones")  # fmt: skip

    def _discs(self, random: np.random.Generator, box: tuple[float, float, float, float]) -> Discs:
        raise NotImplementedError

    def _captions(self, scene: Discs, motion: Motion, colours: list[str]) -> tuple[str, str]:
        raise NotImplementedError

    def _render(self, i: int, view: View) -> WorldSample:
        random = self._random(0, i)
        width, height = view.box
        box = (_WALL, _WALL, width - _WALL, height - _WALL)
        level = random.uniform(*_GREYS)
        scene = self._discs(random, box)
        colours = random.permutation(list(COLOURS))[: len(scene.radius)].tolist()
        motion = simulate(scene, view.duration)
        position, velocity = motion.at(view.times)

        video = canvas(_room(view, box, level), view.frames)
        for k, colour in enumerate(colours):
            centre, radius = position[:, k] * view.scale, scene.radius[k] * view.scale
            paint(video, SHAPES["circle"], centre, radius, COLOURS[colour])
        short, detailed = self._captions(scene, motion, colours)
        if view.frames == 1:
            short = f"{list_balls(colours)} in a box"
            detailed = f"{sentence(list_balls(colours, _sizes(scene)))} in a grey box."
        return WorldSample(
            video=to_uint8(video),
            fps=view.fps,
            caption=short,
            detailed=detailed,
            meta=self._meta(
                i,
                view,
                box=box,
                gravity=scene.gravity,
                restitution=scene.restitution,
                rest_speed=scene.rest_speed,
                background={"level": level},
                contacts=[dataclasses.asdict(contact) for contact in motion.contacts],
                objects=[
                    {
                        "colour": colour,
                        "shape": "circle",
                        "size": float(scene.radius[k]),
                        "mass": float(scene.mass[k]),
                        "position": position[:, k],
                        "velocity": velocity[:, k],
                        "visibility": np.ones(view.frames),
                    }
                    for k, colour in enumerate(colours)
                ],
            ),
        )


@register("bounce")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounce(_Balls):
    """Balls that bounce off the walls of a box and off each other, without gravity or loss.

    speeds: the least and the largest at the start, in short sides a second.
    """

    balls: tuple[int, int] = (1, 3)
    speeds: tuple[float, float] = (0.3, 0.7)

    def __post_init__(self):
        super().__post_init__()
        _check_range("speeds", self.speeds, 0.0, 5.0)

    def _discs(self, random: np.random.Generator, box: tuple[float, float, float, float]) -> Discs:
        radius, position = _scatter(random, random.integers(self.balls[0], self.balls[1] + 1), self.radii, box)
        angle = random.uniform(0, 2 * np.pi, len(radius))
        speed = random.uniform(*self.speeds, len(radius))
        velocity = np.stack([np.cos(angle), np.sin(angle)], 1) * speed[:, None]
        return Discs(radius=radius, mass=radius**2, position=position, velocity=velocity, box=box)

    def _captions(self, scene: Discs, motion: Motion, colours: list[str]) -> tuple[str, str]:
        one = len(colours) == 1
        walls = {contact.wall for contact in motion.contacts if contact.kind == "wall"}
        doings = ["moves" if one else "move"]
        if walls:
            where = "a wall" if len(walls) == 1 else "the walls"
            doings.append(f"{'bounces' if one else 'bounce'} off {where}")
        if any(contact.kind == "pair" for contact in motion.contacts):
            doings.append("collide")
        short = f"{list_balls(colours)} {join_words(doings)} in a box"
        detailed = [
            f"{sentence(list_balls(colours, _sizes(scene)))} {join_words(doings)} inside a grey box without gravity.",
            *_facts(scene, motion, colours),
            "No energy is lost.",
        ]
        return short, " ".join(detailed)


@register("collide")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Collide(_Balls):
    """Balls that fall and collide under gravity.

    gravity: in short sides per second squared. restitution: of every contact; None draws it for each
    clip, 1 in a third of them.
    """

    gravity: float = 1.5
    restitution: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.gravity <= 20:
            raise ConfigError(f"gravity is {self.gravity}; it must be above 0 and at most 20: choose another")
        if self.restitution is not None and not 0.1 <= self.restitution <= 1:
            raise ConfigError(f"restitution is {self.restitution}; it must lie in 0.1..1: choose another")

    def _discs(self, random: np.random.Generator, box: tuple[float, float, float, float]) -> Discs:
        radius, position = _scatter(random, random.integers(self.balls[0], self.balls[1] + 1), self.radii, box)
        velocity = random.uniform((-0.5, 0.0), (0.5, 0.2), (len(radius), 2))
        drawn = 1.0 if random.uniform() < 1 / 3 else random.uniform(0.5, 0.9)
        return Discs(
            radius=radius,
            mass=radius**2,
            position=position,
            velocity=velocity,
            box=box,
            gravity=self.gravity,
            rest_speed=_REST * self.gravity,
            restitution=drawn if self.restitution is None else self.restitution,
        )

    def _captions(self, scene: Discs, motion: Motion, colours: list[str]) -> tuple[str, str]:
        one = len(colours) == 1
        doings = ["falls" if one else "fall"]
        if any(contact.kind == "pair" for contact in motion.contacts):
            doings.append("collide")
        if any(contact.wall == "bottom" for contact in motion.contacts):
            doings.append("bounces off the floor" if one else "bounce off the floor")
        short = f"{list_balls(colours)} {join_words(doings)}"
        kept = "all" if scene.restitution == 1 else "most" if scene.restitution >= 0.7 else "only part"
        loss = f"Each bounce keeps {kept} of its speed."
        detailed = [
            f"{sentence(list_balls(colours, _sizes(scene)))} {join_words(doings)} under gravity inside a grey box.",
            *_facts(scene, motion, colours),
            loss,
        ]
        return short, " ".join(detailed)


def _scatter(
    random: np.random.Generator, count: int, radii: tuple[float, float], box: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Radii [n] and centres [n 2] of balls that lie apart inside the box."""
    low, high = np.array(box[:2]), np.array(box[2:])
    while True:
        radius = random.uniform(*radii, count)
        position = random.uniform(low + radius[:, None], high - radius[:, None])
        apart = np.linalg.norm(position[:, None] - position, axis=-1) - radius[:, None] - radius
        if (apart[np.triu_indices(count, 1)] > 0.01).all():
            return radius, position


def _check_range(name: str, values: tuple[float, float], least: float, most: float) -> None:
    if not (len(values) == 2 and least < values[0] <= values[1] <= most):
        raise ConfigError(f"{name}={values}: give (least, largest), above {least} and at most {most}")


def _room(view: View, box: tuple[float, float, float, float], level: float) -> np.ndarray:
    """The box [h w 1]: walls of a lighter grey, anti-aliased."""
    height, width = view.size
    inside = []
    for low, high, pixels in ((box[0], box[2], width), (box[1], box[3], height)):
        edges = np.arange(pixels + 1) / view.scale
        shares = np.diff(np.clip(edges, low, high)) * view.scale
        inside.append(shares)
    floor = inside[1][:, None, None] * inside[0][None, :, None]
    return (_WALL_LEVEL + floor * (grey(view.size, level) - _WALL_LEVEL)).astype(np.float32)


def _sizes(scene: Discs) -> list[str]:
    return ["large" if radius >= _LARGE else "small" for radius in scene.radius]


def _facts(scene: Discs, motion: Motion, colours: list[str]) -> list[str]:
    """What happens, as sentences: how often each ball hits the walls, and which pairs meet."""
    sentences = []
    for k, colour in enumerate(colours):
        hits = [c for c in motion.contacts if c.kind == "wall" and c.objects == (k,) and _seen(c, scene.rest_speed)]
        if hits:
            walls = [name for name in WALLS if any(c.wall == name for c in hits)]
            named = join_words([_WALL_NAMES[name] for name in walls])
            sentences.append(f"The {colour} ball hits {named}.")
    for pair in sorted({c.objects for c in motion.contacts if c.kind == "pair"}):
        first, second = (colours[k] for k in pair)
        sentences.append(f"The {first} ball and the {second} ball collide.")
    return sentences


def _seen(contact: Contact, rest_speed: float) -> bool:
    """Whether a contact with a wall is more than the trembling of a ball at rest."""
    return abs(np.dot(contact.before[0], contact.normal)) >= rest_speed
