"""A shape that passes behind a wall and comes out where it must: the world of object permanence."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from vdit.worlds import words
from vdit.worlds.base import View, World, WorldSample, register
from vdit.worlds.draw import COLOURS, SHAPES, Shape, canvas, grey, paint, to_uint8
from vdit.worlds.moving import DIRECTIONS

_SIZES = (0.08, 0.12)
_LARGE = 0.10
_HIDING = (0.03, 0.10)  # of a short side, that the wall reaches beyond the shape on each side
_MARGIN = 0.02
_GREYS = (28.0, 70.0)
_WALL_LEVELS = (120.0, 180.0)
_OPPOSITE = {"left": "right", "right": "left", "up": "bottom", "down": "top"}
_EDGE = {"left": "left", "right": "right", "up": "top", "down": "bottom"}


@register("occluder")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Occluder(World):
    """One shape at constant velocity, in sight at the start, hidden by a wall, in sight at the end.

    The speed follows from the clip's duration. meta has, beside the usual: occluder, with the wall's
    box (left, top, right, bottom); and hidden, the times (from, to) between which nothing is in sight.
    """

    def _render(self, i: int, view: View) -> WorldSample:
        random = self._random(0, i)
        colour = random.choice(list(COLOURS)).item()
        shape = random.choice(list(SHAPES)).item()
        direction = random.choice(list(DIRECTIONS)).item()
        radius = random.uniform(*_SIZES)
        level, wall_level = random.uniform(*_GREYS), random.uniform(*_WALL_LEVELS)
        path = _Path.draw(random, shape, direction, radius, view)
        velocity = (path.end - path.start) / view.duration if view.frames > 1 else np.zeros(2)
        position = path.start + velocity * view.times[:, None]

        share = _wall_share(view, path.wall)[..., None]
        video = canvas(grey(view.size, level), view.frames)
        paint(video, SHAPES[shape], position * view.scale, radius * view.scale, COLOURS[colour])
        video += share * (wall_level - video)

        short, detailed = _captions(
            colour, shape, direction, "large" if radius >= _LARGE else "small", view.frames > 1
        )
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
        cls, random: np.random.Generator, shape: str, direction: str, radius: float, view: View
    ) -> _Path:
        outline = SHAPES[shape]
        heading = np.array(DIRECTIONS[direction])
        axis = int(np.abs(heading).argmax())
        low = radius * np.array([outline.left, outline.up])
        high = radius * np.array([outline.right, outline.down])
        box = np.array(view.box)

        ends = np.array([low + _MARGIN, box - high - _MARGIN])
        near = ends[0, axis] + high[axis]
        far = ends[1, axis] - low[axis]
        thickness = low[axis] + high[axis] + 2 * random.uniform(*_HIDING)
        thickness = min(thickness, far - near - 2 * _MARGIN)
        first = near + _MARGIN + random.uniform(0.2, 0.8) * (far - near - 2 * _MARGIN - thickness)
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
    thing = words.article(f"{colour} {shape}")
    sized = words.article(f"{size} {colour} {shape}")
    if not moves:
        return f"{thing} beside a grey wall", f"{words.sentence(sized)} beside a grey wall."
    way = direction if direction in ("up", "down") else f"to the {direction}"
    short = f"{thing} moves {way} behind a grey wall and comes out"
    detailed = (
        f"{words.sentence(sized)} starts near the {_OPPOSITE[direction]} edge of the frame and moves towards "
        f"the {_EDGE[direction]} edge at a constant speed. It passes behind a grey wall, is hidden by it for "
        f"a moment, and comes out on the other side."
    )
    return short, detailed
