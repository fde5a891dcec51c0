"""Near-duplicates: keys that copies share, a comparison of two clips, and clusters with the best copy first.

    pairs of records that share a key -> compare -> cluster

Exact copies share the digest of their decoded frames; container and metadata do not matter. Near copies (re-encoded,
rescaled, with bars, brighter, a little cropped or sped up, cut elsewhere) share some perceptual hashes. The comparison
lays the pictures of two clips over each other in time, and asks that they look alike and that they change alike:
other moments of one scene look alike, but change otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipelines.records import ClipRecord
from data_pipelines.signature import SIDE, Signature
from vdit.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicateOptions:
    """How near-duplicates are found.

    Args:
        likeness: from which mean correlation of aligned pictures clips are copies, 0..1.
        change: from which correlation of what changes in time, 0..1; not asked where nothing changes.
        mirror: whether mirrored copies count.
        bits: of a key. Fewer find more copies, and give more pairs to compare; 16 for millions of clips.
        keys: the most keys of a kind that a clip has; there are `_BANDS` kinds.
        overlap: share of the shorter clip that must lie within the other.
    """

    likeness: float = 0.86
    change: float = 0.7
    mirror: bool = False
    bits: int = 12
    keys: int = 8
    overlap: float = 0.5

    def __post_init__(self) -> None:
        for name in ("likeness", "change", "overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"duplicates: {name} is {getattr(self, name)}, must be above 0 and at most 1")
        if not 4 <= self.bits <= 16 or not 1 <= self.keys <= 256:
            raise ConfigError(f"duplicates: bits {self.bits}, keys {self.keys}: must be 4 to 16, and 1 to 256")


_BANDS = 4


def keys(record: ClipRecord, options: DuplicateOptions | None = None) -> list[str]:
    """What copies of a clip share: records that have a key in common are worth comparing.

    Args:
        record: a measured clip.
        options: DuplicateOptions; None for the defaults.

    Returns:
        Keys, sorted, without repeats: at most one more than 4 times options.keys (8 times with mirror).

    Raises:
        DataError: the clip was not measured.
    """
    options = options or DuplicateOptions()
    pictures = _signature(record).pictures
    found = {f"={record.measures['digest']}"} if "digest" in record.measures else set()
    for images in (pictures, pictures[:, :, ::-1]) if options.mirror else (pictures,):
        found |= _hash_keys(images, options)
    return sorted(found)


def compare(a: ClipRecord, b: ClipRecord, options: DuplicateOptions | None = None) -> bool:
    """Whether two measured clips show the same; the same for (b, a) up to rounding."""
    options = options or DuplicateOptions()
    if a.measures.get("digest") is not None and a.measures.get("digest") == b.measures.get("digest"):
        return True
    first, second = _signature(a), _signature(b)
    flipped = dataclasses.replace(second, pictures=second.pictures[:, :, ::-1])
    return any(_alike(first, other, options) for other in ((second, flipped) if options.mirror else (second,)))


def cluster(records: Iterable[ClipRecord], pairs: Iterable[tuple[str, str]]) -> list[list[ClipRecord]]:
    """Groups of copies.

    Args:
        records: those that the pairs name, at least; others come out in no group.
        pairs: ids of records that are copies of each other.

    Returns:
        The groups of two or more, each with the best copy first, sorted by its id. Copies of copies are in one group.
    """
    records = {record.id: record for record in records}
    numbers = {name: k for k, name in enumerate(sorted(records))}
    pairs = [(numbers[a], numbers[b]) for a, b in pairs]
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(numbers), len(numbers)))
    _, labels = connected_components(graph, directed=False)
    groups: dict[int, list[ClipRecord]] = {}
    for name, k in numbers.items():
        groups.setdefault(int(labels[k]), []).append(records[name])
    found = [sorted(group, key=rank, reverse=True) for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: group[0].id)


def rank(record: ClipRecord) -> tuple[float, float, float, str]:
    """Sorts copies: higher is better. Pixels that hold detail first (an enlarged copy is blurred), then fewer block
    artefacts, then length."""
    measures = record.measures
    number = lambda name, other: float(measures.get(name) or other)  # noqa: E731
    pixels = number("crop_height", 0) * number("crop_width", 0)
    detail = pixels / max(1.0, number("blur", 1.0) / 0.7) ** 2
    return (round(math.log2(max(detail, 1)), 1), -round(number("blockiness", 0), 1), record.duration or 0.0, record.id)


def _signature(record: ClipRecord) -> Signature:
    if record.signature is None:
        raise DataError(f"{record.path}: the clip was not measured: measure it before duplicates are looked for")
    return Signature.from_bytes(record.signature)


# Keys: signs of low frequencies of a picture, which brightness, contrast, scale and codecs hardly change.


@functools.cache
def _places() -> np.ndarray:
    """Places of low frequencies, by rising frequency, dealt to the bands in turn: int [bands, places]."""
    order = sorted(((v, u) for v in range(9) for u in range(9) if 0 < u + v < 10), key=lambda p: (p[0] + p[1], p))
    count = len(order) // _BANDS
    return np.array([[v * SIDE + u for v, u in order[band::_BANDS][:count]] for band in range(_BANDS)])


def _hash_keys(pictures: np.ndarray, options: DuplicateOptions) -> set[str]:
    """The keys of smallest hash of each band, over all pictures: copies choose the same ones, whatever their length.

    A still clip has few; then keys with an unsure bit the other way are added.
    """
    steady = pictures.std((1, 2)) > 4  # of a blank picture the signs are noise
    spectra = [cv2.dct(picture.astype(np.float32)).ravel() for picture in pictures[steady]]
    found: set[str] = set()
    for band, places in enumerate(_places()):
        sure: set[int] = set()
        unsure: dict[int, float] = {}
        for spectrum in spectra:
            values = spectrum[places[: options.bits]]
            key = int((values > 0) @ (1 << np.arange(options.bits)))
            sure.add(key)
            for bit in np.argsort(np.abs(values))[:4]:
                other, doubt = key ^ (1 << int(bit)), float(abs(values[bit]))
                unsure[other] = min(unsure.get(other, math.inf), doubt)
        chosen = sorted(sure, key=lambda key: _mixed(band, key))[: options.keys]
        extra = sorted((key for key in unsure if key not in sure), key=lambda key: (unsure[key], key))
        found |= {f"{band}:{key:04x}" for key in [*chosen, *extra[: options.keys - len(chosen)]]}
    return found


def _mixed(band: int, key: int) -> bytes:
    return hashlib.blake2b(bytes([band, key >> 8, key & 255]), digest_size=8).digest()


# Comparison.

_SPEEDS = (1.0, 0.95, 1 / 0.95, 0.96, 1.04)  # a copy may be played faster; films on television are, by 4%
_VIEWS = [(1.0, 0, 0), *((zoom, x, y) for zoom in (0.95, 0.9, 1 / 0.95, 1 / 0.9)
                         for x in (-1, 0, 1) for y in (-1, 0, 1))]  # or cropped: how much, and at which sides
_UNALIGNED = 0.3  # by how much a copy that is cropped may look less alike before the crop is undone
_STEP_S = 0.125
_STILL = 0.05  # of the spread of a picture: smaller changes in time are coding noise
_STILL_LIKENESS = 0.93


def _alike(a: Signature, b: Signature, options: DuplicateOptions) -> bool:
    if not len(a.times) or not len(b.times):
        return False
    x, y = _normal(a.pictures), _normal(b.pictures)
    correlations = x @ y.T
    if correlations.max() < options.likeness - _UNALIGNED:
        return False
    best, aligned = -1.0, None
    for speed in _SPEEDS:
        score, pairs = _align(correlations, a.times, b.times * speed, options.overlap)
        if pairs is not None and score > best + 1e-6:
            best, aligned = score, pairs
    if aligned is None or best < options.likeness - _UNALIGNED:
        return False
    return _same_moment(a.pictures[aligned[0]], b.pictures[aligned[1]], options)


def _normal(pictures: np.ndarray) -> np.ndarray:
    """float32 [n 256]: without mean, of length 1; zeros where a picture is blank."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 2 * SIDE, flat / np.maximum(length, 1e-6), 0.0)


def _align(
    correlations: np.ndarray, a: np.ndarray, b: np.ndarray, overlap: float
) -> tuple[float, tuple[np.ndarray, np.ndarray] | None]:
    """(mean correlation, (indices in a, indices in b)) of the shift of b in time at which the pictures agree best."""
    span = max(float(a[-1] - a[0]), 1e-6), max(float(b[-1] - b[0]), 1e-6)
    needed = max(1, math.floor(overlap * min(len(a), len(b))))
    best, pairs = -1.0, None
    for shift in np.arange(float(a[0]) - float(b[-1]), float(a[-1]) - float(b[0]) + _STEP_S, _STEP_S):
        there = b + shift
        i = np.clip(np.searchsorted(there, a), 1, max(len(b) - 1, 1)) if len(b) > 1 else np.zeros(len(a), int)
        if len(b) > 1:
            i = np.where(np.abs(there[i - 1] - a) <= np.abs(there[np.minimum(i, len(b) - 1)] - a), i - 1, i)
        near = np.abs(there[i] - a) <= 0.13 if max(span) > 0.3 else np.ones(len(a), bool)
        if near.sum() < needed:
            continue
        k = np.flatnonzero(near)
        score = float(correlations[k, i[k]].mean())
        if score > best:
            best, pairs = score, (k, i[k])
    return best, pairs


def _same_moment(a: np.ndarray, b: np.ndarray, options: DuplicateOptions) -> bool:
    """Whether pictures [n 16 16], laid over each other in time, look alike and change alike."""
    likeness, view = max(
        (float((_normal(a) * _normal(other)).sum(1).mean()), k)
        for k, other in enumerate(_viewed(b, view) for view in _VIEWS)
    )
    if likeness < options.likeness:
        return False
    changes = [_changes(pictures) for pictures in (a, _viewed(b, _VIEWS[view]))]
    if max(float(np.sqrt((change**2).mean())) for change in changes) < _STILL:
        return likeness > max(_STILL_LIKENESS, options.likeness)
    product = [(changes[i] * changes[j]).sum() for i, j in ((0, 1), (0, 0), (1, 1))]
    return bool(product[0] / math.sqrt(max(product[1] * product[2], 1e-9)) >= options.change)


def _changes(pictures: np.ndarray) -> np.ndarray:
    """[n 16 16]: what differs from the clip's mean picture, as a share of that picture's spread."""
    x = pictures.astype(np.float32)
    x -= x.mean((1, 2), keepdims=True)
    middle = x.mean(0)
    return (x - middle) / max(float(middle.std()), 2.0)


def _viewed(pictures: np.ndarray, view: tuple[float, int, int]) -> np.ndarray:
    """A part of pictures [n 16 16] at the same size: (zoom, x, y), `zoom` of the sides, at the left (x -1), in the
    middle (0) or at the right (1), and likewise at the top and the bottom. With a zoom above 1 the edges repeat."""
    zoom, right, down = view
    if zoom == 1.0:
        return pictures
    middle = (SIDE - 1) / 2
    places = (np.arange(SIDE, dtype=np.float32) - middle) * zoom + middle
    shift = abs(1 - zoom) * SIDE / 2
    x, y = np.meshgrid((places + right * shift).astype(np.float32), (places + down * shift).astype(np.float32))
    return np.stack([cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                     for picture in pictures])  # fmt: skip


def group_pairs(records: Sequence[ClipRecord], options: DuplicateOptions | None = None) -> list[tuple[str, str]]:
    """All pairs of copies among records in memory: what the pipeline does with many workers, for a few thousand clips.
    """
    buckets: dict[str, list[ClipRecord]] = {}
    for record in sorted(records, key=lambda record: record.id):
        for key in keys(record, options):
            buckets.setdefault(key, []).append(record)
    asked: dict[tuple[str, str], bool] = {}
    for bucket in buckets.values():
        for k, b in enumerate(bucket):
            for a in bucket[:k]:
                if (a.id, b.id) not in asked:
                    asked[a.id, b.id] = compare(a, b, options)
    return sorted(pair for pair, same in asked.items() if same)
