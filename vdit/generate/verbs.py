"""Verbs: videos around what a user gives, or made of it again.

    fps = generator.experiment.sample.fps
    video = vdit.read_video("dog.mp4", fps=fps, size=(96, 96))
    longer = vdit.extend(generator, "a dog runs", video, after=48)
    cat = vdit.edit(generator, "a cat runs", video, strength=0.7)
    vdit.write_video("longer.mp4", longer[0], fps=fps)

Videos are uint8 or float in [-1, 1], [t h w 3], or a Clip; height and width must be multiples of VAE stride x patch
(vdit.generate.inputs.read_input fits files to that). A model knows one frame rate, its experiment's `sample.fps`: give
videos at that rate; a Clip at another is taken frame by frame, with a warning. Each function gives the whole video for
each prompt, float32 [b t h w 3] in [-1, 1]. animate, extend, loop and connect give the frames that were given back bit
for bit; inpaint and outpaint the pixels that were not masked. vdit.generate.sliding has the same verbs as streams, for
videos of any length in flat memory.

In all of them: prompts: a text or several, a video for each. seed: the same seed and arguments give the same video.
window: frames of the longest canvas that is made at once; None is the longest video that the model was trained on or
is sampled at. What is longer is made by several. joins: how generated frames meet given ones: "motion" mixes the frames
beside a join with the given frame, moved along, and matches colours; "colour" only matches colours; None is as in the
experiment's `sample`. sampling: steps, guidance, ...: see vdit.Generator.

Of edit, inpaint and outpaint: the result has as many frames as the given video. overlap: how many frames of a canvas
are known from the one before; None is a third. noise: float32 [b t' h' w' c], the latents to start from, of the whole
video; drawn from `seed` if None. The number of steps is that from `strength` on down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Unpack

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.generate import editing, sliding
from vdit.generate import known as knowing
from vdit.generate.editing import EDGE, Part
from vdit.generate.generator import Generator, Sampling, Texts, Video, frames_of, given_frames
from vdit.generate.images import as_bytes, fit_images
from vdit.generate.sliding import ArrayFrames, Rollout, Run
from vdit.sampling.config import Structure
from vdit.sampling.sliding import PromptSchedule
from vdit.types import Array


class Options(Sampling, total=False):
    """Options of every verb: how canvases are sampled, and window, seed and joins, which the module describes."""

    window: int | None
    seed: int
    joins: str


class EditOptions(Options, total=False):
    """Options of edit, inpaint and outpaint, which the module describes."""

    overlap: int | None
    noise: Array | None
    grow: int
    soft: tuple[float, float] | None


class RolloutOptions(Options, total=False):
    """Options of rollout, which describes them."""

    context: int | None
    anchor: bool
    keep: bool | None


def animate(
    generator: Generator,
    prompts: Texts,
    images: Array | Sequence[Array],
    *,
    times: Sequence[int] = (0,),
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    **options: Unpack[Options],
) -> np.ndarray:
    """Videos in which the given images are frames.

    Args:
        generator: of `vdit.load`.
        prompts: a text or several, one video for each.
        images: one for each time, uint8 or float in [-1, 1], [h w 3] of any size: scaled to cover `size` and cropped to
            their centre. A single one need not be in a list.
        times: frame numbers from 0, all of them in the window, no two among those that are generated at once. For the
            model the picture stands still there for as many frames as are generated at once; only its own is the image.
        frames: length of the video; None is as in the experiment's `sample`.
        size: (height, width) in pixels; None is as in the experiment's `sample`.
        **options: window, seed, joins, and the options of sampling (steps, guidance, ...), as the module describes.

    Returns:
        The whole video for each prompt, float32 [b t h w 3] in [-1, 1]. Given images come back bit for bit.

    Raises:
        ShapeError: times or images do not fit the model.

    Example:
        videos = vdit.animate(generator, "a dog runs", image, frames=17)
    """
    experiment = generator.experiment
    size = tuple(experiment.sample.size if size is None else size)
    frames = experiment.sample.frames if frames is None else frames
    pictures = [images] if len(images) and np.ndim(images[0]) == 2 else list(images)
    run = Run.of(generator, prompts, **options)
    return whole(sliding.animate(run, pictures, times=times, frames=frames, size=size))


def extend(
    generator: Generator,
    prompts: Texts,
    video: Video,
    *,
    before: int = 0,
    after: int = 0,
    context: int | None = None,
    **options: Unpack[Options],
) -> np.ndarray:
    """A longer video: `before` new frames ahead of it, `after` new frames behind it.

    Args:
        generator: of `vdit.load`.
        prompts: a text or several, one video for each.
        video: uint8 or float in [-1, 1], [t h w 3], or a Clip, at the model's frame rate.
        before: any number of frames.
        after: any number of frames.
        context: how many frames next to the new ones the model sees at most. None: as many as the new ones leave of the
            window, and half of it where they are many. It sees all of a shorter video.
        **options: window, seed, joins, and the options of sampling (steps, guidance, ...), as the module describes.

    Returns:
        The whole video for each prompt, float32 [b t h w 3] in [-1, 1]. Given frames come back bit for bit.

    Raises:
        ShapeError: the video does not fit the model, or is too short to be extended backward.

    Example:
        video = vdit.read_video("dog.mp4", fps=8, size=(64, 96))
        longer = vdit.extend(generator, "a dog runs", video, after=48)
    """
    given = ArrayFrames(given_frames(generator, video))
    run = Run.of(generator, prompts, **options)
    return whole(sliding.extend(run, given, before=before, after=after, context=context))


def loop(
    generator: Generator,
    prompts: Texts,
    video: Video | None = None,
    *,
    passage: int | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    **options: Unpack[Options],
) -> np.ndarray:
    """The video and a passage from its end back to its start: after the last frame the first may follow.

    Args:
        generator: of `vdit.load`.
        prompts: a text or several, one video for each.
        video: [t h w 3] or a Clip; None generates one from the prompt first.
        passage: frames of the passage, a multiple of the frames that are generated at once; None is about half the
            window.
        frames: length of a generated video; None is as in the experiment's `sample`.
        size: (height, width) of a generated video; None is as in the experiment's `sample`.
        **options: window, seed, joins, and the options of sampling (steps, guidance, ...), as the module describes.

    Returns:
        The whole video for each prompt, float32 [b t h w 3] in [-1, 1]. Given frames come back bit for bit.

    Raises:
        ConfigError: frames or size are given beside a video.
        ShapeError: the video or the passage does not fit the model.

    Example:
        loops = vdit.loop(generator, "waves on a beach", frames=17)
    """
    run = Run.of(generator, prompts, **options)
    passage = run.passage_frames("passage", passage)
    if video is not None and (frames is not None or size is not None):
        raise ConfigError(f"frames={frames}, size={size}: of a video to be made; leave them out where one is given")
    if video is None:
        frames = generator.experiment.sample.frames if frames is None else frames
        given = sliding.sample(run, frames=frames, size=size)
    else:
        given = ArrayFrames(given_frames(generator, video))
    return whole(sliding.loop(run, given, passage=passage))


def connect(
    generator: Generator,
    prompts: Texts,
    first: Video,
    second: Video,
    *,
    frames: int | None = None,
    blend: bool = False,
    strength: float = 0.8,
    **options: Unpack[Options],
) -> np.ndarray:
    """The first video, a generated passage, the second; or, with `blend`, one that gradually turns into the other.

    Args:
        generator: of `vdit.load`.
        prompts: a text or several, one video for each.
        first: [t h w 3] or a Clip.
        second: [t h w 3] or a Clip, of the same size.
        frames: of the passage, a multiple of the frames that are generated at once; None is about half the window. With
            `blend`: for how many frames both play at once; the result is shorter by as many.
        blend: turn one video into the other while both play.
        strength: with `blend`, how freely its middle is regenerated, above 0 and below 1.
        **options: window, seed, joins, and the options of sampling (steps, guidance, ...), as the module describes.

    Returns:
        The whole video for each prompt, float32 [b t h w 3] in [-1, 1]. Given frames come back bit for bit, but for
        those that are blended.

    Raises:
        ShapeError: the videos or the passage do not fit the model; the message names the nearest length.

    Example:
        both = vdit.connect(generator, "a dog turns into a cat", dog, cat, frames=24)
    """
    ahead, behind = given_frames(generator, first, "first"), given_frames(generator, second, "second")
    run = Run.of(generator, prompts, **options)
    frames = run.passage_frames("frames", frames)
    videos = ArrayFrames(ahead), ArrayFrames(behind)
    return whole(sliding.connect(run, *videos, frames=frames, blend=strength if blend else None))


def edit(
    generator: Generator,
    prompts: Texts,
    video: Video,
    *,
    strength: float | Sequence[float] = 0.6,
    source: str | None = None,
    structure: Structure | None = None,
    invert: bool = False,
    mask: Array | None = None,
    **options: Unpack[EditOptions],
) -> np.ndarray:
    """The video changed as the prompts say: regenerated from the noise level `strength` (SDEdit, Meng et al. 2022).

    Args:
        generator: of `vdit.load`.
        prompts: a text or several, one video for each.
        video: [t h w 3] or a Clip.
        strength: 0 to 1: near 0 the video as the VAE reconstructs it, 1 one that is generated from the prompt alone.
            One for each frame makes an edit gradual; frames of 0 are given to the model, and come back as the VAE
            reconstructs them.
        source: with `invert`, the prompt that describes the video as it is; None is "".
        structure: keeps low frequencies in space, so the layout, while the noise level is above a limit; None keeps
            none.
        invert: start from the noise that the model maps to this very video, found by going up the sampler's path:
            closer to the video. The sampler is then Euler's, unless one is named.
        mask: bool [h w], or [t h w] where it moves: the video is edited only where it is true; the rest comes back bit
            for bit. None edits all of it, and puts nothing back.
        **options: window, seed, joins, overlap, noise, grow, soft, and the options of sampling (steps, guidance, ...),
            as the module describes.

    Returns:
        The whole video for each prompt, float32 [b t h w 3] in [-1, 1].

    Raises:
        ConfigError: options contradict each other.
        ShapeError: the video, the mask or `strength` does not fit.

    Example:
        cats = vdit.edit(generator, "a cat runs", video, strength=0.7)
    """
    given = given_frames(generator, video)
    levels = knowing.check_strength(strength, given.shape[1])
    part = None
    if mask is not None:
        part = Part.of_array(knowing.check_mask(mask, given.shape), **_part(options))
    run, more = _remade(generator, prompts, given, options)
    asked = editing.Edit(levels=levels, part=part, source=source, structure=structure, invert=invert, **more)
    return whole(editing.edit(run, ArrayFrames(given), asked))


def inpaint(
    generator: Generator,
    prompts: Texts,
    video: Video,
    mask: Array,
    *,
    edge: float = EDGE,
    **options: Unpack[EditOptions],
) -> np.ndarray:
    """The video with the masked part regenerated; all other pixels come back bit for bit.

    Args:
        generator: of `vdit.load`.
        prompts: a text or several, one video for each.
        video: [t h w 3] or a Clip.
        mask: bool [h w], or [t h w] where it moves, true where something is to be generated. A latent counts as given
            only if every pixel it covers is, so a mask smaller than a latent regenerates one.
        edge: starting noise level of latents that are partly inside the mask; 1 regenerates them fully, less keeps
            more.
        **options: window, seed, joins, overlap, noise, grow, soft, and the options of sampling (steps, guidance, ...),
            as the module describes.

    Returns:
        The whole video for each prompt, float32 [b t h w 3] in [-1, 1].

    Raises:
        ShapeError: the video or the mask does not fit, or the mask covers nothing or everything.

    Example:
        filled = vdit.inpaint(generator, "a meadow", video, mask)
    """
    given = given_frames(generator, video)
    part = Part.of_array(knowing.check_mask(mask, given.shape), edge=edge, **_part(options))
    run, more = _remade(generator, prompts, given, options)
    return whole(editing.edit(run, ArrayFrames(given), editing.Edit(part=part, **more)))


def outpaint(
    generator: Generator,
    prompts: Texts,
    video: Video,
    *,
    size: tuple[int, int] | None = None,
    aspect: float | None = None,
    at: tuple[int, int] | Literal["centre"] = "centre",
    edge: float = EDGE,
    **options: Unpack[EditOptions],
) -> np.ndarray:
    """The video in a larger frame, the rest generated around it; its pixels come back bit for bit.

    Args:
        generator: of `vdit.load`.
        prompts: a text or several, one video for each.
        video: [t h w 3] or a Clip.
        size: (height, width) of the frame, multiples of VAE stride x patch.
        aspect: width / height instead; the smallest such frame is taken.
        at: the video's upper left corner (y, x), or "centre". A corner on a multiple of the VAE's stride leaves the
            fewest latents partly given, so "centre" is as near to the middle as that allows.
        edge: see `inpaint`.
        **options: window, seed, joins, overlap, noise, grow, soft, and the options of sampling (steps, guidance, ...),
            as the module describes.

    Returns:
        The whole video for each prompt, float32 [b t h w 3] in [-1, 1].

    Raises:
        ConfigError: not exactly one of size and aspect is given.
        ShapeError: the video does not fit the frame.

    Example:
        wide = vdit.outpaint(generator, "a dog on a meadow", video, aspect=16 / 9)
    """
    given, config = given_frames(generator, video), generator.experiment
    if (size is None) == (aspect is None):
        raise ConfigError(f"size={size}, aspect={aspect}: give one of them, the frame to fill")
    if size is None:
        size = knowing.size_of_aspect(given.shape[2:4], aspect, config.size_multiple)
    frame = knowing.Frame.around(given.shape[2:4], size, at, config.vae.spatial_stride)
    return inpaint(generator, prompts, frame.place(given)[0], frame.mask, edge=edge, **options)


def rollout(
    generator: Generator,
    prompts: str | Sequence[tuple[float, str]],
    *,
    frames: int | None = None,
    seconds: float | None = None,
    fps: float | None = None,
    image: Array | None = None,
    video: Video | None = None,
    size: tuple[int, int] | None = None,
    **options: Unpack[RolloutOptions],
) -> Iterator[np.ndarray]:
    """One video of any length, some frames at a time, in constant memory.

    A video of one window is the one that the generator makes with this seed. Four programs are compiled, whatever the
    length: the first window and the later ones, and the decoder for each.

    Args:
        generator: of `vdit.load`.
        prompts: a text, or (seconds, text) for prompts that change, the first at 0.
        frames: of the whole result, given ones included.
        seconds: of the whole result, instead of frames.
        fps: frame rate for `seconds` and the times of prompts; None is the experiment's `sample`.
        image: how it begins: [h w 3] of any size, scaled to cover `size` and cropped.
        video: how it begins, instead of an image: [t h w 3] or a Clip, of multiples of VAE stride x patch.
        size: (height, width); None is as in the experiment's `sample`.
        **options: context, anchor and keep (below), window, seed, joins, and the options of sampling (steps, guidance,
            ...), as the module describes.
            context: how many frames of the window are given from before, once it slides (rounded down to what the model
            generates at once); None, the default, is about half.
            anchor: keep the first frames as context of all windows: colours and background drift less, but the scene
            cannot change much. Default False.
            keep: cache keys and values of finished frames, as causal models can; None, the default: where it is
            possible. It costs less, and frames see more than the window holds.

    Returns:
        Pieces float32 [t h w 3] in [-1, 1], as they are generated. Given frames come back bit for bit.

    Raises:
        ConfigError: not exactly one of frames and seconds is given, or prompts are malformed; at once.
        ShapeError: something does not fit the model; at once.

    Example:
        pieces = vdit.rollout(generator, [(0.0, "a dog runs"), (10.0, "the dog sits down")], seconds=60)
        vdit.write_video("long.mp4", pieces, fps=generator.experiment.sample.fps)
    """
    if (frames is None) == (seconds is None):
        raise ConfigError(f"frames={frames}, seconds={seconds}: give one of them, the length of the video")
    fps = generator.experiment.sample.fps if fps is None else fps
    given = _beginning(generator, image, video, size)
    asked = Rollout(
        prompts=PromptSchedule.of(prompts), frames=round(seconds * fps) if frames is None else frames, fps=fps,
        size=size, **{name: options.pop(name) for name in ("context", "anchor", "keep") if name in options},
    )  # fmt: skip
    run = Run.of(generator, asked.prompts.parts[0][1], **options)
    return (piece[0] for piece in sliding.rollout(run, asked, None if given is None else ArrayFrames(given)))


def whole(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Pieces of videos [b t h w 3], of which one may stand for all, one after the other."""
    return sliding.joined(*pieces)


def _part(options: EditOptions) -> dict:
    """Takes the options of a Part out of those of a verb."""
    return {name: options.pop(name) for name in ("grow", "soft") if name in options}


def _remade(generator: Generator, prompts: Texts, given: np.ndarray, options: EditOptions) -> tuple[Run, dict]:
    """(the run, options of editing.Edit) of the options of a verb."""
    for name in ("grow", "soft"):
        options.pop(name, None)
    more = {name: options.pop(name) for name in ("overlap", "noise") if name in options}
    return Run.of(generator, prompts, **options), more


def _beginning(
    generator: Generator, image: Array | None, video: Video | None, size: tuple[int, int] | None
) -> np.ndarray | None:
    """How a rollout begins, float32 [1 t h w 3]."""
    if image is not None and video is not None:
        raise ConfigError("image and video: give one of them, how the video begins")
    if video is not None:
        if size is not None:
            raise ConfigError(f"size={size}: that of the given video counts, leave it out")
        return given_frames(generator, video)
    if image is None:
        return None
    images = as_bytes(image)
    if len(images) != 1:
        raise ShapeError(f"{len(images)} images: give one, [h w 3]")
    return frames_of(fit_images(images, generator.experiment.sample.size if size is None else size))
