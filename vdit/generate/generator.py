"""The programmatic API: a model on a mesh makes videos.

generator = vdit.load("runs/clips")
videos = generator(["a red circle moves to the left"], frames=17, size=(64, 64))
vdit.write_video("out.mp4", videos[0], fps=8)
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.data.patches import token_grid, unpatchify
from vdit.errors import ConfigError, NumericsError, ShapeError, VditWarning
from vdit.experiment.experiment import Experiment
from vdit.finite import nonfinite_names
from vdit.generate.images import as_bytes, fit_images
from vdit.generate.inputs import same_rate
from vdit.language.expansion import Expander
from vdit.models.network import Network
from vdit.models.text import Tokenizer, warn_of_cuts
from vdit.models.vae.video import VideoVAE
from vdit.models.vision import clip_pixels
from vdit.pixels import Clip, check_pixels
from vdit.reprs import short_repr
from vdit.sampling.canvas import Grouping, Prompts, check_canvas_conditions, tokenize
from vdit.sampling.config import SamplingConfig, known_changes, replaces_known, sampling_config
from vdit.sampling.packed import RowSize, sample_packed
from vdit.sampling.programs import CanvasInput, FromVideo, Parameters, Reference, SampleCanvas, TextToVideo, sample
from vdit.sampling.stepwise import Watch, sample_stepwise
from vdit.seeds import key_of
from vdit.types import Array, PyTree

_NOT_TRAINED = (
    "this model was not trained on canvases: what is given is put back, noised, at every step, and there may be a jump "
    "where it meets what is made. `vdit train --data` trains on canvases, and so does an experiment with "
    "canvases=CanvasConfig(...)"
)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """A trained model on a mesh. Make one with `vdit.load`.

    experiment: what the model was trained with. params: {"text", "dit", ...} (vdit.models.network).
    vae: encodes and decodes videos.
    tokenizer: of prompts. mesh: the devices.
    drawn: called after each canvas that was filled, with the number of its frames that were not known before.
    watch: called after each step of sampling (vdit.sampling.stepwise); what it raises ends the work. On one host only.
    """

    experiment: Experiment
    params: PyTree
    vae: VideoVAE
    tokenizer: Tokenizer
    mesh: Mesh
    drawn: Callable[[int], None] | None = None
    watch: Watch | None = None

    @property
    def network(self) -> Network:
        """The text encoder, the transformers, ... (vdit.models.network)."""
        return self.experiment.network

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        image: Array | None = None,
        given: Reference | None = None,
        conditions: Mapping[str, Array] | None = None,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        noise: Array | None = None,
        latents: bool = False,
        expand: Expander | None = None,
        **sampling: Unpack[Sampling],
    ) -> Array:
        """Videos for prompts: float32 [b t h w 3] in [-1, 1], one for each prompt.

        A model of classes takes class numbers (or names, if it has them) as its prompts: "7".

        image: the first frame, uint8 or float in [-1, 1], [h w 3] for all prompts or [b h w 3], one for each;
            scaled to cover `size`, and cut around its middle.
        given: what is given of the videos, for one of them or for all prompts (vdit.sampling.programs; the functions of
            vdit.generate.verbs build it). Latents come from what is given, and the video is decoded from them: what
            was
            given is not put back pixel for pixel. Where no level is 1, sampling begins at the largest.
        conditions: name -> values of a condition of the model, float [b ...], one for each prompt: of the clip, of each
            frame of tokens [b k f], of each latent [b t' h' w' c], or of a sequence [b l e]
            (vdit.models.conditioner). What is missing is as in the clips from which it was dropped in training.
        frames: 1 + a multiple of the VAE's stride in time; 1 makes images. size: (height, width) in
        pixels, multiples of VAE stride x patch. What is None is as in the experiment's `sample`.
        guidance: scale, 1 for none; low_guidance: that of a model's second transformer, None for the same.
        known_level, context_guidance: see vdit.sampling.config.SamplingConfig.
        reuse: threshold under which the network's blocks are passed over between steps; 0 for never
        (vdit.sampling.config).
        seed: from 0 to 2**64 - 1; the same seed, prompts and sizes give the same videos. negative: guided away from.
        noise: float32 [b t' h' w' c], the latents to start from instead of those that `seed` draws.
        latents: give the normalised latents float32 [b t' h' w' c], not the videos.
        expand: makes a detailed caption of each prompt first, with the same seed (vdit.open_expander); a VditWarning
        says which prompts it leaves as they are.
        Compiles once for each combination of number of prompts, frames, size, steps and method.
        On several hosts all call it with the same arguments, and each gets all of the videos
        (vdit.sampling.programs.sample).
        Raises ShapeError for sizes that the model cannot make, ConfigError for unknown samplers, NumericsError where
        numbers overflowed on the way.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError(f"prompts={prompts!r} must be a text or a list of at least one text")
        if expand is not None:
            prompts = _expanded(expand, prompts, seed, "video" if image is None and given is None else "image")
        unknown = sorted(set(sampling) - set(Sampling.__annotations__))
        if unknown:
            raise TypeError(f"{unknown[0]}={sampling[unknown[0]]!r}: there is no such option of sampling")
        negative = sampling.pop("negative", None) or ""
        if image is not None:
            size = self.experiment.sample.size if size is None else size
            given = self._first_frame(image, size, len(prompts))
        if given is not None:
            size, given = given.video.shape[2:4], _for_each(given, len(prompts))
        method = self.method(given=given is not None and bool((np.asarray(given.level) == 0).any()), **sampling)
        self.check_negative(negative, method)
        method = _suited(method, given)
        task = self.task(method, frames, size, given=given is not None, decode=not latents)
        noise = None if noise is None else self._noise(noise, task, len(prompts))
        if conditions:
            conditions = check_canvas_conditions(self.experiment.network, conditions, len(prompts), task.latent_shape)
            given = conditions if given is None else dataclasses.replace(given, cond={**given.cond, **conditions})
        tokens = self.tokens(prompts), self.tokens([negative] * len(prompts))
        made = self.run(task, tokens, key_of(seed), noise, given)
        if nonfinite_names(made):
            raise NumericsError(
                "what was sampled holds NaN or infinity, though weights and statistics do not: compute in float32 "
                "(--compute float32), or lower the guidance"
            )
        return made

    def run(
        self,
        task: TextToVideo | SampleCanvas,
        prompts: tuple[Prompts, Prompts],
        key: Array,
        noise: Array | None = None,
        given: Reference | CanvasInput | None = None,
    ) -> Array:
        """What a task makes on the generator's mesh (vdit.sampling.programs.sample); prompts: (positive, negative)."""
        inputs = task, self.mesh, self._parameters(task), prompts, key, noise, given
        made = sample(*inputs) if self.watch is None else sample_stepwise(*inputs, watch=self.watch)
        self._report(task, given, made)
        return made

    def run_packed(
        self, tasks: Sequence[TextToVideo], prompts: tuple[Prompts, Prompts], noise: Sequence[Array], size: RowSize
    ) -> list[np.ndarray]:
        """Videos of several sizes, side by side (vdit.sampling.packed); watched, as `run` is."""
        watch = (lambda step: None) if self.watch is None else self.watch
        parameters = self._parameters(tasks[0])
        return sample_packed(tasks, self.mesh, parameters, prompts, noise, size=size, watch=watch)

    def _parameters(self, task: TextToVideo | SampleCanvas) -> Parameters:
        if isinstance(task, SampleCanvas):
            return Parameters(self.params)
        return Parameters(self.params, self.vae.params, self.vae.statistics)

    def _report(
        self, task: TextToVideo | SampleCanvas, given: Reference | CanvasInput | None, made: Array
    ) -> None:
        """Tells `drawn` of what was made, once it is."""
        if self.drawn is not None:
            jax.block_until_ready(made)
            self.drawn(_new_frames(task, given, self.experiment.vae.temporal_stride))

    def task(
        self,
        method: SamplingConfig,
        frames: int | None,
        size: tuple[int, int] | None,
        *,
        given: bool = False,
        decode: bool = True,
    ) -> TextToVideo:
        """The function that is compiled for these sizes; raises ShapeError if the model cannot make them."""
        defaults = self.experiment.sample
        size = defaults.size if size is None else size
        if len(size) != 2:
            raise ShapeError(f"size={size} must be two numbers: (height, width)")
        if self.experiment.network.reference_channels and not given:
            raise ConfigError("this model makes videos of images: give an image, the first frame")
        return (FromVideo if given else TextToVideo)(
            network=self.experiment.network,
            vae=self.experiment.vae,
            method=method,
            frames=int(defaults.frames if frames is None else frames),
            size=(int(size[0]), int(size[1])),
            decode=decode,
        )

    def method(self, *, given: bool = False, **changes: Any) -> SamplingConfig:
        """How videos are sampled: as the experiment does, but for `changes` that are not None (see __call__).

        Args:
            given: whether anything is given of the videos. A model that was not trained on canvases is then sampled
                with steps repeated, unless a sampler is named, and VditWarning says so.
        """
        changes = {k: v for k, v in changes.items() if v is not None}
        if given and replaces_known(self.experiment):
            warnings.warn(_NOT_TRAINED, VditWarning, stacklevel=3)
            changes = known_changes(self.experiment, changes)
        return sampling_config(self.experiment, **changes)

    def check_negative(self, negative: str, method: SamplingConfig) -> None:
        """A VditWarning where a prompt to guide away from has no effect."""
        if negative and not method.guided:
            name = negative if len(negative) <= 30 else f"{negative[:30]}..."
            warnings.warn(
                f"negative prompt {name!r} has no effect: guidance is {method.guidance.scale:g}, give one above 1",
                VditWarning,
                stacklevel=3,
            )

    def tokens(self, prompts: Sequence[str]) -> Prompts:
        """Prompts as the model reads them; a VditWarning where one is longer than that."""
        limit = self.experiment.text.max_length
        warn_of_cuts(self.tokenizer, dict.fromkeys(prompts), limit=limit)
        return tokenize(self.tokenizer, list(prompts), length=limit)

    def _first_frame(self, image: Array, size: tuple[int, int], count: int) -> Reference:
        images = as_bytes(image)
        if len(images) not in (1, count):
            raise ShapeError(f"{len(images)} images for {count} prompts: give one for all, or one for each")
        spread = lambda x: np.repeat(x, count // len(x), axis=0)  # noqa: E731
        pixels = None
        if self.experiment.vision is not None:  # the encoder cuts the given image in its own way
            pixels = spread(np.stack([clip_pixels(frame, self.experiment.vision) for frame in images]))
        frames = np.float32(spread(fit_images(images, size))) / 127.5 - 1.0
        level = np.zeros((count, 1, 1, 1), np.float32)
        return Reference(video=frames[:, None], level=level, pixels=pixels)

    def _noise(self, noise: Array, task: TextToVideo, count: int) -> Array:
        if np.shape(noise) != (count, *task.latent_shape):
            raise ShapeError(f"noise of shape {np.shape(noise)} must be {(count, *task.latent_shape)}, as the latents")
        noise = np.asarray(noise, np.float32)
        if not np.isfinite(noise).all():
            raise ShapeError("noise has values that are NaN or infinite: draw it again")
        return noise


def _expanded(expander: Expander, prompts: Sequence[str], seed: int, task: Literal["video", "image"]) -> list[str]:
    """Captions in place of prompts."""
    made = expander.expand(prompts, seed=seed, task=task)
    for one in made:
        if not one.expanded:
            warnings.warn(f"prompt {one.prompt[:40]!r} is {one.note}", VditWarning, stacklevel=3)
    return [one.text for one in made]


def _new_frames(task: TextToVideo | SampleCanvas, given: Reference | CanvasInput | None, stride: int) -> int:
    """Frames of a canvas that are not known before it is filled; stride: frames that a latent frame stands for."""
    if given is None or isinstance(given, dict):
        return task.frames
    level = np.asarray(given.level if isinstance(given, Reference) else given.canvas.level)
    new = int(level.any(axis=(0, 2, 3)).sum())
    return task.frames - level.shape[1] + new if isinstance(given, Reference) else new * stride


def _for_each(given: Reference, count: int) -> Reference:
    """What is given of one video or of `count`, for `count` videos."""

    def spread(x: Array) -> Array:
        if len(x) not in (1, count):
            raise ShapeError(f"{len(x)} videos are given for {count} prompts: give one for all, or one for each")
        return np.repeat(np.asarray(x, np.float32), count // len(x), axis=0)

    return jax.tree.map(spread, given)


def _suited(method: SamplingConfig, given: Reference | None) -> SamplingConfig:
    """The method from the noise level on at which the given videos begin: 1 where anything is generated from scratch.

    Guidance by what is known is left out where nothing is: it would cost a row and change nothing.
    """
    if given is None or not (np.asarray(given.level) == 0).any():
        method = dataclasses.replace(method, context_guidance=1.0)
    start = 1.0 if given is None else float(np.max(given.level))
    if start in (0.0, 1.0):
        return method
    return dataclasses.replace(method, grid=dataclasses.replace(method.grid, start=start))


Texts = str | Sequence[str]
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


def texts_of(prompts: Texts) -> list[str]:
    """One text for each video; ConfigError for anything else."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"prompts={prompts!r} must be a text or a list of at least one text")
    return texts


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


def noise_of(generator: Generator, seeds: Sequence[int], *, frames: int, size: tuple[int, int]) -> np.ndarray:
    """float32 [b t' h' w' c]: what `generator([prompt], seed=seed)` draws for each of `seeds`.

    As noise= of one call for many prompts, it makes each video the one that its seed makes alone, but for samplers that
    draw more noise on their way (ddpm). Raises ShapeError for sizes that the model cannot make.
    """
    shape = generator.task(generator.method(), frames, size, given=True).latent_shape
    patch = generator.experiment.backbone.patch
    grid = token_grid((1, *shape), patch)
    tokens = (math.prod(grid), math.prod(patch) * shape[-1])
    draw = lambda seed: jax.random.normal(jax.random.split(key_of(seed))[0], tokens, jnp.float32)  # noqa: E731
    return np.asarray(unpatchify(jnp.stack([draw(seed) for seed in seeds]), grid, patch))
