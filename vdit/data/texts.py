"""Encoded captions on disk: each different caption once, so that a training step holds no text encoder.

A folder of texts is a folder of latents (vdit.data.latents) in which a latent of t frames of one pixel stands for a
caption of t tokens; `captions.json` beside the index says which caption is which. Padding at a caption's end is not
stored: its features are zeros (Wan's T5). The first record is the empty prompt, which captions that are dropped for
classifier-free guidance become.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vdit import paths
from vdit.data.data_source import Sample
from vdit.data.latents import MOST_INDEX, LatentParts, LatentStore
from vdit.data.streams import ProcessShard
from vdit.errors import DataError
from vdit.models.conditions import TEXT_EMPTY, TEXT_FEATURES, EmptyText, TextFeatures
from vdit.models.text.tokenizer import Tokenizer

KEYS = "captions.json"
BATCH = 16  # captions that are encoded at once
_FIX = "encode the captions again (vdit encode-text)"

# Captions -> float [tokens width] of each, without padding.
EncodeTexts = Callable[[Sequence[str]], Sequence[np.ndarray]]


class Texts(Protocol):
    """Where encoded captions are looked up. width, dtype: of their features."""

    width: int
    dtype: str

    def features(self, caption: str) -> np.ndarray:
        """[tokens width] of a caption; DataError where it was not encoded."""


class TextStore:
    """Reads what `write_texts` wrote.

    Attributes:
        identity: changes with the encoder.
        width: of one feature.
        dtype: of features, on disk.
    """

    def __init__(self, path: str | Path):
        path = paths.path(path)
        if not paths.is_file(path / KEYS):
            raise DataError(f"{path}: holds no encoded captions ({KEYS} is missing): make them with vdit encode-text")
        self._store = LatentStore(path)
        note = paths.read_json(path / KEYS, limit=MOST_INDEX, error=DataError, fix=_FIX)
        keys = note.get("keys") if isinstance(note, dict) else None
        if not isinstance(keys, list) or len(keys) != len(self._store) or not all(isinstance(k, str) for k in keys):
            raise DataError(f"{path / KEYS}: must name {len(self._store)} captions: {_FIX}")
        self._places = {key: place for place, key in enumerate(keys)}
        self.path, self.identity = path, self._store.index["vae"]
        self.width, self.dtype = self._store.index["channels"], self._store.index["dtype"]

    def __repr__(self) -> str:
        return f"TextStore('{self.path}', {len(self):,} captions)"

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, caption: str) -> bool:
        return caption_key(caption) in self._places

    def features(self, caption: str) -> np.ndarray:
        """The features of a caption.

        Args:
            caption: one of those that were encoded.

        Returns:
            [tokens width], in the type on disk.

        Raises:
            DataError: the caption is not there, or its record is damaged.
        """
        place = self._places.get(caption_key(caption))
        if place is None:
            raise DataError(f"{self.path}: caption {caption[:60]!r} is not encoded: run vdit encode-text again")
        sample = self._store.read(place, 0)
        if sample["captions"] != [caption] or sample["latent"].shape[1:3] != (1, 1):
            raise DataError(f"{self.path}: record {place} is not of the caption {caption[:60]!r}: {_FIX}")
        return sample["latent"][:, 0, 0]


class TextsInMemory:
    """Features of a few captions: caption -> float [tokens width]."""

    def __init__(self, features: Mapping[str, np.ndarray]):
        self._features = dict(features)
        first = next(iter(self._features.values()))
        self.width, self.dtype = first.shape[-1], str(first.dtype)

    def features(self, caption: str) -> np.ndarray:
        """[tokens width] of a caption."""
        return self._features[caption]


class CachedTokenizer:
    """A tokenizer whose captions are encoded already: packed rows then carry their features.

    tokenizer: of the model. texts: the features of every caption, and of the empty prompt.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Texts):
        self._tokenizer, self._texts = tokenizer, texts

    @property
    def max_length(self) -> int:
        return self._tokenizer.max_length

    @property
    def conditions(self) -> tuple[TextFeatures, ...]:
        """What rows carry beside the token ids."""
        kind = {"width": self._texts.width, "stored": self._texts.dtype}
        return TextFeatures(**kind), EmptyText(**kind)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def length(self, text: str) -> int:
        return self._tokenizer.length(text)

    def read(self, caption: str, tokens: int) -> dict[str, np.ndarray]:
        """The values of `conditions` for one clip.

        Args:
            caption: of the clip.
            tokens: that the caption has in a row, padding included.
        """
        found = self._texts.features(caption)
        if len(found) > tokens:
            raise DataError(f"caption {caption[:60]!r} has {len(found)} features for {tokens} tokens: {_FIX}")
        features = np.zeros((tokens, self._texts.width), found.dtype)
        features[: len(found)] = found
        return {TEXT_FEATURES: features, TEXT_EMPTY: self._empty}

    @functools.cached_property
    def _empty(self) -> np.ndarray:
        empty = self._texts.features("")
        if len(empty) != 1:
            raise DataError(f"the empty prompt has {len(empty)} features, must have 1: {_FIX}")
        return empty[0]


def write_texts(
    path: str | Path, captions: Iterable[str], encode: EncodeTexts, *, identity: str, dtype: str = "float16",
    former: TextStore | None = None, progress: Callable[[int, int], None] | None = None,
    share: tuple[int, int] = (0, 1), wait: Callable[[str], None] | None = None,
) -> TextStore | None:  # fmt: skip
    """Encodes captions into a folder. An interrupted call continues when it is made again.

    Args:
        path: the folder; it is replaced as a whole where it is there.
        captions: any number of times each; the empty prompt is added.
        encode: captions -> float [tokens width] of each.
        identity: changes with the encoder.
        dtype: "float16", "bfloat16" or "float32", on disk.
        former: what the same encoder has encoded before; taken over.
        progress: called with (done, captions of this host) after each batch.
        share: (number of this host, number of hosts); all hosts make the same call in one shared folder.
        wait: called by each host with a name; returns when all hosts have called it.

    Returns:
        The texts; None where there are several hosts and no `wait`.
    """
    unique = list(dict.fromkeys(["", *captions]))
    keys = [caption_key(caption) for caption in unique]
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
    path = paths.path(path)
    parts = LatentParts(path, samples=len(unique), vae=identity, dtype=dtype, key=["texts-1", digest],
                        shard=ProcessShard(index=share[0], count=share[1]), replaces=paths.exists(path))  # fmt: skip
    missing = parts.missing()
    total = sum(len(parts.places(part)) for part in parts.own())
    left = [unique[place] for part in missing for place in parts.places(part)]
    known = former if former is not None and former.identity == identity and former.dtype == dtype else None
    items = _encoded(left, encode, known, total, progress)
    for part in missing:
        parts.write(part, items)
    if wait is None and share[1] > 1:
        return None
    parts.finish(wait, {KEYS: {"keys": keys}})
    return TextStore(path)


def _encoded(
    captions: Sequence[str], encode: EncodeTexts, known: TextStore | None, total: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Sample]:  # fmt: skip
    done = total - len(captions)
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        new = [caption for caption in batch if known is None or caption not in known]
        made = dict(zip(new, encode(new))) if new else {}
        for caption in batch:
            features = made[caption] if caption in made else known.features(caption)
            yield {"latent": np.asarray(features)[:, None, None], "captions": [caption], "id": caption_key(caption)}
        done += len(batch)
        if progress is not None:
            progress(done, total)


def caption_key(caption: str) -> str:
    """What stands for a caption in the index: 64 bits of its hash. A record holds the caption itself."""
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def all_captions(store: LatentStore) -> dict[str, Any]:
    """Every different caption of latents, in the order in which they come."""
    found: dict[str, Any] = {}
    for place in range(len(store)):
        found |= dict.fromkeys(store.read(place, 0)["captions"] or [""])
    return found
