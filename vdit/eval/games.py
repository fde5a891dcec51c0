"""Where the things of a game are in its frames, and what happens to them: Pong and Breakout of the Atari console.

Nothing here is learned. A pixel of a frame that `vdit record` made is a mix of a few known colours, in proportion to
what covers it. So the mix gives the covers, and their centres are exact to less than a pixel (tests/eval/test_games.py
compares them with the console's memory). Events follow from the paths alone. Thus frames of a model are read as those
of the emulator are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from vdit.errors import ConfigError, ShapeError
from vdit.reprs import short_repr

# Lengths are in pixels of the console. The field is 160 wide, and as high as the rows that are recorded.
_WIDE = 160.0
_HIGH = {"Pong": 160.0, "Breakout": 164.0}
_FAINT = 0.12  # covers below this are rounding of colours
_BALL = 8.0  # area of a ball
_BALL_SEEN = 3.0  # of it, at least, where there is a ball
_PADDLE_SEEN = 8.0  # of a paddle's 60 or 64
_STILL = 1.0  # a step that is no movement
_BRIDGE = 3  # frames for which a ball may be hidden, behind the edge of the field, and still be the same
_GONE = 4  # frames after which a ball that is not seen has left
_NEAR_WALL = 24.0  # from the edge, of a ball that bounces there
# Pong: background, and the two paddles and the ball by colour.
_PONG_GROUND = (144.0, 72.0, 17.0)
_PONG_COLOURS = ((213.0, 130.0, 74.0), (92.0, 186.0, 92.0), (236.0, 236.0, 236.0))
_PONG_PADDLES = {"left_paddle": (15.0, 22.0), "right_paddle": (138.0, 146.0)}  # columns
_PONG_OUT = 34.0  # from a side: where a ball was seen last that is lost there
# Breakout: where the bricks are, and the paddle; its red is that of ball, paddle and first row.
_RED = 200.0
_BRICKS = (6, 18)
_BRICK = (6.0, 8.0)  # height, width
_BRICK_AT = (25.0, 8.0)  # top, left
_LIGHT = (200.0, 198.0, 180.0, 162.0, 160.0, 200.0)  # the largest channel of each row
_AIR = (62.0, 155.0)  # rows in which the ball is seen
_PADDLE_ROWS = (157.0, 161.0)
_SIDES = (8.0, 152.0)  # the field is between them


class Event(NamedTuple):
    """Something that happens. kind: what. frame: the first that shows it. which: to what (a side, a brick)."""

    kind: str
    frame: int
    which: str


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Play:
    """What frames of a game show.

    Attributes:
        things: name -> float64 [t 2], (x, y) of its centre in short sides of the frame; NaN where it is not seen.
        events: in the order of their frames.
    """

    things: Mapping[str, np.ndarray]
    events: tuple[Event, ...]


class Matched(NamedTuple):
    """Events of a video and of the true one. hits: that both have. made: of the video. true: of the true one."""

    hits: int
    made: int
    true: int


def game_of(env: str) -> str:
    """The name of a game: "ALE/Pong-v5" -> "Pong"; that of any other environment is its own."""
    return env.removeprefix("ALE/").rpartition("-")[0] or env


def read_play(game: str, video: np.ndarray) -> Play:
    """Finds the things and events of a game.

    Args:
        game: a name of GAMES.
        video: uint8 [t h w 3], of the field as `vdit record` crops it, at any size from 32 pixels on.

    Raises:
        ConfigError: no such game can be read.
        ShapeError: the video is of another kind, or too small.
    """
    if game not in GAMES:
        raise ConfigError(f"game {game!r} cannot be read: use one of {', '.join(GAMES)}")
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or min(video.shape[1:3]) < 32:
        raise ShapeError(f"video {video.dtype} {list(video.shape)}: give uint8 [t h w 3] of 32 pixels or more")
    return GAMES[game](video)


def match_events(made: Play, true: Play, kind: str | None, *, first: int, within: int) -> Matched:
    """Compares events of one kind, or of all.

    Args:
        made: of the video.
        true: of the true one.
        kind: of event; None for all.
        first: events before this frame do not count.
        within: frames by which an event may be early or late.
    """
    events = [[e for e in play.events if kind in (None, e.kind) and e.frame >= first] for play in (made, true)]
    left, hits = list(events[0]), 0
    for event in events[1]:
        near = [e for e in left if (e.kind, e.which) == (event.kind, event.which)
                and abs(e.frame - event.frame) <= within]  # fmt: skip
        if near:
            left.remove(min(near, key=lambda e: abs(e.frame - event.frame)))
            hits += 1
    return Matched(hits=hits, made=len(events[0]), true=len(events[1]))


def _pong(video: np.ndarray) -> Play:
    field = _Field.of(video, _HIGH["Pong"])
    ground, colours = np.array(_PONG_GROUND), np.array(_PONG_COLOURS)
    cover = (video.astype(np.float32) - ground) @ np.linalg.inv(colours - ground)
    cover = np.where(cover < _FAINT, 0, np.minimum(cover, 1))
    things = {
        name: field.centre(cover[..., colour], columns=_PONG_PADDLES[name], least=_PADDLE_SEEN)
        for colour, name in enumerate(_PONG_PADDLES)
    }
    ball = field.ball(cover[..., 2])
    events = []
    for before, frame in _turns(ball[:, 0]):
        events.append(Event("paddle", frame, "right" if before > 0 else "left"))
    for before, frame in _turns(ball[:, 1]):
        y = ball[frame - 1 if np.isnan(ball[frame, 1]) else frame, 1]
        if (y < _NEAR_WALL) if before < 0 else (y > field.high - _NEAR_WALL):
            events.append(Event("wall", frame, "bottom" if before > 0 else "top"))
    for last in _losses(ball):
        if not _PONG_OUT < ball[last, 0] < _WIDE - _PONG_OUT:
            events.append(Event("score", last + 1, "right" if ball[last, 0] < _WIDE / 2 else "left"))
    return field.play(things | {"ball": ball}, events)


def _breakout(video: np.ndarray) -> Play:
    field = _Field.of(video, _HIGH["Breakout"])
    red = np.clip(video[..., 0].astype(np.float32) / _RED, 0, 1)
    red = np.where(red < _FAINT, 0, red)
    paddle = field.centre(red, rows=_PADDLE_ROWS, columns=_SIDES, least=_PADDLE_SEEN)
    inside = field.weights(rows=_AIR, columns=_SIDES)
    ball = field.ball(red * inside)
    events = []
    for before, frame in _turns(ball[:, 0]):
        x = ball[frame, 0]
        if (x > _SIDES[1] - _NEAR_WALL) if before > 0 else (x < _SIDES[0] + _NEAR_WALL):
            events.append(Event("wall", frame, "right" if before > 0 else "left"))
    for before, frame in _turns(ball[:, 1]):
        if before > 0 and ball[frame, 1] > _AIR[1] - _NEAR_WALL:
            events.append(Event("paddle", frame, "paddle"))
    for last in _losses(ball):
        if ball[last, 1] > _AIR[1] - _NEAR_WALL:
            events.append(Event("score", last + 1, "lost"))
    return field.play({"paddle": paddle, "ball": ball}, [*events, *_bricks_gone(video, field)])


GAMES: dict[str, Callable[[np.ndarray], Play]] = {"Pong": _pong, "Breakout": _breakout}
THINGS = ("ball", "paddle", "left_paddle", "right_paddle")
KINDS = ("wall", "paddle", "score", "brick")


def _bricks_gone(video: np.ndarray, field: _Field) -> list[Event]:
    """Each brick that is there at first, and from some frame on is not."""
    light = video.max(-1).astype(np.float32)
    rows, columns = (
        np.stack([field.along(axis, start + i * size + 1, start + (i + 1) * size - 1) for i in range(count)])
        for axis, (count, size, start) in enumerate(zip(_BRICKS, _BRICK, _BRICK_AT))
    )
    cells = np.einsum("thw,rh,cw->trc", light, rows, columns, optimize=True)
    there = cells / (rows.sum(1)[:, None] * columns.sum(1)) > np.array(_LIGHT)[:, None] / 2
    if len(there) > 2:  # a ball that passes through is there for a frame
        there = ndimage.median_filter(there, size=(3, 1, 1), mode="nearest")
    found = []
    for row, column in itertools.product(*map(range, _BRICKS)):
        gone = np.flatnonzero(there[:-1, row, column] & ~there[1:, row, column])
        if there[0, row, column] and len(gone):
            found.append(Event("brick", int(gone[0]) + 1, f"row {row}, column {column}"))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Field:
    """Pixels of frames in the console's lengths. size: (h, w) of frames. high: rows of the console that they show."""

    size: tuple[int, int]
    high: float

    @classmethod
    def of(cls, video: np.ndarray, high: float) -> _Field:
        return cls(size=video.shape[1:3], high=high)

    @property
    def pixel(self) -> tuple[float, float]:
        """Height and width of a pixel."""
        return self.high / self.size[0], _WIDE / self.size[1]

    def weights(self, *, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
        """float64 [h w]: how much of each pixel is inside."""
        return self.along(0, *rows)[:, None] * self.along(1, *columns)

    def along(self, axis: int, low: float, high: float) -> np.ndarray:
        """float64 [h] or [w]: how much of each row or column of pixels is between two places."""
        length = self.pixel[axis]
        start = np.arange(self.size[axis]) * length
        return np.clip(np.minimum(start + length, high) - np.maximum(start, low), 0, None) / length

    def centre(self, cover: np.ndarray, *, columns: tuple[float, float], least: float,
               rows: tuple[float, float] | None = None) -> np.ndarray:  # fmt: skip
        """(x, y) [t 2] of the centre of what covers [t h w] there; NaN where that is less than an area."""
        inside = self.weights(rows=(0, self.high) if rows is None else rows, columns=columns) > 0
        return self._centres(cover * inside, least)

    def ball(self, cover: np.ndarray) -> np.ndarray:
        """(x, y) [t 2] of the place where a window of a ball's size is covered most."""
        high, wide = (int(np.ceil(length / pixel)) + 1 for length, pixel in zip((4.0, 2.0), self.pixel))
        sums = ndimage.uniform_filter(cover, size=(0, high, wide), mode="constant")
        rows, columns = np.divmod(sums.reshape(len(cover), -1).argmax(1), self.size[1])
        near = np.abs(np.arange(self.size[0]) - rows[:, None])[:, :, None] <= (high + 1) // 2
        near = near & (np.abs(np.arange(self.size[1]) - columns[:, None])[:, None] <= (wide + 1) // 2)
        return self._centres(cover * near, _BALL_SEEN)

    def _centres(self, cover: np.ndarray, least: float) -> np.ndarray:
        areas = cover.sum((1, 2)) * np.prod(self.pixel)
        total = np.maximum(cover.sum((1, 2)), 1e-9)
        y = (cover.sum(2) @ (np.arange(self.size[0]) + 0.5)) / total * self.pixel[0]
        x = (cover.sum(1) @ (np.arange(self.size[1]) + 0.5)) / total * self.pixel[1]
        return np.where(areas[:, None] >= least, np.stack([x, y], axis=1), np.nan)

    def play(self, things: Mapping[str, np.ndarray], events: list[Event]) -> Play:
        """With places in short sides of the frame."""
        scale = np.array([1 / self.pixel[1], 1 / self.pixel[0]]) / min(self.size)
        return Play(things={name: path * scale for name, path in things.items()},
                    events=tuple(sorted(events, key=lambda event: event.frame)))  # fmt: skip


def _turns(place: np.ndarray) -> list[tuple[int, int]]:
    """(direction before, first frame after) of each change of direction of a path [t], with NaN where not seen."""
    found, before, last = [], 0, None
    for frame in np.flatnonzero(np.isfinite(place)):
        if last is not None and frame - last > _BRIDGE:
            before, last = 0, None
        if last is not None and abs(place[frame] - place[last]) > _STILL:
            direction = int(np.sign(place[frame] - place[last]))
            if before and direction != before:
                found.append((before, int(frame)))
            before = direction
        last = frame
    return found


def _losses(ball: np.ndarray) -> list[int]:
    """Frames of a path [t 2] after which it is not seen for a while."""
    seen = np.flatnonzero(np.isfinite(ball[:, 0]))
    ends = [*(a for a, b in itertools.pairwise(seen) if b - a > _GONE), *seen[-1:]]
    return [int(end) for end in ends if len(ball) - 1 - end >= _GONE]
