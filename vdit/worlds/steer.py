"""A shape that a player moves: the world of actions."""

from __future__ import annotations

import dataclasses

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.worlds.base import View, World, WorldSample, article, register, sentence
from vdit.worlds.draw import COLOURS, SHAPES, canvas, grey, paint, to_uint8

_LARGEST = 0.3  # leaves room to move
_MARGIN = 0.02  # of a short side, that always remains to the edge
_GREYS = (28.0, 92.0)
_GREY = 60.0  # lighter than this is "grey", darker is "dark grey"
_HOLD = (2, 6)  # frames that a drawn action is held
_ACTIONS = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1))


@register("steer")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Steer(World):
    """One shape, whole in every frame, that each frame takes the step of its action; the frame's edges stop it.

    actions: [t 2] (x to the right, y down), in samples each -1, 0 or 1 and held for a few frames. The shape moves by
        action * step; it counts in frames, whatever their rate, and a longer clip begins as the shorter one does.
    step: in short sides of the frame. sizes: least and largest radius, in short sides.
    meta has, besides the usual: step; displacement [t 2], from the frame before, in short sides; and stopped, bool
    [t 2]: where an edge took some of the step, along x and y.
    """

    step: float = 1 / 16
    sizes: tuple[float, float] = (0.12, 0.18)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.step <= 0.25:
            raise ConfigError(f"step={self.step}: the way of one frame in short sides; give above 0 and at most 0.25")
        if not (len(self.sizes) == 2 and 0 < self.sizes[0] <= self.sizes[1] <= _LARGEST):
            raise ConfigError(
                f"sizes={self.sizes}: give the least and the largest radius, in short sides of the frame, above 0 and "
                f"at most {_LARGEST}"
            )

    def play(
        self, i: int, actions: np.ndarray, *, size: tuple[int, int] | None = None, fps: float | None = None
    ) -> WorldSample:
        """Sample i under other actions, from the same start.

        Args:
            i: index of the sample.
            actions: finite [t 2] (x, y) of any size; the first one is 0.
            size: (h, w) in pixels; None is the world's.
            fps: frames per second; None is the world's.

        Raises:
            ShapeError: the actions have another shape, are not finite, or begin with another value.
        """
        actions = np.asarray(actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != 2 or not len(actions) or not np.isfinite(actions).all():
            raise ShapeError(f"actions of shape {actions.shape}: give finite [t 2], a row (x, y) for each frame")
        if actions[0].any():
            raise ShapeError(f"actions[0]={actions[0].tolist()}: nothing leads to the first frame, make it 0")
        return self._show(self._index(i), self._view(size, len(actions), fps), actions)

    def _render(self, i: int, view: View) -> WorldSample:
        return self._show(i, view, _draw_actions(self._random(2, i), view.frames))

    def _show(self, i: int, view: View, actions: np.ndarray) -> WorldSample:
        random = self._random(0, i)
        colour = random.choice(list(COLOURS)).item()
        shape = random.choice(list(SHAPES)).item()
        radius, level = random.uniform(*self.sizes), random.uniform(*_GREYS)
        outline = SHAPES[shape]
        low = radius * np.array([outline.left, outline.up]) + _MARGIN
        high = np.array(view.box) - radius * np.array([outline.right, outline.down]) - _MARGIN
        position, stopped = _clamped_path(random.uniform(low, high), actions * float(self.step), low, high)
        displacement = np.diff(position, axis=0, prepend=position[:1])

        video = canvas(grey(view.size, level), view.frames)
        paint(video, outline, position * view.scale, radius * view.scale, COLOURS[colour])
        size = "large" if radius >= sum(self.sizes) / 2 else "small"
        background = "grey" if level >= _GREY else "dark grey"
        short = article(f"{colour} {shape}")
        detailed = f"{sentence(article(f'{size} {colour} {shape}'))} on a plain {background} background"
        if view.frames > 1:
            short += " that is steered"
            detailed += " is steered: from frame to frame it takes a step or stands still, and the edges stop it"
        return WorldSample(
            video=to_uint8(video),
            fps=view.fps,
            caption=short,
            detailed=detailed + ".",
            actions=actions,
            meta=self._meta(
                i,
                view,
                background={"level": level},
                step=float(self.step),
                displacement=displacement,
                stopped=stopped,
                objects=[
                    {
                        "colour": colour,
                        "shape": shape,
                        "size": radius,
                        "position": position,
                        "velocity": displacement * view.fps,
                        "visibility": np.ones(view.frames),
                    }
                ],
            ),
        )


def _draw_actions(random: np.random.Generator, frames: int) -> np.ndarray:
    """float32 [t 2]: each held for a few frames."""
    drawn = [(0, 0)]
    while len(drawn) < frames:
        hold = int(random.integers(_HOLD[0], _HOLD[1] + 1))
        drawn += [_ACTIONS[random.integers(len(_ACTIONS))]] * hold
    return np.array(drawn[:frames], np.float32)


def _clamped_path(
    start: np.ndarray, steps: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions [t 2] after each of the steps [t 2], between low and high, and where an edge stopped it, bool [t 2]."""
    positions, stopped = [], []
    position = start
    for step in steps.astype(np.float64):
        target = position + step
        position = np.clip(target, low, high)
        positions.append(position)
        stopped.append(np.abs(target - position) > 1e-9)  # steps back to an edge end there, but for rounding
    return np.array(positions), np.array(stopped)
