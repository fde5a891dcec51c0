"""Metrics of whole sets of videos by the features of a net: Fréchet distance, MMD, precision and recall, text score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vdit.errors import ShapeError
from vdit.eval.evaluate import Better, Features, Need, SetMetric
from vdit.eval.statistics import frechet, frechet_infinite, mmd, precision_recall
from vdit.registry import register


@register("metric", "frechet")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Frechet(SetMetric):
    """Fréchet distance of features ("frechet"), and extrapolated to infinitely many videos ("frechet_infinite").

    With a video net this is the Fréchet video distance (Unterthiner et al., 2018). The first is too large for few
    videos (see its n); the second corrects that (Chong and Forsyth, 2020) and may be slightly below 0.
    """

    better: ClassVar[Mapping[str, Better]] = {"frechet": "lower", "frechet_infinite": "lower"}

    def compare(self, made: Features, real: Features | None) -> Mapping[str, float]:
        found = {"frechet": frechet(made.videos, real.videos)}
        if min(len(made), len(real)) >= 8:
            found["frechet_infinite"] = frechet_infinite(made.videos, real.videos, points=6, repeats=2).value
        return found


@register("metric", "mmd")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mmd(SetMetric):
    """Maximum mean discrepancy with a polynomial kernel, x 100: JEDi (Luo et al., 2024) if the net is V-JEPA."""

    def compare(self, made: Features, real: Features | None) -> Mapping[str, float]:
        return {"mmd": 100 * mmd(made.videos, real.videos)}


@register("metric", "precision_recall")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionRecall(SetMetric):
    """Precision (are the videos like real ones?) and recall (are all kinds there?) (Kynkäänniemi et al., 2019).

    neighbours: of the balls that make up a region.
    """

    better: ClassVar[Mapping[str, Better]] = {"precision": "higher", "recall": "higher"}
    shares: ClassVar[tuple[str, ...]] = ("precision", "recall")

    neighbours: int = 3

    def compare(self, made: Features, real: Features | None) -> Mapping[str, float]:
        precision, recall = precision_recall(made.videos, real.videos, neighbours=self.neighbours)
        return {"precision": precision, "recall": recall}


@register("metric", "text_video")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextVideo(SetMetric):
    """Text-video score of a net that reads texts.

    "text_video": 100 x the mean cosine between a video and its caption (CLIPSIM; Wu et al., 2021). "text_retrieval":
    share of videos whose own caption is the nearest of all captions, equal captions counted once.
    """

    needs: ClassVar[tuple[Need, ...]] = ("features", "texts")
    better: ClassVar[Mapping[str, Better]] = {"text_video": "higher", "text_retrieval": "higher"}
    shares: ClassVar[tuple[str, ...]] = ("text_retrieval",)

    def compare(self, made: Features, real: Features | None) -> Mapping[str, float]:
        videos, texts = (_unit(x) for x in (made.videos, made.texts))
        if not len(videos):
            raise ShapeError("there is no video to compare with its caption")
        cosine = videos @ texts.T
        own = np.diagonal(cosine)
        return {"text_video": 100 * float(own.mean()),
                "text_retrieval": float((own >= cosine.max(1) - 1e-6).mean())}  # fmt: skip


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
