"""What every world shares: random access by index, the sample it gives, and the registry of names."""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from vdit.errors import ConfigError
from vdit.reprs import short_repr


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldSample:
    """One rendered clip with captions and facts that are true of it.

    video: uint8 [t h w 3].
    actions: float32 [t a], what is done in each frame, where the world is one that something is done in, else None:
        actions[i] leads from frame i - 1 to frame i, actions[0] is 0.
    fps: frames per second.
    caption: the short caption.
    detailed: the long caption.
    meta: plain values and arrays:
        world, seed, index, size (h, w), scale (pixels per unit of length), times [t] in seconds;
        objects: a list of dicts with colour, shape, size (radius in units), position [t d],
            velocity [t d] and visibility [t] (share of the object's outline that is in sight);
        contacts: a list of dicts with time, kind ("wall" or "pair"), objects (their indices) and, for
            a wall, its name; sorted by time;
        camera: a dict with kind "fixed", or "orbit" and its matrices.
    In flat worlds the unit of length is the frame's short side, x points right and y down from the
    top-left corner of the frame, and position * scale is in pixels (the first pixel spans 0..1).
    """

    video: np.ndarray
    fps: float
    caption: str
    detailed: str
    meta: dict[str, Any]
    actions: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """A random-access source of rendered clips: sample i depends only on (seed, i) and the options.

    seed: any int from 0. count: the number of samples. size: (h, w) in pixels. frames, fps: the clip's.
    `render` takes another size, duration or rate for one call; the scene stays the same as long as
    the aspect ratio and the duration do.
    """

    name: ClassVar[str]
    seed: int = 0
    count: int = 100_000
    size: tuple[int, int] = (64, 64)
    frames: int = 17
    fps: float = 8.0

    def __post_init__(self):
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; a world's seed must be 0 or more: choose another")
        if self.count < 1:
            raise ConfigError(f"count is {self.count}; a world needs at least 1 sample: raise it")
        check_view(self.size, self.frames, self.fps)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> WorldSample:
        return self.render(i)

    def render(
        self,
        i: int,
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        fps: float | None = None,
    ) -> WorldSample:
        """Sample i, at its world's size (h, w), frames and fps or at those given."""
        return self._render(self._index(i), self._view(size, frames, fps))

    def _render(self, i: int, view: View) -> WorldSample:
        raise NotImplementedError

    def _index(self, i: int) -> int:
        i = operator.index(i)
        if not -self.count <= i < self.count:
            raise IndexError(f"sample {i} of world {self.name!r} that has {self.count}")
        return i % self.count

    def _view(self, size: tuple[int, int] | None, frames: int | None, fps: float | None) -> View:
        return View(
            size=tuple(self.size if size is None else size),
            frames=self.frames if frames is None else frames,
            fps=self.fps if fps is None else float(fps),
        )

    def _random(self, *place: int) -> np.random.Generator:
        """The random stream of one place (an index, a block of indices) of this world."""
        return np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), *place])

    def _meta(self, i: int, view: View, **more: Any) -> dict[str, Any]:
        return {
            "world": self.name,
            "seed": self.seed,
            "index": i,
            "size": view.size,
            "scale": view.scale,
            "times": view.times,
            "contacts": [],
            "camera": {"kind": "fixed"},
        } | more


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """How one clip is seen: size (h, w) in pixels, frames and fps."""

    size: tuple[int, int]
    frames: int
    fps: float

    def __post_init__(self):
        check_view(self.size, self.frames, self.fps)

    @property
    def scale(self) -> float:
        """Pixels per unit of length."""
        return float(min(self.size))

    @property
    def box(self) -> tuple[float, float]:
        """The frame's (width, height) in units of its short side."""
        height, width = self.size
        return width / self.scale, height / self.scale

    @property
    def times(self) -> np.ndarray:
        """float64 [t], seconds."""
        return np.arange(self.frames) / self.fps

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return (self.frames - 1) / self.fps


def check_view(size: tuple[int, int], frames: int, fps: float) -> None:
    """Refuse what cannot be rendered."""
    if len(size) != 2 or min(size) < 8:
        raise ConfigError(f"size is {size}; worlds need (height, width) of at least 8 pixels: enlarge it")
    if frames < 1:
        raise ConfigError(f"frames is {frames}; a clip needs at least 1 frame: raise it")
    if not (fps > 0 and math.isfinite(fps)):
        raise ConfigError(f"fps is {fps}; it must be a number above 0: choose another")


_REGISTRY: dict[str, type[World]] = {}


def register(name: str) -> Callable[[type[World]], type[World]]:
    """Class decorator: make_one(name) builds this world."""

    def add(cls: type[World]) -> type[World]:
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def names() -> tuple[str, ...]:
    """The worlds that there are."""
    return tuple(sorted(_REGISTRY))


def fields_of(name: str) -> list[str]:
    """The options of the world of that name."""
    if name not in _REGISTRY:
        raise ConfigError(f"world {name!r} is unknown; {nearest(name, names())}")
    return [field.name for field in dataclasses.fields(_REGISTRY[name])]


def make_one(name: str, **options: Any) -> World:
    """The world of that name; options are its fields: seed, count, size, frames, fps and its own."""
    known = fields_of(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"world {name!r} has no option {option!r}; {nearest(option, known)}")
    return _REGISTRY[name](**options)


def nearest(word: str, known: Sequence[str]) -> str:
    """For an error: what of `known` may have been meant, and all of it."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    start = f"the nearest: {', '.join(near)}; " if near else ""
    return f"{start}choose from {', '.join(sorted(known))}"
