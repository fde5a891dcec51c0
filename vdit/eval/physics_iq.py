"""Physics-IQ (Motamed et al., 2025): where, when and how much things move, against two real takes. No nets.

    found = compare_takes(real_take_1, video)          # the four measures
    score = physics_iq_score(means, means_of_takes)    # relative to what two real takes differ by; 100 is best

The benchmark's files: `read_benchmark` finds the real takes in its folders, `generated_name` says how a model's video
is to be called, so that the benchmark's own scripts read it too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vdit.errors import DataError, ShapeError
from vdit.eval.metrics import LUMA, opencv, pixel_values
from vdit.reprs import short_repr

SECONDS = 5.0  # of a video that count
# The benchmark's masks: of smoothed luma against a running mean, opened and closed.
_BLUR, _RATE, _THRESHOLD, _KERNEL = 5, 0.3, 10, 5
_TESTING = "split-videos/testing-videos"
# 0001_testing-videos_30FPS_perspective-left_take-1_trimmed-ball-and-block-fall.mp4
_REAL = re.compile(r"(\d{4})_testing-videos_(\d+)FPS_(perspective-\w+)_take-([12])_(trimmed-[\w-]+)\.mp4")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How two videos of one scene agree.

    Attributes:
        spatial_iou: overlap of the places where anything moves at any time; 1 is best.
        spatiotemporal_iou: float64 [t], overlap of the moving places of each frame.
        weighted_spatial_iou: overlap of the shares of time for which each place moves.
        mse: float64 [t], mean squared difference of the frames' values 0..1; 0 is best.
    """

    spatial_iou: float
    spatiotemporal_iou: np.ndarray
    weighted_spatial_iou: float
    mse: np.ndarray


def motion_masks(video: np.ndarray) -> np.ndarray:
    """Where something moves, as the benchmark has it: [t h w 3], uint8 or float in [-1, 1] -> bool [t h w].

    Luma is smoothed (Gaussian of 5x5) and compared with a running mean (weight 0.3 of the new frame). What differs by
    more than 10 of 255 counts, after opening and closing with 5x5 pixels. The first frame has no motion.
    """
    cv2 = opencv()
    luma = np.clip(np.round(pixel_values(video) @ LUMA), 0, 255).astype(np.uint8)
    smooth = [cv2.GaussianBlur(frame, (_BLUR, _BLUR), 0) for frame in luma]
    kernel, mean = np.ones((_KERNEL, _KERNEL), np.uint8), smooth[0].astype(np.float64)
    masks = [np.zeros(mean.shape, bool)]
    for frame in smooth[1:]:
        cv2.accumulateWeighted(frame, mean, _RATE)
        apart = (cv2.absdiff(frame, cv2.convertScaleAbs(mean)) > _THRESHOLD).astype(np.uint8)
        apart = cv2.morphologyEx(cv2.morphologyEx(apart, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
        masks.append(apart > 0)
    return np.stack(masks)


def compare_takes(a: np.ndarray, b: np.ndarray) -> Agreement:
    """The four measures of Physics-IQ between two videos of one scene.

    Args:
        a: [t h w 3], uint8 or float in [-1, 1].
        b: of the same shape.

    Raises:
        ShapeError: the shapes differ.
    """
    a, b = pixel_values(a), pixel_values(b)
    if a.shape != b.shape:
        raise ShapeError(f"videos of shapes {a.shape} and {b.shape}: cut and resize both to the same")
    masks = [motion_masks(x / 127.5 - 1) for x in (a, b)]
    weights = [mask.mean(0) for mask in masks]
    return Agreement(
        spatial_iou=_iou(*(mask.any(0) for mask in masks)),
        spatiotemporal_iou=np.array([_iou(x, y) for x, y in zip(*masks)]),
        weighted_spatial_iou=_iou(*weights),
        mse=np.square((a - b) / 255).mean((1, 2, 3), dtype=np.float64),
    )


def physics_iq_score(made: Mapping[str, float], between_takes: Mapping[str, float]) -> float:
    """The Physics-IQ score of a model, in percent, as the original benchmark computes it.

    Each overlap is divided by what two real takes of the same scenes reach. The score is the mean of the three
    quotients, less the excess of the squared error over that between takes. It is cut to 0..100.

    Args:
        made: means over all scenes of the four fields of Agreement, of the model's videos against the first takes.
        between_takes: the same, of the second takes against the first.

    Raises:
        ShapeError: the real takes have no motion in common.
    """
    quotients = []
    for name in ("spatiotemporal_iou", "spatial_iou", "weighted_spatial_iou"):
        if not between_takes[name] > 0:
            raise ShapeError(f"{name} between the real takes is {between_takes[name]}: their motion has nothing in "
                             "common")  # fmt: skip
        quotients.append(made[name] / between_takes[name])
    score = float(np.mean(quotients)) - (made["mse"] - between_takes["mse"])
    return 100 * min(max(score, 0.0), 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One view of one scenario of the benchmark.

    Attributes:
        id: "0001" of the first take.
        view: "perspective-left", ...
        name: "trimmed-ball-and-block-fall".
        take_1: file of the first take.
        take_2: file of the second take.
    """

    id: str
    view: str
    name: str
    take_1: Path
    take_2: Path

    @property
    def generated_name(self) -> str:
        """How a model's video of this scene must be called."""
        return f"{self.id}_{self.view}_{self.name}.mp4"


def read_benchmark(folder: str | Path, fps: int) -> list[Scene]:
    """The scenes of the benchmark's folder, as its download lays it out.

    Args:
        folder: of "split-videos/testing-videos/30FPS" and so on.
        fps: which of the rates.

    Raises:
        DataError: there are none, or a view lacks one of its takes.
    """
    place = Path(folder) / _TESTING / f"{fps}FPS"
    files = sorted(place.glob("*.mp4")) if place.is_dir() else []
    takes: dict[tuple[str, str], dict[str, tuple[str, Path]]] = {}
    for file in files:
        match = _REAL.fullmatch(file.name)
        if match is not None and int(match[2]) == fps:
            takes.setdefault((match[5], match[3]), {})[match[4]] = (match[1], file)
    if not takes:
        raise DataError(f"{place}: holds no files such as 0001_testing-videos_{fps}FPS_perspective-left_take-1_"
                        "trimmed-NAME.mp4: give the folder of the benchmark, and a rate that it has")  # fmt: skip
    scenes = []
    for (name, view), found in takes.items():
        if set(found) != {"1", "2"}:
            lacks = "1" if "2" in found else "2"
            raise DataError(f"{place}: {name} from {view} has no take {lacks}: download the benchmark again")
        (id_, first), (_, second) = found["1"], found["2"]
        scenes.append(Scene(id=id_, view=view, name=name, take_1=first, take_2=second))
    return sorted(scenes, key=lambda scene: scene.id)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of minima over sum of maxima: the usual overlap for masks, and that of weights; 1 where both are empty."""
    union = np.maximum(a, b).sum(dtype=np.float64)
    return float(np.minimum(a, b).sum(dtype=np.float64) / union) if union else 1.0
