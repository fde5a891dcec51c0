"""The quickstart's world: one coloured shape that moves left, right, up or down at constant speed."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from vdit.errors import ConfigError
from vdit.worlds.base import View, World, WorldSample, article, register
from vdit.worlds.draw import COLOURS, SHAPES, canvas, grey, paint, to_uint8

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

# Lengths in short sides of the frame, speeds in short sides per second.
_LARGEST = 0.36  # leaves room to move
_SPEEDS = (0.15, 0.40)
_FAST = 0.22
_MIN_TRAVEL = 0.12  # of a short side, so that even a very short clip shows where it goes
_MARGIN = 0.03

_GREYS = (28.0, 92.0)
_GREY = 60.0  # lighter than this is "grey", darker is "dark grey"
_SLOPE = 12.0

_WAY = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
_TOWARDS = {
    "left": "the left edge",
    "right": "the right edge",
    "up": "the top",
    "down": "the bottom",
}
_DETAILED = (
    "A {size} {colour} {shape} moves {way} {manner} over a {background} background.",
    "On a plain {background} background, a {size} {colour} {shape} travels {manner} {way} in a straight "
    "line.",
    "The video shows one {size} {shape}. It is {colour} and glides {manner} {way}, towards {edge} of the "
    "frame, on a {background} background.",
    "A single {colour} {shape}, {size} in size, goes {way} at a constant {pace} pace. The background is "
    "{background} and the camera does not move.",
)
_STILL = "A {size} {colour} {shape} on a {background} background."

Combo = tuple[str, str, str]


def combinations() -> tuple[Combo, ...]:
    """Every (colour, shape, direction) of the world, in a fixed order."""
    return tuple(itertools.product(COLOURS, SHAPES, DIRECTIONS))


def subset(name: str) -> tuple[Combo, ...]:
    """The combinations of a named subset: "all", "train" or "held_out".

    A combination is held out if the numbers of its colour, shape and direction in their tables add up
    to a multiple of four. That is one in four, laid out like a Latin square: every pair (colour and
    shape, colour and direction, shape and direction) still occurs among those left to train on.
    """
    if name == "all":
        return combinations()
    if name not in ("train", "held_out"):
        raise ConfigError(f"subset is {name!r}; choose all, train or held_out")
    places = itertools.product(*(range(len(table)) for table in (COLOURS, SHAPES, DIRECTIONS)))
    held_out = [sum(place) % 4 == 0 for place in places]
    return tuple(c for c, held in zip(combinations(), held_out) if held == (name == "held_out"))


def caption(colour: str, shape: str, direction: str | None) -> str:
    """The short caption; direction None is a still image."""
    return article(f"{colour} {shape}") + (f" moves {_WAY[direction]}" if direction else "")


@register("moving")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Moving(World):
    """One shape, whole in every frame, at constant velocity.

    combos: the (colour, shape, direction) to draw from, so that others can be held out; each block
    of len(combos) samples has every one of them once. subset: keeps of those what is in the named
    subset ("all", "train", "held_out"). sizes: least and largest radius, in short sides of the frame.
    The speed is drawn per second and held to what the frame has room for, so a longer clip may need a
    slower shape.
    """

    combos: tuple[Combo, ...] = combinations()
    subset: str = "all"
    sizes: tuple[float, float] = (0.14, 0.20)

    def __post_init__(self):
        super().__post_init__()
        if not (len(self.sizes) == 2 and 0 < self.sizes[0] <= self.sizes[1] <= _LARGEST):
            raise ConfigError(
                f"sizes={self.sizes}: give the least and the largest radius, in short sides of the frame, "
                f"above 0 and at most {_LARGEST}"
            )
        known, kept = set(combinations()), set(subset(self.subset))
        object.__setattr__(self, "combos", tuple(tuple(combo) for combo in self.combos))
        for combo in self.combos:
            if combo not in known:
                raise ConfigError(
                    f"combo {combo} is unknown; give (colour, shape, direction) from {', '.join(COLOURS)}; "
                    f"{', '.join(SHAPES)}; {', '.join(DIRECTIONS)}"
                )
        object.__setattr__(self, "combos", tuple(combo for combo in self.combos if combo in kept))
        if not self.combos:
            raise ConfigError("combos is empty; a world needs something to show: give one or more of the subset")

    def _render(self, i: int, view: View) -> WorldSample:
        block, place = divmod(i, len(self.combos))
        order = self._random(1, block).permutation(len(self.combos))
        colour, shape, direction = self.combos[order[place]]

        random = self._random(0, i)
        radius = random.uniform(*self.sizes)
        level = random.uniform(*_GREYS)
        slope = random.uniform(-_SLOPE, _SLOPE, 2)
        start, velocity = _motion(random, shape, direction, radius, view)
        position = start + velocity * view.times[:, None]

        video = canvas(grey(view.size, level, slope), view.frames)
        paint(video, SHAPES[shape], position * view.scale, radius * view.scale, COLOURS[colour])

        fast = float(np.abs(velocity).max()) >= _FAST
        words = {
            "size": "large" if radius >= sum(self.sizes) / 2 else "small",
            "manner": "quickly" if fast else "slowly",
            "pace": "quick" if fast else "slow",
            "background": "grey" if level >= _GREY else "dark grey",
        }
        template = _STILL if view.frames == 1 else _DETAILED[random.integers(len(_DETAILED))]
        detailed = template.format(
            colour=colour, shape=shape, way=_WAY[direction], edge=_TOWARDS[direction], **words
        )
        return WorldSample(
            video=to_uint8(video),
            fps=view.fps,
            caption=caption(colour, shape, direction if view.frames > 1 else None),
            detailed=detailed,
            meta=self._meta(
                i,
                view,
                combo=(colour, shape, direction),
                background={"level": level, "slope": slope},
                words=words,
                objects=[
                    {
                        "colour": colour,
                        "shape": shape,
                        "size": radius,
                        "position": position,
                        "velocity": np.broadcast_to(velocity, position.shape).copy(),
                        "visibility": np.ones(view.frames),
                    }
                ],
            ),
        )


def _motion(
    random: np.random.Generator, shape: str, direction: str, radius: float, view: View
) -> tuple[np.ndarray, np.ndarray]:
    """Start and velocity, each [2], of a shape that stays whole inside the frame."""
    outline = SHAPES[shape]
    low = radius * np.array([outline.left, outline.up]) + _MARGIN
    high = np.array(view.box) - radius * np.array([outline.right, outline.down]) - _MARGIN
    heading = np.array(DIRECTIONS[direction], np.float64)
    axis = int(np.abs(heading).argmax())
    free = high[axis] - low[axis]

    speed = random.uniform(*_SPEEDS)
    duration = view.duration
    if duration > 0:
        speed = min(max(speed, _MIN_TRAVEL / duration), free / duration)
    travel = speed * duration
    start = low + random.uniform(0, 1, 2) * (high - low)
    slack = free - travel
    begin = low[axis] + (start[axis] - low[axis]) / free * slack
    start[axis] = begin if heading[axis] > 0 else begin + travel
    return start, heading * speed
