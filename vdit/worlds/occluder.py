"""A shape that passes behind a wall and comes out where it must: the world of object permanence."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from vdit.errors import ConfigError
from vdit.worlds.base import View, World, WorldSample, article, register, sentence
from vdit.worlds.draw import COLOURS, SHAPES, Shape, canvas, grey, paint, to_uint8
from vdit.worlds.moving import DIRECTIONS

_MARGIN = 0.02
_WIDEST = 2.36  # a shape's extent along an axis, in sizes: the triangle's base
_GREYS = (28.0, 70.0)
_WALL_LEVELS = (120.0, 180.0)
_OPPOSITE = {"left": "right", "right": "left", "up": "bottom", "down": "top"}
_EDGE = {"left": "left", "right": "right", "up": "top", "down": "bottom"}


@register("occluder")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Occluder(World):
    """One shape at constant velocity, in sight at the start, hidden by a wall, in sight at the end.

    The speed follows from the clip's duration. sizes: least and largest radius, in short sides of the frame. hiding:
    least and most that the wall reaches beyond the shape on each side; where the frame is too small for the most, it
    reaches less. place: where between the ends the wall stands, least and most, 0 to 1; at 0.5 the shape is in sight
    for as long before as after. colours: to draw from.
    With sizes=(0.08, 0.1), hiding=(0.06, 0.09), place=(0.45, 0.55) a square clip of 17 frames shows the whole shape in
    2 to 5 frames at each end, and nothing of it in 2 to 4 between, at any frame rate.
    meta has, besides the usual: occluder, with the wall's
    box (left, top, right, bottom); and hidden, the times (from, to) between which nothing is in sight.
    """

    sizes: tuple[float, float] = (0.08, 0.12)
    hiding: tuple[float, float] = (0.03, 0.10)
    place: tuple[float, float] = (0.2, 0.8)
    colours: tuple[str, ...] = tuple(COLOURS)

    def __post_init__(self):
        super().__post_init__()
        for name in ("sizes", "hiding", "place"):
            value = getattr(self, name)
            if not (len(value) == 2 and 0 <= value[0] <= value[1]):
                raise ConfigError(f"{name}={value}: give the least and the most, 0 or more")
        if not self.sizes[0] > 0 or 3 * _WIDEST * self.sizes[1] + 2 * self.hiding[0] > 1 - 4 * _MARGIN:
            raise ConfigError(
                f"sizes={self.sizes}, hiding={self.hiding}: a wall that hides the largest shape must fit between two "
                f"of it; keep {3 * _WIDEST:.2f} * sizes[1] + 2 * hiding[0] at {1 - 4 * _MARGIN:.2f} or less, and "
                "sizes[0] above 0"
            )
        if self.place[1] > 1:
            raise ConfigError(f"place={self.place}: between the ends, give 0 to 1")
        if not self.colours or set(self.colours) - set(COLOURS):
            raise ConfigError(f"colours={self.colours}: choose one or more from {', '.join(COLOURS)}")

    def _render(self, i: int, view: View) -> WorldSample:
        random = self._random(0, i)
        colour = random.choice(list(self.colours)).item()
        shape = random.choice(list(SHAPES)).item()
        direction = random.choice(list(DIRECTIONS)).item()
        radius = random.uniform(*self.sizes)
        level, wall_level = random.uniform(*_GREYS), random.uniform(*_WALL_LEVELS)
        path = _Path.draw(random, shape, direction, radius, view, hiding=self.hiding, place=self.place)
        velocity = (path.end - path.start) / view.duration if view.frames > 1 else np.zeros(2)
        position = path.start + velocity * view.times[:, None]

        share = _wall_share(view, path.wall)[..., None]
        video = canvas(grey(view.size, level), view.frames)
        paint(video, SHAPES[shape], position * view.scale, radius * view.scale, COLOURS[colour])
        video += share * (wall_level - video)

        size = "large" if radius >= sum(self.sizes) / 2 else "small"
        short, detailed = _captions(colour, shape, direction, size, view.frames > 1)
        return WorldSample(
            video=to_uint8(video),
            fps=view.fps,
            caption=short,
            detailed=detailed,
            meta=self._meta(
                i,
                view,
                combo=(colour, shape, direction),
                background={"level": level},
                occluder={"box": path.wall, "level": wall_level},
                hidden=path.hidden(view.duration),
                objects=[
                    {
                        "colour": colour,
                        "shape": shape,
                        "size": radius,
                        "position": position,
                        "velocity": np.broadcast_to(velocity, position.shape).copy(),
                        "visibility": path.visibility(position),
                    }
                ],
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Path:
    """From start to end, each [2], along one axis, behind a wall (left, top, right, bottom)."""

    outline: Shape
    radius: float
    axis: int
    start: np.ndarray
    end: np.ndarray
    wall: tuple[float, float, float, float]

    @classmethod
    def draw(
        cls, random: np.random.Generator, shape: str, direction: str, radius: float, view: View, *,
        hiding: tuple[float, float], place: tuple[float, float],
    ) -> _Path:  # fmt: skip
        outline = SHAPES[shape]
        heading = np.array(DIRECTIONS[direction])
        axis = int(np.abs(heading).argmax())
        low = radius * np.array([outline.left, outline.up])
        high = radius * np.array([outline.right, outline.down])
        box = np.array(view.box)

        ends = np.array([low + _MARGIN, box - high - _MARGIN])
        near = ends[0, axis] + high[axis]
        far = ends[1, axis] - low[axis]
        thickness = low[axis] + high[axis] + 2 * random.uniform(*hiding)
        thickness = min(thickness, far - near - 2 * _MARGIN)
        first = near + _MARGIN + random.uniform(*place) * (far - near - 2 * _MARGIN - thickness)
        wall = [0.0, 0.0, float(box[0]), float(box[1])]
        wall[axis], wall[axis + 2] = float(first), float(first + thickness)

        start, end = np.empty(2), np.empty(2)
        across = 1 - axis
        start[across] = end[across] = random.uniform(ends[0, across], ends[1, across])
        forward = heading[axis] > 0
        start[axis], end[axis] = ends[:, axis] if forward else ends[::-1, axis]
        return cls(outline=outline, radius=radius, axis=axis, start=start, end=end, wall=tuple(wall))

    def _reach(self) -> tuple[float, float]:
        before = (self.outline.left, self.outline.up)[self.axis]
        after = (self.outline.right, self.outline.down)[self.axis]
        return before * self.radius, after * self.radius

    def hidden(self, duration: float) -> tuple[float, float]:
        """The times between which the shape is wholly behind the wall."""
        before, after = self._reach()
        travel = self.end[self.axis] - self.start[self.axis]
        bounds = np.array([self.wall[self.axis] + before, self.wall[self.axis + 2] - after])
        first, last = sorted((bounds - self.start[self.axis]) / travel * duration)
        return float(first), float(last)

    def visibility(self, position: np.ndarray) -> np.ndarray:
        """The share [t] of the shape's area that the wall leaves in sight, at centres [t 2]."""
        edges, below = _area_below(self.outline, self.axis)
        centre = position[:, self.axis]
        share = [
            np.interp((self.wall[k] - centre) / self.radius, edges, below) for k in (self.axis, self.axis + 2)
        ]
        return 1 - (share[1] - share[0])


@functools.cache
def _area_below(outline: Shape, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Places along an axis, in sizes from the centroid, and the share of a shape's area before each."""
    edges = np.linspace(-2, 2, 1002)
    middle = (edges[1:] + edges[:-1]) / 2
    inside = outline.distance(middle[None, :], middle[:, None]) < 0
    below = np.concatenate([[0.0], np.cumsum(inside.sum(axis))])
    return edges, below / below[-1]


def _wall_share(view: View, wall: tuple[float, float, float, float]) -> np.ndarray:
    """The share [h w] of each pixel that the wall covers."""
    height, width = view.size
    across = np.diff(np.clip(np.arange(width + 1) / view.scale, wall[0], wall[2])) * view.scale
    down = np.diff(np.clip(np.arange(height + 1) / view.scale, wall[1], wall[3])) * view.scale
    return (down[:, None] * across[None, :]).astype(np.float32)


def _captions(colour: str, shape: str, direction: str, size: str, moves: bool) -> tuple[str, str]:
    thing = article(f"{colour} {shape}")
    sized = article(f"{size} {colour} {shape}")
    if not moves:
        return f"{thing} beside a grey wall", f"{sentence(sized)} beside a grey wall."
    way = direction if direction in ("up", "down") else f"to the {direction}"
    short = f"{thing} moves {way} behind a grey wall and comes out"
    detailed = (
        f"{sentence(sized)} starts near the {_OPPOSITE[direction]} edge of the frame and moves towards "
        f"the {_EDGE[direction]} edge at a constant speed. It passes behind a grey wall, is hidden by it for "
        f"a moment, and comes out on the other side."
    )
    return short, detailed
