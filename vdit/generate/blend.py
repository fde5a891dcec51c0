"""What a user gave comes back as given, and what was made joins it without a jump.

A VAE's decoding differs from what it encoded: a little blur, a little tint. Where given and made pixels meet, in space
or in time, two things are done, one after the other, both on a stream of frames in flat memory:

- Colour. Low frequencies of the difference are measured on the given pixels, extended into the made ones nearby by
  normalised convolution (Knutsson and Westin 1993), and taken off, less and less with distance.
- Motion (joins="motion"). The frames beside a join in time are mixed with the given frame, carried along by the motion
  between the model's own pictures of both, as in motion-compensated filtering (Dubois and Sabri 1984): fine detail is
  given back a little differently in each latent frame, and edges would flicker. Where the two pictures differ by more
  than the decoder is known to err there, something else has come into view, and what was made stays.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from vdit.errors import ConfigError, ShapeError
from vdit.types import Array
from vdit.video.flow import flow, warped

JOINS = ("motion", "colour")  # how made frames may meet given ones in time
CHUNK = 32  # frames that are corrected at a time
REACH = 4.0  # sigmas; farther nothing is corrected
BLOCKS = 4  # low frequencies are computed on blocks of 1/4 sigma
TIME_SIGMA = 4.0
FRAMES = 4  # on each side of a join that are mixed, less with each
_TRUSTED = 2.0  # times the decoder's own error: differences up to about this are put down to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blend:
    """How made pixels meet given ones.

    sigma: (frames, pixels) over which the difference of colour is averaged, and fades; None for 4 frames and an eighth
        of the shorter side.
    joins: "motion" also mixes frames beside a join with the given frame, moved along; "colour" only matches colours.
    """

    sigma: tuple[float, float] | None = None
    joins: str = "motion"

    def __post_init__(self) -> None:
        if self.sigma is not None and not min(self.sigma) > 0:
            raise ShapeError(f"sigma={self.sigma}: (frames, pixels), both above 0")
        if self.joins not in JOINS:
            raise ConfigError(f"joins={self.joins!r}: use one of {', '.join(JOINS)}")

    def of(self, height: int, width: int) -> tuple[float, float]:
        """sigma for frames of this size."""
        return (TIME_SIGMA, max(1.0, min(height, width) / 8)) if self.sigma is None else self.sigma


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Some frames of one video.

    made: float32 [t h w 3] in [-1, 1], the model's decoding, of known parts too. reference: float32 [t h w 3], what was
    given; None where nothing is known. known: bool [t h w] or [t 1 1], where it counts. more: whether anything is known
    of later frames; where not, they come at once.
    """

    made: Array
    reference: Array | None = None
    known: Array | None = None
    more: bool = True


def keep_reference(
    made: np.ndarray, reference: np.ndarray, known: np.ndarray, blend: Blend | None = None
) -> np.ndarray:
    """The reference where it is known, bit for bit; elsewhere what was made, in its colours near the edge.

    Args:
        made: float32 [t h w 3] in [-1, 1], the model's own decoding of the whole canvas, known parts included.
        reference: [t' h w 3], t' of at most t frames: nothing is known of later ones.
        known: bool [t' h w] or [t' 1 1].
        blend: None for the usual one.

    Returns: float32 [t h w 3].

    Raises: ShapeError where the shapes do not belong together.
    """
    known = _checked(made, reference, known)
    first = Piece(made=made[: len(known)], reference=reference, known=known, more=False)
    out, done = np.empty(made.shape, np.float32), 0
    for frames in keep_stream([first, Piece(made=made[len(known) :], more=False)], blend):
        out[done : done + len(frames)] = frames
        done += len(frames)
    return out


def keep_stream(pieces: Iterable[Piece], blend: Blend | None = None) -> Iterator[np.ndarray]:
    """`keep_reference` of a video that comes in pieces: float32 [t h w 3], some frames at a time, all in their order.

    The same frames as of the whole. Frames come later than they are given by the reach of what is known: about 20.
    """
    blend = Blend() if blend is None else blend
    frames = _coloured(pieces, blend)
    yield from _met(frames) if blend.joins == "motion" else _put_back(frames)


@dataclasses.dataclass(kw_only=True)
class _Frame:
    """One frame on its way. out: float32 [h w 3]. reference, known: None where nothing is known."""

    out: np.ndarray
    reference: np.ndarray | None = None
    known: np.ndarray | None = None
    last: bool = False  # nothing is known of later frames
    total: np.ndarray | None = None  # sums of the difference over blocks, and how many pixels they are of
    count: np.ndarray | None = None

    @property
    def whole(self) -> bool:
        """Whether it is given from edge to edge."""
        return self.known is not None and bool(self.known.all())

    def finished(self) -> np.ndarray:
        """With what is known as it was given."""
        np.clip(self.out, -1.0, 1.0, out=self.out)
        if self.known is not None:
            where = np.broadcast_to(self.known, self.out.shape[:2])
            self.out[where] = self.reference[where]
        return self.out


def _checked(made: np.ndarray, reference: np.ndarray, known: np.ndarray) -> np.ndarray:
    """known, bool; ShapeError where the shapes do not belong together."""
    known = np.asarray(known)
    frames = len(reference)
    if made.ndim != 4 or reference.shape != (frames, *made.shape[1:]) or frames > len(made):
        raise ShapeError(f"reference of shape {reference.shape} must be as made, {made.shape}, or of fewer frames")
    if known.dtype != bool or known.shape not in ((frames, *made.shape[1:3]), (frames, 1, 1)):
        raise ShapeError(f"known, {known.dtype} {known.shape}, must be bool, of [{frames} h w] or [{frames} 1 1]")
    return known


def _coloured(pieces: Iterable[Piece], blend: Blend) -> Iterator[_Frame]:
    """Frames with the difference of colour taken off; known pixels are not put back yet."""
    behind: collections.deque[_Frame] = collections.deque()  # frames that are through, and count for the next ones
    waiting: list[_Frame] = []
    fade: _Fade | None = None

    def corrected(enough: int) -> Iterator[_Frame]:
        """Those that wait, while there are so many."""
        while waiting and len(waiting) >= enough:
            count = min(CHUNK, len(waiting))
            fade.take_off(list(behind), waiting[: count + fade.halo], count)
            yield from waiting[:count]
            behind.extend(waiting[:count])
            del waiting[:count]
            while len(behind) > fade.halo:
                behind.popleft()

    for frame in _frames(pieces):
        fade = _Fade.of(frame.out.shape, blend) if fade is None else fade
        fade.measure(frame)
        waiting.append(frame)
        yield from corrected(0 if frame.last else CHUNK + fade.halo)
    yield from corrected(0)


def _frames(pieces: Iterable[Piece]) -> Iterator[_Frame]:
    for piece in pieces:
        for k, made in enumerate(piece.made):
            frame = _Frame(out=np.clip(np.array(made, np.float32), -1.0, 1.0))
            if piece.known is not None and piece.known[k].any():
                frame.reference, frame.known = np.asarray(piece.reference[k], np.float32), piece.known[k]
            frame.last = not piece.more and k == len(piece.made) - 1
            yield frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fade:
    """The correction of colour for frames of one size, computed on blocks of side x side.

    sigma: (frames, pixels). up: from blocks to pixels, along height and width. halo: frames within reach.
    """

    sigma: tuple[float, float]
    side: int
    up: tuple[np.ndarray, np.ndarray]
    halo: int

    @classmethod
    def of(cls, shape: tuple[int, ...], blend: Blend) -> _Fade:
        height, width, _ = shape
        sigma = blend.of(height, width)
        side = max(1, int(sigma[1] / BLOCKS))
        up = _between(height, side), _between(width, side)
        return cls(sigma=sigma, side=side, up=up, halo=math.ceil(REACH * sigma[0]) + 1)

    def measure(self, frame: _Frame) -> None:
        """Notes the frame's difference, where it is known."""
        if frame.known is not None:
            mask = np.broadcast_to(frame.known, frame.out.shape[:2])[..., None].astype(np.float32)
            frame.total = _block_sums((frame.reference - frame.out) * mask, self.side)
            frame.count = _block_sums(mask, self.side)

    def take_off(self, behind: list[_Frame], waiting: list[_Frame], count: int) -> None:
        """Takes the difference off the first `count` of those that wait. behind, waiting: all within reach of them."""
        near = [*behind, *waiting]
        if not any(frame.known is not None for frame in near):
            return
        shape = len(near), self.up[0].shape[1], self.up[1].shape[1]
        total, number = np.zeros((*shape, 3), np.float32), np.zeros((*shape, 1), np.float32)
        for k, frame in enumerate(near):
            if frame.known is not None:
                total[k], number[k] = frame.total, frame.count
        low = _extended(total, number, (self.sigma[0], self.sigma[1] / self.side, self.sigma[1] / self.side))
        for k, frame in enumerate(waiting[:count], start=len(behind)):
            more = np.einsum("hy,yxc,wx->hwc", self.up[0], low[k], self.up[1], optimize=True)
            frame.out = np.clip(frame.out + more, -1.0, 1.0)


def _extended(total: np.ndarray, count: np.ndarray, near: tuple[float, float, float]) -> np.ndarray:
    """Sums [t h' w' 3] of the difference over known pixels and their counts -> the correction everywhere."""
    distance = distance_transform_edt(count[..., 0] == 0, sampling=[1 / n for n in near])
    fade = np.exp(-(distance**2) / 2) - math.exp(-(REACH**2) / 2)
    blur = {"sigma": (*near, 0), "mode": "constant", "truncate": REACH}
    total, count = gaussian_filter(total, **blur), gaussian_filter(count, **blur)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return mean * np.maximum(fade, 0)[..., None].astype(np.float32)


def _block_sums(image: np.ndarray, side: int) -> np.ndarray:
    """[h w c] -> [h' w' c], sums over blocks of side x side; the last ones may be smaller."""
    if side == 1:
        return image
    rows = np.add.reduceat(image, np.arange(0, image.shape[0], side), axis=0)
    return np.add.reduceat(rows, np.arange(0, image.shape[1], side), axis=1)


def _between(length: int, side: int) -> np.ndarray:
    """float32 [length blocks]: linear interpolation from the middles of blocks of `side` to pixels."""
    blocks = -(-length // side)
    at = np.clip((np.arange(length) + 0.5) / side - 0.5, 0, blocks - 1)
    below = np.minimum(at.astype(int), max(blocks - 2, 0))
    share = at - below
    weights = np.zeros((length, blocks), np.float32)
    weights[np.arange(length), below] = 1 - share
    weights[np.arange(length), np.minimum(below + 1, blocks - 1)] += share
    return weights


def _put_back(frames: Iterable[_Frame]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame.finished()[None]


def _met(frames: Iterable[_Frame]) -> Iterator[np.ndarray]:
    """Frames next to given ones, mixed with them; and what is known put back.

    The share of a given frame falls as cos^2 with the distance; where two are near, both shares add up to 1 at most.
    """
    held: collections.deque[_Frame] = collections.deque()  # up to FRAMES behind the next one, and those ahead of it
    at = 0  # of the next one, in `held`
    error: dict[int, np.ndarray] = {}

    def mixed() -> np.ndarray:
        nonlocal at
        frame, more = held[at], None
        if not frame.whole:
            near = list(_beside(at, held))
            shares = [_share(distance) for distance, _ in near]
            for share, (_, source) in zip(shares, near):
                wrong = error.setdefault(id(source), _local(source.reference - source.out))
                if wrong.any():
                    step = share / max(1.0, sum(shares)) * _step(frame.out, source.out, source.reference, wrong)
                    more = step if more is None else more + step
        out = _Frame(
            out=frame.out.copy() if more is None else frame.out + more, reference=frame.reference, known=frame.known
        ).finished()[None]  # fmt: skip
        at += 1
        if at > FRAMES:
            error.pop(id(held.popleft()), None)
            at -= 1
        return out

    for frame in frames:
        held.append(frame)
        if frame.last:
            while at < len(held):
                yield mixed()
        elif len(held) - at > FRAMES:
            yield mixed()
    while at < len(held):
        yield mixed()


def _beside(at: int, held: collections.deque[_Frame]) -> Iterator[tuple[int, _Frame]]:
    """(frames away, frame) of the nearest given frame before and after, of those in reach."""
    for way in (-1, 1):
        for distance in range(1, FRAMES + 1):
            source = at + way * distance
            if 0 <= source < len(held) and held[source].whole:
                yield distance, held[source]
                break


def _share(distance: int) -> float:
    """Of the given frame in the one so many frames away: all of it in the next one."""
    return float(np.cos(np.pi / 2 * (distance - 1) / FRAMES) ** 2)


def _step(made: Array, source: Array, given: Array, error: Array) -> Array:
    """What to add to a made frame [h w 3] to show the given one. source: the model's picture of that one."""
    moved = flow((made + 1) * 127.5, (source + 1) * 127.5)
    allowed = _TRUSTED**2 * np.clip(warped(error, moved), 0, None)
    differs = _local(warped(source, moved) - made)
    trust = np.exp(-differs / (2 * allowed + 1e-12))
    return trust * (warped(given, moved) - made)


def _local(x: Array) -> Array:
    """The mean square of [h w 3] around each pixel: [h w 1]."""
    sigma = max(1.5, min(x.shape[:2]) / 32)
    return gaussian_filter(np.square(x, dtype=np.float32).mean(-1, keepdims=True), (sigma, sigma, 0), mode="nearest")
