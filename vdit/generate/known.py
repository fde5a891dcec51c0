"""What each verb knows of its canvas, in pixels: builders of References, and the lengths of canvases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy.ndimage import binary_dilation

from vdit.errors import ShapeError
from vdit.sampling.canvas import Grouping
from vdit.sampling.programs import Reference
from vdit.types import Array


def animate(
    images: Array, *, times: Sequence[int] = (0,), frames: int, grouping: Grouping, alone: bool = False
) -> Reference:
    """images: float32 [b k h w 3] in [-1, 1], shown at frames times[k] of a video of `frames` or more -> Reference.

    Frame 0 has a latent frame of its own; an image at another time fills all frames that are made at once with its
    own: the video stands still there for a moment, as far as the model is told. Only frames times[k] are the user's.
    alone: they alone are given, for models that are told of single frames (condition channels).
    Raises ShapeError for times that are not in the video, or two of which are made at once.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 5 or images.shape[1] != len(times) or not images.size:
        raise ShapeError(f"images of shape {images.shape} for {len(times)} times: give [b k h w 3], one for each time")
    for time in times:
        if not 0 <= time < frames:
            raise ShapeError(f"time {time} is not in a video of {frames} frames: use 0 to {frames - 1}")
    index = grouping.index(grouping.canvas(frames))
    group = index[np.asarray(times)]
    if len(set(group.tolist())) < len(group):
        raise ShapeError(
            f"times {', '.join(map(str, times))}: two of them lie within {grouping.step} frames that are made at once: "
            "move one, or leave it out"
        )
    index = index[index <= group.max()]
    nearest = np.abs(np.arange(len(index))[:, None] - np.asarray(times)).argmin(1)
    for k, g in enumerate(group):
        nearest[index == g] = k
    shown = np.isin(np.arange(len(index)), times) if alone else np.isin(index, group)
    level = np.where(shown, 0.0, 1.0).astype(np.float32)
    return Reference(
        video=images[:, nearest], level=np.broadcast_to(level[:, None, None], (len(images), len(level), 1, 1))
    )


def forward(video: Array, *, context: int) -> Reference:
    """Of a canvas whose first `context` frames are the last ones of a video float32 [b t h w 3] in [-1, 1]."""
    return Reference(video=video[:, -context:], level=np.zeros((len(video), context, 1, 1), np.float32))


def backward(video: Array, *, context: int, frames: int) -> Reference:
    """The same for a canvas of `frames` whose last `context` frames are the video's first ones."""
    made = frames - context
    level = np.r_[np.ones(made, np.float32), np.zeros(context, np.float32)]
    return Reference(
        video=np.concatenate([np.repeat(video[:, :1], made, axis=1), video[:, :context]], axis=1),
        level=np.broadcast_to(level[:, None, None], (len(video), frames, 1, 1)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A canvas of `frames`, of which `context` are known."""

    frames: int
    context: int


def forward_windows(
    wanted: int, *, has: int, window: int, grouping: Grouping, context: int | None = None
) -> list[Window]:
    """The canvases, in turn, that make at least `wanted` frames after a video of `has`.

    window: frames of the longest canvas. context: how many frames are known at most; None for what the frames to be
    made leave of the window, and half of it where they are many. Raises ShapeError where that cannot be.
    """
    known = _Kind(least=grouping.first, up_to=grouping.head)
    made = _Kind(least=grouping.step, up_to=grouping.tail)
    window, making = grouping.head(window), grouping.passage(wanted)
    return _windows(wanted, making, known, made, has=has, window=window, context=context)


def backward_windows(
    wanted: int, *, has: int, window: int, grouping: Grouping, context: int | None = None
) -> list[Window]:
    """The canvases, in turn, that make at least `wanted` frames before a video of `has`; as forward_windows."""
    known = _Kind(least=grouping.step, up_to=grouping.tail)
    made = _Kind(least=grouping.first, up_to=grouping.head)
    window, making = grouping.head(window), grouping.canvas(wanted)
    return _windows(wanted, making, known, made, has=has, window=window, context=context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """The numbers of frames that one side of a canvas may have: the least, and the largest of so many at most."""

    least: int
    up_to: Callable[[int], int]


def _windows(
    wanted: int, making: int, known: _Kind, made: _Kind, *, has: int, window: int, context: int | None
) -> list[Window]:
    """making: `wanted`, rounded up. Only the first canvas may know fewer frames than the others, where the video is
    short: those that are alike compile once."""
    if wanted < 1:
        raise ShapeError(f"{wanted} frames to make: give 1 or more")
    if has < known.least:
        raise ShapeError(f"a video of {has} frames is too short to be continued: give {known.least} or more")
    if window < known.least + made.least:
        raise ShapeError(f"window={window} holds no known frames and new ones: give {known.least + made.least} or more")
    if context is not None and not known.least <= context <= window - made.least:
        most = window - made.least
        raise ShapeError(f"context={context}: in a window of {window} frames give {known.least} to {most}")
    usual = known.up_to(max(window // 2, known.least) if context is None else context)
    most = max(window - making, usual) if context is None else usual
    first = known.up_to(min(most, has))
    if first + making <= window:
        return [Window(frames=first + making, context=first)]
    rest = -(-(wanted - (window - first)) // (window - usual))
    return [Window(frames=window, context=first)] + [Window(frames=window, context=usual)] * rest


def connect(first: Array, second: Array, *, frames: int, before: int, after: int) -> Reference:
    """Reference of a canvas: the last `before` frames of `first`, `frames` to be made, the first `after` of `second`.

    first, second: float32 [b t h w 3] in [-1, 1]. What is to be made holds the nearer of the two frames beside it.
    """
    early = -(-frames // 2)
    ends = np.repeat(first[:, -1:], early, axis=1), np.repeat(second[:, :1], frames - early, axis=1)
    video = np.concatenate([first[:, -before:], *ends, second[:, :after]], axis=1)
    level = np.r_[np.zeros(before), np.ones(frames), np.zeros(after)]
    return _given(video, level)


def blend(
    first: Array, second: Array, *, frames: int, before: int, after: int, strength: float, grouping: Grouping
) -> Reference:
    """Of a canvas in which `first` turns into `second` while both run: its last and the other's first `frames`.

    `before` frames of `first` come ahead of them and `after` of `second` follow, as they are. Between, the canvas
    begins from a mix of both whose share moves from one to the other, and its level rises from nearly 0 to `strength`
    in the middle and falls again: near the ends it follows the videos closely, and in the middle the model may make
    something that is neither.
    """
    if not 0 < strength < 1:
        raise ShapeError(f"strength={strength}: how freely the middle is regenerated, give more than 0 and less than 1")
    share = ((np.arange(frames) + 1) / (frames + 1)).astype(np.float32)[:, None, None, None]
    start = first.shape[1] - frames
    mix = (1 - share) * first[:, start:] + share * second[:, :frames]
    video = np.concatenate([first[:, start - before : start], mix, second[:, frames : frames + after]], axis=1)
    groups = frames // grouping.step
    rise = strength * np.sin(np.pi * (np.arange(groups) + 0.5) / groups)
    return _given(video, np.r_[np.zeros(before), np.repeat(rise, grouping.step), np.zeros(after)])


def contexts(frames: int, *, has: tuple[int, int], window: int, grouping: Grouping) -> tuple[int, int] | None:
    """(before, after): known frames on both sides of `frames`, about alike; None if the window is too short for any.

    has: how many there are to be known. Raises ShapeError where they are too few.
    """
    for count, least, where in ((has[0], grouping.first, "before"), (has[1], grouping.step, "after")):
        if count < least:
            raise ShapeError(f"a video of {count} frames is too short {where} a passage: give {least} or more")
    room = window - frames
    if room < grouping.first + grouping.step:
        return None
    after = max(grouping.step, grouping.tail(min(has[1], room // 2)))
    before = grouping.head(min(has[0], room - after))
    return before, grouping.tail(min(has[1], room - before))


def _given(video: np.ndarray, level: np.ndarray) -> Reference:
    level = level.astype(np.float32)[:, None, None]
    return Reference(video=video, level=np.broadcast_to(level, (len(video), *level.shape)))


def loop(video: Array, *, frames: int, before: int, after: int) -> Reference:
    """Reference of a canvas that closes the circle: the last `before` frames of the video, `frames` to be made, and its
    first `after`. video: float32 [b t h w 3] in [-1, 1]; `before` and `after` may overlap in it.
    """
    return connect(video, video, frames=frames, before=before, after=after)


def edit(video: Array, *, strength: Array | float, mask: Array | None = None) -> Reference:
    """float32 [b t h w 3] in [-1, 1] -> Reference that begins from the video.

    strength: the noise level to begin at, 0 to 1, of all frames or [t] of each: 0 keeps it, 1 regenerates it.
    mask: bool [t h w], where; None for everywhere.
    """
    level = np.broadcast_to(np.asarray(strength, np.float32), video.shape[1:2])[:, None, None]
    if mask is not None:
        level = np.where(mask, level, np.float32(0))
    return Reference(video=video, level=np.broadcast_to(level, (len(video), *level.shape)))


def check_strength(strength: Array | float, frames: int) -> np.ndarray:
    """As float32 [t]; ShapeError unless it is above 0 and at most 1, for some frames 0."""
    value = np.asarray(strength, np.float32)
    if value.shape not in ((), (frames,)):
        raise ShapeError(f"strength of shape {value.shape}: give one number, or one for each of {frames} frames")
    if not (np.all(value >= 0) and np.all(value <= 1) and value.max() > 0):
        shown = value if value.ndim == 0 else f"from {value.min()} to {value.max()}"
        raise ShapeError(f"strength={shown}: how much is regenerated, give more than 0 and at most 1")
    return np.broadcast_to(value, (frames,))


def check_mask(mask: Array, shape: tuple[int, ...]) -> np.ndarray:
    """bool [h w] or [t h w], true where something is to be made, -> [t h w]; ShapeError for anything else.

    shape: of the video, [b t h w 3]. A mask of nothing is refused: there would be nothing to do.
    """
    mask, wanted = np.asarray(mask), shape[1:4]
    if mask.dtype != bool:
        raise ShapeError(f"mask of {mask.dtype}: give bool, true where something is to be made")
    if mask.shape not in (wanted, wanted[1:]):
        raise ShapeError(
            f"mask of shape {mask.shape} does not fit the video: give {wanted[1:]}, or {wanted} where it moves"
        )
    if not mask.any():
        raise ShapeError("mask is false everywhere: nothing is to be made, give one that is true somewhere")
    return np.broadcast_to(mask, wanted)


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """bool [t h w], wider by so many pixels on each side in space."""
    if pixels < 0:
        raise ShapeError(f"grow={pixels}: pixels by which the mask is widened, give 0 or more")
    if pixels == 0:
        return mask
    side = 2 * pixels + 1
    rows = binary_dilation(mask, np.ones((1, side, 1), bool))
    return binary_dilation(rows, np.ones((1, 1, side), bool))


def inpaint(video: Array, mask: Array, level: Array | None = None) -> Reference:
    """float32 [b t h w 3] in [-1, 1]; mask: bool [t h w], to be made -> Reference, with the mask filled smoothly.

    level: float32 [t h w], None for 1 where the mask is true, and 0. A latent is known if all of its pixels are; the
    others hold something of what is put into the mask.
    """
    level = np.broadcast_to(np.asarray(mask if level is None else level, np.float32), video.shape[:4])
    return Reference(video=np.stack([smooth_fill(frames, mask) for frames in video]), level=level)


def edge_levels(mask: Array, *, edge: float, stride: int, side: int, first: bool = True) -> np.ndarray:
    """Levels float32 [t h w] of a mask [t h w]: 1 where it is true, but `edge` in latents of which it is only a part.

    stride, side: frames and pixels that a latent stands for, the first frame of a video alone. first: whether the mask
    begins with that.
    """
    if not 0 < edge <= 1:
        raise ShapeError(f"edge={edge}: the level at which latents known in part begin, give more than 0 and at most 1")
    frames, height, width = mask.shape
    ahead, behind = (stride - 1, -(frames - 1) % stride) if first else (0, -frames % stride)
    early = np.pad(mask, ((ahead, behind), (0, 0), (0, 0)), mode="edge")
    cells = early.reshape(-1, stride, height // side, side, width // side, side)
    part = ~cells.all((1, 3, 5), keepdims=True)
    level = np.where(cells, np.where(part, np.float32(edge), np.float32(1)), np.float32(0))
    return level.reshape(early.shape)[ahead:][:frames]


def nearest_shown(mask: Array) -> np.ndarray:
    """int [t]: for each frame the nearest in time of which something is known; itself, where that is so.

    mask: bool [t h w], not true everywhere.
    """
    shown = np.flatnonzero(~mask.all((1, 2)))
    frames = np.arange(len(mask))
    return shown[np.abs(frames[:, None] - shown).argmin(1)]


def smooth_fill(video: Array, mask: Array) -> np.ndarray:
    """float32 [t h w 3], with colours from around where mask [t h w] is true; grey where a frame is masked whole.

    Pull-push (Gortler et al. 1996): the known is averaged down to one pixel, and what is missing at each size is
    interpolated from the next smaller one.
    """
    video = np.asarray(video, np.float32)
    weight = (~np.asarray(mask))[..., None].astype(np.float32)
    return np.where(weight > 0, video, _pull_push(video * weight, weight))


def _pull_push(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours times their weights [t h w 3], weights in [0, 1] [t h w 1] -> colours everywhere."""
    height, width = total.shape[1:3]
    if height == width == 1:
        return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    small, count = _halved(total), _halved(weight)
    below = _pull_push(small / np.maximum(count, 1), np.minimum(count, 1))
    return total + (1 - weight) * _doubled(_doubled(below, 1, height), 2, width)


def _halved(x: np.ndarray) -> np.ndarray:
    """Sums over blocks of 2 x 2: [t h w c] -> [t h/2 w/2 c], rounded up."""
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    x = x[:, ::2] + x[:, 1::2]
    return x[:, :, ::2] + x[:, :, 1::2]


def _doubled(x: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Linear interpolation along an axis from blocks of 2 to `length`."""
    at = np.clip((np.arange(length) + 0.5) / 2 - 0.5, 0, x.shape[axis] - 1)
    low = at.astype(int)
    share = np.expand_dims((at - low).astype(np.float32), tuple(range(1, x.ndim - axis)))
    high = np.minimum(low + 1, x.shape[axis] - 1)
    return (1 - share) * np.take(x, low, axis) + share * np.take(x, high, axis)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A larger frame of `size` (h, w), in which a video of `inner` (h, w) stands `at` (y, x)."""

    size: tuple[int, int]
    inner: tuple[int, int]
    at: tuple[int, int]

    def __post_init__(self) -> None:
        shown = [f"{height}x{width}" for height, width in (self.inner, self.size)]
        if any(inner > size for inner, size in zip(self.inner, self.size)):
            raise ShapeError(
                f"a video of {shown[0]} does not go into a frame of {shown[1]} (height x width): give a larger one"
            )
        if self.inner == self.size:
            raise ShapeError(f"the frame is {shown[1]} as the video is: nothing is to be made, give a larger one")
        room = tuple(size - inner for inner, size in zip(self.inner, self.size))
        if any(not 0 <= at <= most for at, most in zip(self.at, room)):
            raise ShapeError(f"at={self.at}: the video's upper left corner (y, x), give (0, 0) to {room}")

    @classmethod
    def around(
        cls, inner: tuple[int, int], size: tuple[int, int], at: tuple[int, int] | Literal["centre"], cell: int
    ) -> Frame:
        """at "centre": there as nearly as the video's corner falls on a multiple of `cell`, the pixels of a latent, so
        that the fewest latents are known only in part.
        """
        if at == "centre":
            room = [max(0, outer - own) for outer, own in zip(size, inner)]
            at = tuple(min(round(side / 2 / cell), side // cell) * cell for side in room)
        return cls(size=tuple(size), inner=tuple(inner), at=tuple(at))

    @property
    def mask(self) -> np.ndarray:
        """bool [h w]: what is to be made."""
        mask = np.ones(self.size, bool)
        mask[self._inside] = False
        return mask

    def place(self, video: np.ndarray) -> np.ndarray:
        """[b t h w 3] -> the video in the larger frame, grey around."""
        out = np.zeros((*video.shape[:2], *self.size, 3), np.float32)
        out[:, :, *self._inside] = video
        return out

    @property
    def _inside(self) -> tuple[slice, slice]:
        return tuple(slice(at, at + inner) for at, inner in zip(self.at, self.inner))


def size_of_aspect(inner: tuple[int, int], aspect: float, multiple: int) -> tuple[int, int]:
    """The smallest (h, w), in multiples of `multiple`, that holds (h, w) and is nearly `aspect` (width / height)."""
    if not 0 < aspect < float("inf"):
        raise ShapeError(f"aspect={aspect}: width / height, give more than 0")
    height, width = (-(-side // multiple) * multiple for side in inner)
    if aspect * inner[0] >= inner[1]:
        return height, max(width, round(height * aspect / multiple) * multiple)
    return max(height, round(width / aspect / multiple) * multiple), width
