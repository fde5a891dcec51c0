"""What the functions share that fill in a canvas: videos in, what was given put back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from vdit.errors import ConfigError, ShapeError, VditWarning
from vdit.generate.generator import Generator
from vdit.generate.inputs import same_rate
from vdit.generate.keep import keep_given
from vdit.models.vision import clip_pixels
from vdit.sampling.canvas import Grouping
from vdit.sampling.programs import Reference
from vdit.types import Array, Clip, check_pixels

Prompts = str | Sequence[str]
Video = Array | Clip


class Sampling(TypedDict, total=False):
    """How videos are sampled: options of Generator.__call__, where each is described."""

    steps: int
    guidance: float
    low_guidance: float
    negative: str
    sampler: str
    interval: tuple[float, float]
    rescale: float
    known_level: float
    context_guidance: float
    reuse: float


def frames_of(video: Array | Clip, name: str = "video") -> np.ndarray:
    """uint8, or float in [-1, 1], [t h w 3], or a Clip -> float32 [1 t h w 3]; ShapeError for anything else.

    A byte becomes byte / 127.5 - 1, and round((x + 1) * 127.5) is that byte again.
    """
    frames = np.asarray(video.frames if isinstance(video, Clip) else video)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ShapeError(f"{name} of shape {frames.shape} must be [t h w 3], with one frame or more")
    if frames.dtype == np.uint8:
        return np.float32(frames)[None] / np.float32(127.5) - np.float32(1)
    check_pixels(frames, name)
    return np.clip(np.float32(frames), -1, 1)[None]


def given_frames(generator: Generator, video: Array | Clip, name: str = "video") -> np.ndarray:
    """`frames_of` a video that the model goes on with; warns of a Clip at another rate than the model's."""
    fps = generator.experiment.sample.fps
    if isinstance(video, Clip) and len(video.frames) > 1 and not same_rate(video.fps, fps):
        warnings.warn(
            f"{name} has {video.fps:.4g} frames a second, the model makes {fps:.4g}, so what it makes moves at another "
            f"speed: read the video with vdit.read_video(path, fps={fps:.4g})",
            VditWarning,
            stacklevel=3,
        )
    return frames_of(video, name)


def texts_of(prompts: Prompts) -> list[str]:
    """One text for each video; ConfigError for anything else."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"prompts={prompts!r} must be a text or a list of at least one text")
    return texts


def as_bytes(frames: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] -> uint8."""
    return np.round((frames + 1) * 127.5).astype(np.uint8)


def grouping_of(generator: Generator) -> Grouping:
    return Grouping.of(generator.experiment.vae, generator.experiment.backbone)


def window_of(generator: Generator, window: int | None = None) -> int:
    """Frames of the longest canvas that is made at once; None: what the model was trained on or is sampled at."""
    grouping, experiment = grouping_of(generator), generator.experiment
    asked = window is not None
    if window is None:
        window = max(*experiment.data.frames, experiment.sample.frames)
    elif window < grouping.first:
        raise ShapeError(f"window={window} must hold {grouping.first} frames or more, as many as are made at once")
    held = grouping.head(window)
    if asked and held < window:
        rule = f"a window is {grouping.first} + a multiple of {grouping.step} frames"
        warnings.warn(f"window={window} is rounded down to {held}: {rule}", VditWarning, stacklevel=3)
    return held


def usual_passage(generator: Generator, window: int | None = None) -> int:
    """Frames of a passage that leaves about half of the window to what is known on its sides."""
    grouping = grouping_of(generator)
    return max(grouping.step, grouping.tail(window_of(generator, window) // 2))


def fill(
    generator: Generator,
    prompts: Prompts,
    given: Reference,
    *,
    frames: int,
    seed: int,
    sampling: Sampling,
    kept: Array | None = None,
) -> np.ndarray:
    """Videos for the prompts, float32 [b frames h w 3] in [-1, 1], with what was given put back bit for bit.

    kept: bool [s], the frames of `given` to put back; None for all pixels whose level is 0.
    The image encoder of a model that has one is shown the first frame, or what stands in its place. Models that are
    told what is done (actions) are told that nothing is, where `given` does not say.
    """
    vision = generator.experiment.vision
    if vision is not None and given.pixels is None:
        pixels = np.stack([clip_pixels(image, vision) for image in as_bytes(np.asarray(given.video[:, 0]))])
        given = dataclasses.replace(given, pixels=pixels)
    return put_back(generator(prompts, given=given, frames=frames, seed=seed, **sampling), given, kept)


def put_back(made: Array, given: Reference, kept: Array | None = None) -> np.ndarray:
    """float32 [b t h w 3]: what was made, with what was given of it (see `fill`; vdit.generate.keep)."""
    known = np.asarray(given.level) == 0 if kept is None else np.asarray(kept)[None, :, None, None]
    pick = lambda x, i: x[i if len(x) > 1 else 0]  # noqa: E731
    made = enumerate(np.asarray(made))
    return np.stack([keep_given(video, pick(given.video, i), pick(known, i)) for i, video in made])
