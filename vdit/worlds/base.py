"""What every world shares: random access by index, its samples, worlds by name, mixes of worlds, words of captions."""

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
        """Sample i, in the world's own size, frames and fps or in those given.

        Args:
            i: index, from -count to count - 1.
            size: (h, w) in pixels.
            frames: number of frames.
            fps: frames per second.

        Raises:
            IndexError: there is no such sample.
        """
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
    """Refuses sizes that cannot be rendered.

    Args:
        size: (h, w) in pixels, each at least 8.
        frames: at least 1.
        fps: a number above 0.

    Raises:
        ConfigError: one of them is not.
    """
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
    """What of `known` may have been meant, and all of it, for an error."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    start = f"the nearest: {', '.join(near)}; " if near else ""
    return f"{start}choose from {', '.join(sorted(known))}"


_OF_ALL = tuple(field.name for field in dataclasses.fields(World))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed(World):
    """Several worlds in turn: sample i is sample i // n of part i % n, of n parts.

    So any n samples in a row have one of each part, and what a part shows does not depend on the others. meta is
    that of the part: its own name and index.
    """

    parts: tuple[World, ...]

    @property
    def name(self) -> str:
        """The names of the parts, joined by "+"."""
        return "+".join(part.name for part in self.parts)

    def _render(self, i: int, view: View) -> WorldSample:
        at, turn = divmod(i, len(self.parts))
        return self.parts[turn].render(at, size=view.size, frames=view.frames, fps=view.fps)


def make(name: str, **options: Any) -> World:
    """The world of a name, or an even mix of several, such as "moving+occluder".

    Args:
        name: of `names()`, or several joined by "+".
        options: fields of the world: seed, count, size, frames, fps and its own. In a mix these five are for the whole
        mix.
            Another option is for each part that has it. "occluder.hiding" (given as a dict's key) is for that part
            alone, and overrides the option for all.

    Raises:
        ConfigError: there is no such world, a world is named twice, or no part has the option.
    """
    parts = name.split("+")
    if len(parts) == 1:
        return make_one(name, **options)
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise ConfigError(f"world {name!r} has {twice!r} twice: a mix is even, name each of its worlds once")
    known = {part: fields_of(part) for part in parts}
    for option in options:
        _check_option(option, name, known)
    of_all = {option: options[option] for option in _OF_ALL if option in options}
    count = of_all.get("count", World.count)
    mixed = []
    for place, part in enumerate(parts):
        shared = {option: value for option, value in options.items() if option in known[part]}
        prefix = part + "."
        own = {option.removeprefix(prefix): options[option] for option in options if option.startswith(prefix)}
        each = max(1, -(-(count - place) // len(parts)))
        mixed.append(make_one(part, **shared | own | {"count": each}))
    return Mixed(parts=tuple(mixed), **of_all)


def _check_option(option: str, name: str, known: dict[str, list[str]]) -> None:
    part, dot, own = option.rpartition(".")
    if not dot:
        every = sorted({field for fields in known.values() for field in fields})
        if option not in every:
            raise ConfigError(f"no world of {name!r} has an option {option!r}; {nearest(option, every)}")
    elif part not in known:
        raise ConfigError(f"option {option!r} is for a world that is not in {name!r}; {nearest(part, list(known))}")
    elif own in _OF_ALL:
        raise ConfigError(f"option {option!r}: {own} is the same for all of a mix, give it without {part!r}")


def article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def join_words(parts: Sequence[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last


def list_balls(colours: Sequence[str], sizes: Sequence[str] | None = None) -> str:
    """A list of balls in words, each with its article.

    Args:
        colours: of the balls.
        sizes: "large" or "small" for each; None leaves sizes out.
    """
    named = [f"{colour} ball" for colour in colours]
    if sizes is not None:
        named = [f"{size} {name}" for size, name in zip(sizes, named)]
    return join_words([article(name) for name in named])


def sentence(words: str) -> str:
    """The words with a capital at the front."""
    return words[0].upper() + words[1:]
