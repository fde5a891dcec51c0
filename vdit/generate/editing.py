"""Videos made again, in whole or in part: edit, inpaint, outpaint.

    clip = vdit.read_video("dog.mp4", fps=generator.experiment.sample.fps, size=(96, 96))
    cat = vdit.edit(generator, "a cat runs", clip, strength=0.7)
    without = vdit.inpaint(generator, "an empty meadow", clip, mask)
    wide = vdit.outpaint(generator, "a dog runs on a meadow", clip, aspect=16 / 9)

Videos are uint8 or float in [-1, 1], [t h w 3], or a Clip; height and width must be multiples of VAE stride x patch
(vdit.generate.inputs.read_input fits files to that). Each function gives a video for each prompt, float32 [b t h w 3]
in
[-1, 1], of as many frames: where the model makes several at once, the last frame is repeated, and cut off again.

In all of them: prompts: a text or several, a video for each. seed: the same seed and arguments give the same video.
window: frames of the longest canvas that is made at once; None is the longest video that the model was trained on or
is sampled at. What is longer is made by several, each of which knows the last `overlap` frames of the one before; None
is a third of the window (vdit.generate.windows). noise: float32 [b t' h' w' c], the latents to start from, of the whole
video; drawn from `seed` if None. sampling: steps, guidance, ...: see vdit.generate.Generator; the number of steps is
that
from `strength` on down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Unpack

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.generate import known as editing
from vdit.generate import known as inpainting
from vdit.generate.filling import Prompts, Sampling, Video, given_frames, texts_of
from vdit.generate.generator import Generator
from vdit.generate.keep import keep_given
from vdit.generate.windows import Begin, Remake, check_size
from vdit.sampling.config import SamplingConfig, Structure
from vdit.sampling.programs import Reference
from vdit.types import Array

# On 24 clips of rendered worlds 1.6 to 2.3 dB better inside the mask than 1, and among the best of 0.4 to 1.
EDGE = 0.6


def edit(
    generator: Generator,
    prompts: Prompts,
    video: Video,
    *,
    strength: float | Sequence[float] = 0.6,
    source: str | None = None,
    structure: Structure | None = None,
    invert: bool = False,
    mask: Array | None = None,
    grow: int = 0,
    soft: tuple[float, float] | None = None,
    window: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
    noise: Array | None = None,
    **sampling: Unpack[Sampling],
) -> np.ndarray:
    """The video as the prompts say, made again from the noise level `strength` down (SDEdit, Meng et al. 2022).

    strength: 0 to 1: near 0 the video as the VAE gives it back, 1 one that is made of the prompt alone. One for each
        frame makes an edit gradual; frames of 0 are known to the model, and come back as the VAE gives them.
    structure: keeps low frequencies in space, so the layout, while sampling is above a level; None keeps none.
    invert: begin from the noise of which the model would make this very video, found by going up the sampler's path,
        instead of noise that is drawn: closer to the video. The sampler is then Euler's, unless one is named.
    source: with invert, the prompt that describes the video as it is; None is "".
    mask: bool [h w], or [t h w] where it moves: only where it is true is the video edited, the rest comes back bit for
        bit. grow, soft: see `inpaint`. Without a mask all of it is made again, and nothing is put back.
    """
    whole = given_frames(generator, video)
    levels = editing.check_strength(strength, whole.shape[1])
    mask = None if mask is None else editing.check_mask(mask, whole.shape)
    if source is not None and not invert:
        raise ConfigError("source describes the video for its inversion: add invert=True, or leave it out")
    if invert and noise is not None:
        raise ConfigError("noise and invert=True: inversion finds the noise, leave one of them out")
    if invert:
        sampling = {"sampler": "euler"} | sampling
    wide = None if mask is None else editing.grown(mask, grow)

    def begin(first: int, stop: int) -> Reference:
        frames = _frames(first, stop, whole.shape[1])
        where = None if wide is None else wide[frames]
        return editing.edit(whole[:, frames], strength=levels[frames], mask=where)

    more = {"source": (source or "") if invert else None, "structure": structure, "start": float(levels.max())}
    more["known"] = mask is not None or float(levels.min()) == 0
    more |= {"window": window, "overlap": overlap, "seed": seed, "noise": noise, "sampling": sampling}
    made = _made(generator, prompts, whole, begin, **more)
    return made if mask is None else _kept(made, whole, mask, soft)


def inpaint(
    generator: Generator,
    prompts: Prompts,
    video: Video,
    mask: Array,
    *,
    grow: int = 0,
    edge: float = EDGE,
    soft: tuple[float, float] | None = None,
    window: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
    noise: Array | None = None,
    **sampling: Unpack[Sampling],
) -> np.ndarray:
    """The video with the masked part regenerated; all other pixels come back bit for bit.

    mask: bool [h w], or [t h w] where it moves, true where something is to be made. Of latents those are known all of
        whose pixels are, so of a mask smaller than a latent one is regenerated. A mask of nothing, or of everything
        (that is text to video), is a ShapeError.
    grow: pixels by which the mask is wider for the model, so that it sees nothing of what is to go; those come back.
    edge: the noise level at which latents begin that are known in part, filled up smoothly from what is. 1 makes them
        of nothing; less lets what is cut by the mask go on inside.
    soft: (frames, pixels) over which a difference of colour at the edge fades inside (vdit.generate.keep.keep_given).
    """
    whole = given_frames(generator, video)
    mask = editing.check_mask(mask, whole.shape)
    wide = editing.grown(mask, grow)
    if wide.all():
        raise ShapeError(
            "mask is true everywhere" + (f" once grown by {grow} pixels" if grow else "")
            + ": that is text to video, make it by generator(prompts) (vdit sample)"
        )  # fmt: skip
    vae = generator.experiment.vae
    stride, side = vae.temporal_stride, vae.spatial_stride
    check_size(generator, whole.shape[2:4])
    filled = inpainting.nearest_shown(wide)
    levels = inpainting.edge_levels(wide, edge=edge, stride=stride, side=side)

    def begin(first: int, stop: int) -> Reference:
        frames = _frames(first, stop, whole.shape[1])
        near = filled[frames]
        return inpainting.inpaint(whole[:, near], wide[near], levels[frames])

    more = {"window": window, "overlap": overlap, "seed": seed, "noise": noise, "sampling": sampling, "known": True}
    return _kept(_made(generator, prompts, whole, begin, start=float(levels.max()), **more), whole, mask, soft)


def outpaint(
    generator: Generator,
    prompts: Prompts,
    video: Video,
    *,
    size: tuple[int, int] | None = None,
    aspect: float | None = None,
    at: tuple[int, int] | Literal["centre"] = "centre",
    grow: int = 0,
    edge: float = EDGE,
    soft: tuple[float, float] | None = None,
    window: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
    noise: Array | None = None,
    **sampling: Unpack[Sampling],
) -> np.ndarray:
    """The video in the larger frame of `size`, the rest made around it; its pixels come back bit for bit.

    size: (height, width), multiples of VAE stride x patch. aspect: width / height instead, and the smallest such frame.
    at: the video's upper left corner (y, x), or "centre". A corner on a multiple of the VAE's stride leaves the fewest
        latents known only in part; so "centre" is as near to the middle as that allows.
    grow, edge, soft: see `inpaint`.
    """
    whole, config = given_frames(generator, video), generator.experiment
    if (size is None) == (aspect is None):
        raise ConfigError(f"size={size}, aspect={aspect}: give one of them, the frame to fill")
    inner = whole.shape[2:4]
    if size is None:
        size = inpainting.size_of_aspect(inner, aspect, config.size_multiple)
    frame = inpainting.Frame.around(inner, size, at, config.vae.spatial_stride)
    more = {"grow": grow, "edge": edge, "soft": soft, "window": window, "overlap": overlap}
    more |= {"seed": seed, "noise": noise}
    return inpaint(generator, prompts, frame.place(whole)[0], frame.mask, **more, **sampling)


def _frames(first: int, stop: int, count: int) -> np.ndarray:
    """Numbers of frames, the last one again and again."""
    return np.minimum(np.arange(first, stop), count - 1)


def _made(
    generator: Generator,
    prompts: Prompts,
    whole: np.ndarray,
    begin: Begin,
    *,
    seed: int,
    noise: Array | None,
    sampling: Sampling,
    start: float = 1.0,
    structure: Structure | None = None,
    known: bool,
    **windows,
) -> np.ndarray:
    """Decoded, as the model gives it: float32 [b t h w 3].

    start: the noise level to begin at. known: whether a part of the video is to stay.
    """
    sampling = dict(sampling)
    negative = sampling.pop("negative", "")

    def method(known: bool) -> SamplingConfig:
        method = dataclasses.replace(generator.method(given=known, **sampling), structure=structure)
        if start == 1.0:
            return method
        return dataclasses.replace(method, grid=dataclasses.replace(method.grid, start=start))

    generator.check_negative(negative, method(known))
    remake = Remake(
        generator=generator, method=method(known), prompts=texts_of(prompts), begin=begin, frames=whole.shape[1],
        size=whole.shape[2:4], negative=negative, seed=seed, noise=noise, **windows,
    )  # fmt: skip
    if not known and len(remake.windows) > 1:  # each but the first knows the end of the one before
        remake = dataclasses.replace(remake, method=method(True))
    return np.concatenate(list(remake), axis=1)


def _kept(made: np.ndarray, whole: np.ndarray, mask: np.ndarray, soft: tuple[float, float] | None) -> np.ndarray:
    """What was made, with the pixels outside the mask as they were."""
    return np.stack([keep_given(video, whole[0], ~mask, sigma=soft) for video in made])
