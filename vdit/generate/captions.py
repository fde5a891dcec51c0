"""A captioner that `vdit train` has trained, as a model that answers (vdit.language.base.TextModel).

    model = load_captioner("runs/worlds_captioner")
    captioner = Captioner(model=model, prompts=model.prompts, max_tokens=model.max_tokens)
    [caption] = captioner.caption([sample_frames("clip.mp4", count=model.frames, side=384)])
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from vdit.data.clips import cover, fit_size
from vdit.data.patches import grid_position, patchify, token_grid
from vdit.dist.mesh import make_mesh
from vdit.errors import ConfigError, LanguageError
from vdit.experiment.captioning import END, SEPARATOR
from vdit.experiment.experiment import Experiment
from vdit.generate.loading import load_vae
from vdit.language.base import Completion, Frames, GenerationOptions, Request, parts_of
from vdit.language.prompts import CaptionPrompts
from vdit.models.backbone import smallest_row
from vdit.models.captioner import Captioner, CaptionerModel
from vdit.models.lm import LanguageModel
from vdit.models.lm.generate import Decoding, Prompts, generate
from vdit.models.network import HIGH
from vdit.models.text import Tokenizer
from vdit.models.vae.video import VideoVAE
from vdit.reprs import short_repr
from vdit.train.pretrained import trained_params
from vdit.train.resume import check_trained_run
from vdit.train.workspace import Workspace
from vdit.types import Array, PyTree, Row

_CAMERA = "camera"  # the word that tells of it in a caption


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCaptioner:
    """A trained captioner on a mesh; a `TextModel` that answers about frames alone. Make one with `load_captioner`.

    Attributes:
        name: of the run.
        experiment: that it was trained with.
        params: of the captioner. vae: what sees first. tokenizer: of its captions.
        mesh: the devices.
    """

    name: str
    experiment: Experiment
    params: PyTree
    vae: VideoVAE
    tokenizer: Tokenizer
    mesh: Mesh

    @property
    def prompts(self) -> CaptionPrompts:
        """The one question that it answers."""
        return CaptionPrompts(name="the run's own", questions={"caption": "short | detailed"})

    @property
    def frames(self) -> int:
        """Frames of a video that it sees: as many as the longest clips that it was trained on have."""
        return max(self.experiment.data.frames)

    @property
    def max_tokens(self) -> int:
        """The longest caption that it was trained on."""
        return self.experiment.text.max_length

    def complete(self, requests: Sequence[Request], options: GenerationOptions) -> list[Completion]:
        """A JSON object with "short", "detailed" and "camera" for the frames of each request; see TextModel.

        Raises:
            LanguageError: a request has no frames, or more than one video.
        """
        shown = [[part for message in request.messages for part in parts_of(message) if isinstance(part, Frames)]
                 for request in requests]  # fmt: skip
        if any(len(videos) != 1 for videos in shown):
            raise LanguageError(f"{self.name}: a captioner of a run answers about one video in each request")
        with jax.set_mesh(self.mesh):
            seen = [np.asarray(self._see(videos[0])) for videos in shown]
            return self._write(seen, options)

    def _see(self, frames: Frames) -> Array:
        """What the language model reads of a video: float [k d]."""
        latent = self.vae.encode(fit_frames(frames.pixels, self.experiment)[None])[0]
        row = clip_row(np.asarray(latent), self._config)
        embeddings, ids, _ = _program(self._config, "see")(self.params, row)
        return embeddings[0][np.asarray(ids[0]) > 0]

    def _write(self, seen: Sequence[np.ndarray], options: GenerationOptions) -> list[Completion]:
        model, first = LanguageModel(self._config.lm), np.asarray([self.tokenizer.encode("")], np.int32)
        begin = np.asarray(_program(self._config, "embed_words")(self.params, first))[0]
        lengths = [len(one) + len(begin) for one in seen]
        inputs = np.zeros((len(seen), max(lengths), self._config.lm.width), np.float32)
        for row, one in enumerate(seen):
            inputs[row, : lengths[row]] = np.concatenate([one, begin])
        prompts = Prompts(inputs=inputs, length=np.asarray(lengths, np.int32))
        room = min(options.max_tokens, self.max_tokens)
        decoding = Decoding.make(len(seen), max_tokens=room, temperature=options.temperature, top_p=options.top_p,
                                 seed=options.seed, stop_ids=(END,))  # fmt: skip
        out = generate(model, self.params["lm"], prompts, decoding, max_tokens=room)
        tokens, counts, stopped = np.asarray(out.tokens), np.asarray(out.length), np.asarray(out.stopped)
        return [
            Completion(
                text=_as_json(self.tokenizer.decode(tokens[row, : counts[row]])), tokens_in=lengths[row],
                finish_reason="stop" if stopped[row] else "length", tokens_out=int(counts[row]),
            )
            for row in range(len(seen))
        ]  # fmt: skip

    @property
    def _config(self) -> Captioner:
        return self.experiment.backbone


def load_captioner(run: str | Path, *, mesh: Mesh | None = None, step: int | None = None) -> RunCaptioner:
    """Loads a captioner that `vdit train` has trained.

    Args:
        run: its folder.
        mesh: None is all devices.
        step: of its checkpoints; None is the last one.

    Returns:
        The captioner, with its averaged parameters where there are any.

    Raises:
        ConfigError: the run is of another model.
        CheckpointError: there is no such run, or it is not trained.
    """
    mesh = make_mesh() if mesh is None else mesh
    space = Workspace(run)
    experiment = space.experiment()
    if not isinstance(experiment.backbone, Captioner):
        raise ConfigError(f"{run}: is no captioner: train one with vdit train experiments/captioner.py")
    check_trained_run(experiment, space, step=step)
    params = trained_params(experiment, space, mesh, step=step)[HIGH]
    return RunCaptioner(
        name=space.root.name, experiment=experiment, params=params, vae=load_vae(run, mesh=mesh),
        tokenizer=space.open_tokenizer(experiment), mesh=mesh,
    )  # fmt: skip


def fit_frames(pixels: np.ndarray, experiment: Experiment) -> np.ndarray:
    """Frames as the captioner was trained on them: uint8 [t h w 3] -> [t' h' w' 3].

    Their size is that of the largest pixel budget, cut around the middle; of too many or too few frames an even choice
    is taken, with repeats where needed.
    """
    data = experiment.data
    t, h, w, _ = pixels.shape
    wanted = max((n for n in data.frames if n <= t), default=min(data.frames))
    picked = pixels[np.round(np.linspace(0, t - 1, wanted)).astype(int)]
    size = fit_size(h, w, max(data.pixel_budgets), data.size_multiple)
    if (h, w) == size:
        return picked
    rows, columns = cover(h, w, size)
    resize = lambda frame: Image.fromarray(frame).resize((columns, rows), Image.Resampling.BICUBIC)  # noqa: E731
    scaled = np.stack([np.asarray(resize(frame)) for frame in picked])
    y, x = (rows - size[0]) // 2, (columns - size[1]) // 2
    return scaled[:, y : y + size[0], x : x + size[1]]


def clip_row(latent: np.ndarray, config: Captioner) -> Row:
    """One clip as a packed row of its own: latents [t h w c] -> Row."""
    values = patchify(latent, config.patch)[None].astype(np.float32)
    position = grid_position(token_grid(latent.shape, config.patch))[None]
    ids = np.ones(values.shape[:2], np.int32)
    changes = {"values": values, "position": position, "segment_ids": ids, "frame_index": position[..., 0]}
    return dataclasses.replace(smallest_row(config, ()), **changes)


@functools.cache
def _program(config: Captioner, method: str) -> Callable[[PyTree, Any], Any]:
    """A method of the model, compiled."""
    return jax.jit(lambda params, inputs: CaptionerModel(config).apply({"params": params}, inputs, method=method))


def _as_json(text: str) -> str:
    """"a dog | A dog runs. The camera pans." as the object that captions are read from."""
    short, _, detailed = text.partition(SEPARATOR.strip())
    detailed = detailed.strip() or short.strip()
    told = [part.strip() for part in detailed.replace(". ", ".\n").split("\n") if _CAMERA in part.casefold()]
    return json.dumps({"short": short.strip(), "detailed": detailed, "camera": " ".join(told) or "not said"})
