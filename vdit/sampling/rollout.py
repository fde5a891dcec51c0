"""Rollout: a video of any length by a canvas that slides along time, in latents.

The first canvas is an ordinary one. Each later one knows the last latents that were made, as they are, and holds as
many new ones as there is room for: nothing is encoded again, so there is no seam, and nothing else is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from vdit.errors import ConfigError, ShapeError, VditWarning
from vdit.sampling.canvas import Canvas, Grouping
from vdit.types import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slide:
    """How the canvas slides, counted in groups: frames that are made at once (vdit.sampling.canvas.Grouping).

    window: groups of the first canvas. context: how many groups a later canvas knows.
    first: Canvas.first of later canvases: 1, and 0 where all groups are alike, the first one of a video too.
    anchor: later canvases know the video's first group too, in the place that it had.
    """

    window: int
    context: int
    first: int
    anchor: bool = False

    @classmethod
    def of(
        cls, grouping: Grouping, *, window: int, context: int | None = None, anchor: bool = False
    ) -> Slide:
        """window, context: in video frames; context None is half of a later canvas.

        A later canvas is one group shorter than the first where that has a group of another kind at its beginning:
        it holds the positions that are left in a video of the window's length, which are all that a model has seen.
        Raises ShapeError where it would hold no known or no new frames.
        """
        first = 0 if grouping.first == grouping.step and not anchor else 1
        count = 1 + (window - grouping.first) // grouping.step
        later = count - first
        if later < 2:
            least = grouping.first + (1 + first) * grouping.step
            raise ShapeError(
                f"window={window}: once it has slid on it holds no known frames beside new ones, give {least} or more"
            )
        if context is not None and not grouping.step <= context <= (later - 1) * grouping.step:
            raise ShapeError(
                f"context={context}: frames known from before, in a window of {window} give {grouping.step} to "
                f"{(later - 1) * grouping.step}"
            )
        if context is not None and context % grouping.step:
            known = context // grouping.step * grouping.step
            rule = f"{grouping.step} frames are made at once"
            warnings.warn(f"context={context} is rounded down to {known}: {rule}", VditWarning, stacklevel=3)
        context = later // 2 if context is None else context // grouping.step
        return cls(window=count, context=context, first=0 if anchor else first, anchor=anchor)

    @property
    def later(self) -> int:
        """Groups of a later canvas."""
        return self.window - self.first

    @property
    def known(self) -> int:
        """How many of them are known."""
        return self.anchor + self.context

    @property
    def new(self) -> int:
        """How many of them are made."""
        return self.later - self.known


def beginning(head: Array, groups: int, *, patch: int) -> Canvas:
    """The first canvas, of `groups` groups of `patch` latent frames; head: float32 [b t h w c], known, t from 0."""
    return _canvas(head, groups, 0, patch)


def going_on(made: Array, slide: Slide, *, begun: Array, patch: int) -> Canvas:
    """The canvas after latents `made`, float32 [b t h w c], of which it knows the last ones.

    begun: the first latents of the video, which it knows too where the slide has an anchor.
    """
    head = made[:, -slide.context * patch :]
    if slide.anchor:
        head = np.concatenate([begun[:, :patch], head], axis=1)
    return _canvas(head, slide.later, slide.first, patch)


def _canvas(head: Array, groups: int, first: int, patch: int) -> Canvas:
    (b, known, *cell), count = head.shape, groups * patch
    level = np.broadcast_to(np.float32(np.arange(count) >= known)[:, None, None], (b, count, 1, 1))
    latents = np.concatenate([head, np.zeros((b, count - known, *cell), np.float32)], axis=1)
    return Canvas(latents=latents, level=level, first=first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """What is asked for over time: (seconds, prompt), the first from 0 on and each until the next."""

    parts: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, prompts: str | Sequence[tuple[float, str]]) -> Script:
        """A text, or pairs in the order of their times; ConfigError for anything else."""
        parts = ((0.0, prompts),) if isinstance(prompts, str) else tuple(prompts)
        pairs = [part for part in parts if isinstance(part, Sequence) and len(part) == 2 and isinstance(part[1], str)]
        if not parts or len(pairs) < len(parts) or any(isinstance(part, str) for part in parts):
            raise ConfigError(f"prompts={prompts!r}: give a text, or pairs as in [(0.0, 'a dog'), (10.0, 'a cat')]")
        times = [float(time) for time, _ in pairs]
        if times[0] != 0 or not all(a < b < float("inf") for a, b in itertools.pairwise(times)):
            shown = ", ".join(f"{time:g}" for time in times)
            raise ConfigError(f"prompts at {shown} s: the first must be at 0, and each later than the one before")
        return cls(parts=tuple(zip(times, (text for _, text in pairs))))

    def at(self, time: float) -> str:
        """The prompt at a time in seconds."""
        return [text for start, text in self.parts if start <= time + 1e-6][-1]

    def __iter__(self) -> Iterator[tuple[float, str]]:
        return iter(self.parts)
