"""Sample the held-out prompts, and say which videos show what they were asked for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from vdit.eval.detectors import Detection, detect
from vdit.eval.metrics import edge_sharpness, psnr
from vdit.generate import Generator
from vdit.quickstart.config import Wanted

PARTS = ("colour", "shape", "direction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """The sampled videos beside real ones of the same prompts, in the order of the prompts.

    videos: float32 [n t h w 3], sampled. rendered: uint8 [n t h w 3]. reconstructed: float32, rendered after
    the VAE. right: bool [n 3], whether the sample's colour, shape and direction are as wanted.
    """

    wanted: Sequence[Wanted]
    videos: np.ndarray
    rendered: np.ndarray
    reconstructed: np.ndarray
    right: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Shares of videos with the right colour, shape and direction, and "all" three at once.

    shares: of the samples. rendered: of real videos of the same prompts after the VAE, which is the most
    that the DiT can reach. shuffled: of the samples, each held against another's prompt. chance: what
    perfect samples would reach, on average, against each other's prompts. psnr: of the VAE on those real
    videos, in dB. sharpness, rendered_sharpness: of edges, of the samples and of real videos after the VAE, as
    shares of that of the real videos (`vdit.eval.metrics.edge_sharpness`).
    """

    shares: dict[str, float]
    rendered: dict[str, float]
    shuffled: dict[str, float]
    chance: dict[str, float]
    psnr: float
    sharpness: float
    rendered_sharpness: float


def measure(
    generator: Generator, wanted: Sequence[Wanted], videos: np.ndarray, rendered: np.ndarray, *, batch: int
) -> tuple[Measured, Samples]:
    """Measures how many videos show what their prompts say.

    Args:
        generator: the trained model.
        wanted: the prompts.
        videos: float32 [n t h w 3] in [-1, 1], sampled for `wanted`.
        rendered: uint8 [n t h w 3], real videos of the same prompts.
        batch: videos that go through the VAE at once.

    Returns:
        (the figures, the videos that they are of).
    """
    reconstructed = reconstruct(generator, rendered, batch=batch)
    found = [detect(video) for video in videos]
    right = hits(found, wanted)
    others = [wanted[i] for i in derangement(len(wanted))]
    real, sampled, again = (_sharpness(group) for group in (rendered, videos, reconstructed))
    measured = Measured(
        shares=shares(right),
        rendered=shares(hits([detect(video) for video in reconstructed], wanted)),
        shuffled=shares(hits(found, others)),
        chance=chance(wanted),
        psnr=psnr(rendered, _as_bytes(reconstructed)),
        sharpness=sampled / real,
        rendered_sharpness=again / real,
    )
    return measured, Samples(
        wanted=wanted, videos=videos, rendered=rendered, reconstructed=reconstructed, right=right
    )


def sample_videos(
    generator: Generator, prompts: Sequence[str], *, batch: int, progress: Callable[[int], None]
) -> np.ndarray:
    """Samples videos with the experiment's own sampling options; one compilation serves all batches.

    Args:
        generator: the trained model.
        prompts: n texts.
        batch: videos at once.
        progress: called with the number of finished videos.

    Returns:
        float32 [n t h w 3] in [-1, 1].
    """
    videos = []
    for start in range(0, len(prompts), batch):
        texts = list(prompts[start : start + batch])
        padded = texts + [""] * (batch - len(texts))
        videos.append(np.asarray(generator(padded, seed=start))[: len(texts)])
        progress(start + len(texts))
    return np.concatenate(videos)


def reconstruct(generator: Generator, videos: np.ndarray, *, batch: int) -> np.ndarray:
    """Videos through the VAE and back.

    Args:
        generator: the trained model.
        videos: uint8 [n t h w 3].
        batch: videos at once.

    Returns:
        float32 [n t h w 3] in [-1, 1].
    """
    parts = [videos[start : start + batch] for start in range(0, len(videos), batch)]
    return np.concatenate([np.asarray(generator.vae.decode(generator.vae.encode(part))) for part in parts])


def hits(found: Sequence[Detection], wanted: Sequence[Wanted]) -> np.ndarray:
    """Whether colour, shape and direction of each video are as wanted: bool [n 3]."""
    return np.array([[getattr(d, part) == getattr(w, part) for part in PARTS] for d, w in zip(found, wanted)])


def shares(right: np.ndarray) -> dict[str, float]:
    """The share of videos with the right colour, shape, direction, and all three."""
    return dict(zip(PARTS, right.mean(0).tolist())) | {"all": float(right.all(1).mean())}


def derangement(count: int, seed: int = 0) -> np.ndarray:
    """A permutation of 0..count-1 in one single cycle, so that no index stays (Sattolo, 1986)."""
    order, random = np.arange(count), np.random.default_rng(seed)
    for last in range(count - 1, 0, -1):
        other = int(random.integers(last))
        order[[last, other]] = order[[other, last]]
    return order


def chance(wanted: Sequence[Wanted]) -> dict[str, float]:
    """The shares that videos which are all right reach, on average, against each other's prompts."""
    pairs = len(wanted) * (len(wanted) - 1)
    keys = {part: [getattr(w, part) for w in wanted] for part in PARTS} | {"all": [w[:3] for w in wanted]}
    return {name: sum(n * (n - 1) for n in Counter(values).values()) / pairs for name, values in keys.items()}


def _sharpness(videos: np.ndarray) -> float:
    return float(np.mean([edge_sharpness(video) for video in videos]))


def _as_bytes(videos: np.ndarray) -> np.ndarray:
    return np.round((videos + 1) * 127.5).astype(np.uint8)
