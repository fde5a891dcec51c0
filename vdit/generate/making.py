"""Videos around what a user gives: animate, extend, loop, connect.

    fps = generator.experiment.sample.fps
    longer = vdit.extend(generator, "a dog runs", vdit.read_video("dog.mp4", fps=fps, size=(96, 96)), after=48)
    vdit.write_video("longer.mp4", longer[0], fps=fps)

Videos are uint8 or float in [-1, 1], [t h w 3], or a Clip; height and width must be multiples of VAE stride x patch
(vdit.generate.inputs.read_input fits files to that). A model knows one frame rate, its experiment's `sample.fps`: give
videos at that rate; a Clip at another is taken frame by frame, with a warning. Each function gives the whole video for
each prompt, float32 [b t h w 3] in [-1, 1], and the frames that were given come back in it bit for bit.

In all of them: prompts: a text or several, a video for each. seed: the same seed and arguments give the same video.
window: frames of the longest canvas that is made at once; None is the longest video that the model was trained on or
is sampled at. What is longer is made by several. sampling: steps, guidance, ...: see vdit.generate.Generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Unpack

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.generate import known as animating
from vdit.generate.filling import Prompts, Sampling, Video, frames_of, given_frames, grouping_of
from vdit.generate.generator import Generator
from vdit.generate.images import as_bytes, fit_images
from vdit.generate.pieces import Pieces, joined
from vdit.models.vision import clip_pixels
from vdit.types import Array


def animate(
    generator: Generator,
    prompts: Prompts,
    images: Array | Sequence[Array],
    *,
    times: Sequence[int] = (0,),
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    window: int | None = None,
    seed: int = 0,
    **sampling: Unpack[Sampling],
) -> np.ndarray:
    """Videos of `frames` frames, of which those at `times` are the images.

    images: one for each time, uint8 or float in [-1, 1], [h w 3] of any size: scaled to cover `size` (height, width)
        and cut around their middle (a single one need not be in a list).
    times: frame numbers from 0, all of them in the window, no two among those that are made at once (ShapeError). For
        the model the picture stands still there for as many frames as are made at once; only its own is the image.
    frames, size: None is as in the experiment's `sample`.
    """
    experiment, grouping = generator.experiment, grouping_of(generator)
    size = tuple(experiment.sample.size if size is None else size)
    frames = _positive("frames", experiment.sample.frames if frames is None else frames)
    run = Pieces.of(generator, prompts, window=window, seed=seed, sampling=sampling)
    pictures = [as_bytes(image) for image in ([images] if len(images) and np.ndim(images[0]) == 2 else images)]
    if not pictures or len(pictures) != len(times) or any(len(picture) != 1 for picture in pictures):
        raise ShapeError(f"{len(pictures)} images for {len(times)} times: give one [h w 3] for each time")
    length = min(run.window, grouping.canvas(frames))
    shown = frames_of(np.concatenate([fit_images(picture, size) for picture in pictures]), "images")
    alone = bool(experiment.network.reference_channels)
    given = animating.animate(shown, times=times, frames=min(length, frames), grouping=grouping, alone=alone)
    if experiment.vision is not None:  # the encoder cuts the picture as it was given, in its own way
        first = pictures[int(np.argmin(times))][0]
        given = dataclasses.replace(given, pixels=clip_pixels(first, experiment.vision)[None])
    kept = np.isin(np.arange(given.video.shape[1]), times)
    return run.longer(run.fill(given, length, kept=kept), frames)


def extend(
    generator: Generator,
    prompts: Prompts,
    video: Video,
    *,
    before: int = 0,
    after: int = 0,
    context: int | None = None,
    window: int | None = None,
    seed: int = 0,
    **sampling: Unpack[Sampling],
) -> np.ndarray:
    """The video with `before` more frames ahead of it and `after` more behind: any numbers of them.

    context: how many frames next to those to be made the model sees at most. None: as many as these leave of the
        window, and half of it where they are many. Of a shorter video it sees all (backward, at least as many frames
        as are made at once, else ShapeError).
    """
    whole = given_frames(generator, video)
    for name, count in (("before", before), ("after", after)):
        if count < 0:
            raise ShapeError(f"{name}={count}: frames to be made, give 0 or more")
    if before == after == 0:
        raise ShapeError("before=0 and after=0: nothing is to be made, give one of them")
    run = Pieces.of(generator, prompts, window=window, seed=seed, sampling=sampling)
    if after:
        whole = joined(whole, run.forward(whole, after, context))
    if before:
        whole = joined(run.backward(whole, before, context), whole)
    return whole


def loop(
    generator: Generator,
    prompts: Prompts,
    video: Video | None = None,
    *,
    passage: int | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    window: int | None = None,
    seed: int = 0,
    **sampling: Unpack[Sampling],
) -> np.ndarray:
    """The video and a passage from its end back to its beginning: after the last frame the first may follow.

    video: None makes one of the prompt first, of `frames` and `size` (None: as in the experiment's `sample`).
    passage: how many frames it has, a multiple of the frames that are made at once; None for about half the window.
    """
    run = Pieces.of(generator, prompts, window=window, seed=seed, sampling=sampling)
    passage = run.passage_frames("passage", passage)
    if video is not None:
        if frames is not None or size is not None:
            raise ConfigError(f"frames={frames}, size={size}: of a video to be made; leave them out where one is given")
        whole = given_frames(generator, video)
    else:
        frames = _positive("frames", generator.experiment.sample.frames if frames is None else frames)
        whole = run.longer(run.sample(min(run.window, grouping_of(generator).canvas(frames)), size), frames)
    return joined(whole, run.passage(whole, None, passage))


def connect(
    generator: Generator,
    prompts: Prompts,
    first: Video,
    second: Video,
    *,
    frames: int | None = None,
    blend: bool = False,
    strength: float = 0.8,
    window: int | None = None,
    seed: int = 0,
    **sampling: Unpack[Sampling],
) -> np.ndarray:
    """The first video, a passage of `frames`, the second; or, with blend, one that gradually turns into the other.

    frames: a multiple of the frames that are made at once (ShapeError names the nearest); None for about half the
        window. With blend: for how many frames both run at once, so that the result is as much shorter than both.
    strength: with blend, how freely its middle is regenerated, above 0 and below 1 (vdit.generate.known.blend).
    """
    ahead, behind = given_frames(generator, first, "first"), given_frames(generator, second, "second")
    if ahead.shape[2:] != behind.shape[2:]:
        sizes = " and ".join("{1}x{0}".format(*video.shape[2:4]) for video in (ahead, behind))
        raise ShapeError(f"videos of {sizes} (width x height): give both the same size (vdit.generate.read_input)")
    run = Pieces.of(generator, prompts, window=window, seed=seed, sampling=sampling)
    frames = run.passage_frames("frames", frames)
    if blend:
        made = run.blend(ahead, behind, frames, strength)
        return joined(ahead[:, :-frames], made, behind[:, frames:])
    return joined(ahead, run.passage(ahead, behind, frames), behind)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ShapeError(f"{name}={value}: give 1 or more")
    return value
