"""Evaluation while a model trains: evaluators on held-out data, and the samples that are shown in the log.

An evaluator of one's own is a registered frozen dataclass with `every` and `prepare`:

    @register("evaluator", "my_evaluator")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyEvaluator(Evaluator):
        every: int = 500

        def prepare(self, run):
            batches = run.rows(clips=16)
            return lambda params: {"score": float(score(run.model, params, batches))}

Its figures go to TensorBoard, W&B, the JSON lines and the progress line as "eval/my_evaluator/score".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.checkpoint import load_params
from vdit.data.conditions import read_conditions
from vdit.data.data_source import Sample, Source
from vdit.data.latents import DTYPES
from vdit.data.pipeline import TokenSpec, row_iterator
from vdit.data.texts import CachedTokenizer, TextsInMemory
from vdit.dist.rules import batch_shardings
from vdit.errors import ConfigError
from vdit.eval.evaluate import Case, VideoSet, embed, evaluate, metrics_of
from vdit.eval.statistics import frechet
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.evaluator import Evaluator, Measure
from vdit.experiment.experiment import Experiment
from vdit.experiment.objectives import DiffusionModel, corrupt, denoising_loss, forward
from vdit.models.text.tokenizer import NoText
from vdit.models.vae.video import VideoVAE
from vdit.nn.lora import join
from vdit.registry import get, name_of, register
from vdit.reprs import short_repr
from vdit.sampling import programs
from vdit.sampling.canvas import tokenize
from vdit.sampling.config import sampling_config
from vdit.seeds import key_of
from vdit.train.loop import Evaluation, SampleHook
from vdit.train.pretrained import starting_params
from vdit.train.state import TrainState
from vdit.train.texts import TextEncoding
from vdit.train.workspace import Workspace
from vdit.types import Array, PyTree, Row


class EvaluationRun:
    """What an evaluator is given of a run: the experiment, its parts, and held-out data.

    experiment, workspace: of the run. mesh: the devices that train. frozen: parameters that are not trained, or None.
    """

    def __init__(self, experiment: Experiment, workspace: Workspace, mesh: Mesh, *, frozen: PyTree | None = None):
        self.experiment, self.workspace, self.mesh, self.frozen = experiment, workspace, mesh, frozen

    @property
    def model(self) -> DiffusionModel:
        """The network with its diffusion, as an objective gets it."""
        return self.experiment.model

    @functools.cached_property
    def source(self) -> Source:
        """Held-out videos, as samples: `held_out` of the experiment, or what its data source leaves out.

        Raises:
            ConfigError: there are none.
        """
        e = self.experiment
        if e.held_out is not None:
            return e.held_out.open(e.data, seed=e.seed)
        source = e.data.source.open_held_out(e.data, seed=e.seed, holdout=e.holdout)
        if source is None:
            name = name_of("data_source", e.data.source)
            raise ConfigError(
                f"evaluators need held-out data, and data.source={name!r} has none: name files in holdout=(...), give "
                "another source in held_out, or set evaluators=none"
            )
        return source

    def videos(self, count: int, *, frames: int, size: tuple[int, int]) -> np.ndarray:
        """Windows of held-out videos, the same at every call.

        Args:
            count: how many. With more than there are videos, each gives several windows.
            frames, size: of a window: frames, (height, width) in pixels.

        Returns:
            uint8 [count frames height width 3].
        """
        if not hasattr(self.source, "crops"):
            raise ConfigError("held-out latents hold no videos: give a source of videos in held_out")
        crops = self.source.crops(size=size, frames=frames)
        return np.stack([crops[i]["video"] for i in range(count)])

    def clips(self, count: int) -> list[Sample]:
        """The first `count` held-out samples; each with "latent" float32 [t h w c], normalised, and "captions"."""
        vae = None
        clips = []
        for i in range(count):
            sample = dict(self.source[i])
            if "latent" in sample:
                stats = self.workspace.statistics()
                sample["latent"] = (np.asarray(sample["latent"], np.float32) - stats["mean"]) / stats["std"]
            else:
                vae = self.vae if vae is None else vae
                frames = self.experiment.latents.latent_frames or None
                sample |= read_conditions(self.experiment.conditions, sample)
                sample["latent"] = np.asarray(vae.encode(sample.pop("video")[None], latent_frames=frames)[0])
            clips.append(sample)
        return clips

    def rows(self, clips: int) -> list[Row]:
        """Held-out clips packed into batches of the shape that is trained on, on the devices.

        Args:
            clips: how many. The last batch is filled up with clips again.
        """
        e, space = self.experiment, self.workspace
        tokenizer = space.open_tokenizer(e) if e.network.uses_text else NoText()
        data = dataclasses.replace(e.data, streams=1, epochs=0, threads=0, read_ahead=0, prefetch=0,
                                   buffer_clips=clips, hflip=0.0)  # fmt: skip
        held = self.clips(clips)
        source = _Held(held)
        if e.latents.text:
            captions = list(dict.fromkeys(["", *(text for clip in held for text in clip.get("captions", ()))]))
            features = TextEncoding(e, tokenizer)(captions)
            stored = [np.asarray(one, DTYPES[e.latents.text_dtype]) for one in features]
            tokenizer = CachedTokenizer(tokenizer, TextsInMemory(dict(zip(captions, stored))))
        batches, seen = [], 0
        tokens = TokenSpec(patch=e.backbone.patch, stride=e.vae.temporal_stride, conditions=e.network.spec.conditions,
                           compose=e.objective.compose_text)  # fmt: skip
        rows = row_iterator(data, source, tokenizer, tokens, seed=e.seed, batch_rows=e.dit_train.batch_size)
        while seen < clips:
            batch = next(rows)
            seen += int(np.asarray(batch.segment_ids).max(axis=1).sum())
            batches.append(jax.device_put(batch, batch_shardings(self.mesh, batch)))
        return batches

    @functools.cached_property
    def vae(self) -> VideoVAE:
        """The run's trained VAE."""
        # On the host: evaluators may take of the devices' memory only while they run.
        params = jax.tree.map(np.asarray, load_params(self.workspace.vae)["vae"])
        return VideoVAE(config=self.experiment.vae, params=params, statistics=self.workspace.statistics())

    def sampler(self, prompts: Sequence[str]) -> Callable[[PyTree], Array]:
        """A function of the parameters that samples a video of each prompt, as `experiment.sample` says.

        The noise is the same at every call: what changes is the model. All hosts call it, and each gets all videos.

        Returns:
            params -> float32 [prompts t h w 3] in [-1, 1].
        """
        e, sample = self.experiment, self.experiment.sample
        task = programs.TextToVideo(
            network=e.network, vae=e.vae, method=sampling_config(e), frames=sample.frames, size=sample.size
        )
        tokenizer, length = self.workspace.open_tokenizer(e), e.text.max_length
        positive = tokenize(tokenizer, list(prompts), length=length)
        negative = tokenize(tokenizer, [""] * len(prompts), length=length)
        vae, statistics = self.vae.params, self.workspace.statistics()

        def sample_videos(params: PyTree) -> Array:
            whole = self.whole(params)
            if e.latents.text:  # only while it is needed: training holds no text encoder
                whole = {**whole, **starting_params(e, self.mesh, ("text",))}
            parameters = programs.Parameters(whole, vae, statistics)
            return programs.sample(task, self.mesh, parameters, (positive, negative), key_of(e.seed))

        return sample_videos

    def whole(self, params: PyTree) -> PyTree:
        """All parameters of the network: what is trained, joined with what is frozen."""
        return params if self.frozen is None else join(self.frozen, params)


class _Held(Source):
    """Samples in memory."""

    def __init__(self, samples: list[Sample]):
        super().__init__()
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, item: int, epoch: int) -> Sample:
        return self._samples[item]


@register("evaluator", "denoising")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingEvaluator(Evaluator):
    """The denoising loss of held-out clips at fixed noise levels, with the same noise every time.

    Figures: "loss", the mean over the levels, and "level_0.1" and so on. Nothing of the clips is known, no caption is
    dropped.

    every: steps between two measurements. clips: how many held-out clips. levels: noise levels above 0, up to 1.
    """

    every: int = 500
    clips: int = 32
    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ConfigError(f"clips={self.clips}: must be 1 or more")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ConfigError(f"levels={self.levels}: give at least one noise level, each above 0 and at most 1")

    def prepare(self, run: EvaluationRun) -> Measure:
        model = dataclasses.replace(run.model, canvases=CanvasConfig(), text_dropout=0.0, condition_dropout=False)
        batches = run.rows(self.clips)
        key = jax.random.fold_in(key_of(run.experiment.seed), 1)

        @jax.jit
        def measure(params: PyTree, row: Row, key: Array, level: Array) -> tuple[Array, Array]:
            corrupted = corrupt(key, row, model, level=level)
            _, metrics = denoising_loss(model, forward(model, params, corrupted), corrupted)
            return metrics["mse"] * metrics["weight"], metrics["weight"]

        def evaluate(params: PyTree) -> dict[str, float]:
            whole, figures = run.whole(params), {}
            with jax.set_mesh(run.mesh):
                for level in self.levels:
                    found = [measure(whole, row, jax.random.fold_in(key, i), jnp.float32(level))
                             for i, row in enumerate(batches)]  # fmt: skip
                    total, weight = (float(sum(part)) for part in zip(*found))
                    figures[f"level_{level:g}"] = total / max(weight, 1.0)
            return {"loss": float(np.mean(list(figures.values())))} | figures

        return evaluate


@register("evaluator", "reconstruction")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionEvaluator(Evaluator):
    """How well the VAE reconstructs held-out videos, while it trains: "psnr" in dB and "l1".

    every: steps between two measurements. videos: windows of the size that is trained on (`vae_clips`).
    """

    stage: ClassVar[str] = "vae"

    every: int = 500
    videos: int = 16

    def __post_init__(self) -> None:
        if self.videos < 1:
            raise ConfigError(f"videos={self.videos}: must be 1 or more")

    def prepare(self, run: EvaluationRun) -> Measure:
        e = run.experiment
        videos = run.videos(self.videos, frames=e.vae_clips.frames, size=e.vae_clips.size)
        channels = e.vae.latent_channels
        plain = {"mean": np.zeros(channels, np.float32), "std": np.ones(channels, np.float32)}

        def evaluate(params: PyTree) -> dict[str, float]:
            vae = VideoVAE(config=e.vae, params=params["vae"], statistics=plain)
            psnr, l1 = [], []
            with jax.set_mesh(run.mesh):
                for video in videos:
                    error = np.asarray(vae.decode(vae.encode(video[None]))[0]) - (video / np.float32(127.5) - 1)
                    l1.append(np.abs(error).mean())
                    # Of each frame, as is usual for video autoencoders; pixels span 2.
                    squared = np.square(error).mean(axis=(1, 2, 3))
                    psnr.append(np.mean(-10 * np.log10(squared / 4 + 1e-12)))
            return {"psnr": float(np.mean(psnr)), "l1": float(np.mean(l1))}

        return evaluate


@register("evaluator", "samples")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleEvaluator(Evaluator):
    """Compares sampled videos with held-out ones of the same captions, size and duration, by three cheap figures.

    "frechet": Frechet distance between normal distributions fitted to the latents [c] of both (Dowson and Landau,
    1982). "motion" and "contrast": the mean difference of neighbouring frames and the standard deviation of pixels, of
    the samples relative to those of the held-out videos; 1 is right, a motion of 0 is a still picture.

    every: steps between two measurements. videos: how many are sampled, with the same noise every time.
    """

    every: int = 2000
    videos: int = 8

    def __post_init__(self) -> None:
        if self.videos < 1:
            raise ConfigError(f"videos={self.videos}: must be 1 or more")

    def prepare(self, run: EvaluationRun) -> Measure:
        sample = run.experiment.sample
        crops = run.source.crops(size=sample.size, frames=sample.frames)
        real = [crops[i] for i in range(self.videos)]
        captions = [clip["captions"][0] if clip["captions"] else "" for clip in real]
        videos = np.stack([clip["video"] for clip in real]).astype(np.float32) / np.float32(127.5) - 1
        sampler = run.sampler(captions)
        known: dict[str, np.ndarray] = {}

        def evaluate(params: PyTree) -> dict[str, float]:
            made = np.asarray(sampler(params))
            with jax.set_mesh(run.mesh):
                if not known:
                    known["latents"] = _latents(run.vae, videos)
                found = _latents(run.vae, made)
            motion, contrast = (_relative(measure, made, videos) for measure in (_motion, np.std))
            return {"frechet": frechet(found, known["latents"]), "motion": motion, "contrast": contrast}

        return evaluate


@register("evaluator", "metrics")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsEvaluator(Evaluator):
    """Measures sampled videos by the metrics of vdit.eval, beside held-out videos of the same captions.

    Of a metric that is best where it is as of real videos, the figure is its value over that of the held-out ones.

    every: steps between two measurements. videos: how many are sampled, with the same noise every time. metrics: names
    (registered of kind "metric"); those that need the true video of each sample cannot be measured. features: the net
    of metrics that compare sets: "worlds", which ships, or a folder (vdit.pretrained.features); "" for none.
    """

    every: int = 2000
    videos: int = 8
    metrics: tuple[str, ...] = ("sharpness", "flicker", "motion_smoothness", "frechet", "mmd")
    features: str = "worlds"

    def __post_init__(self) -> None:
        if self.videos < 1:
            raise ConfigError(f"videos={self.videos}: must be 1 or more")
        if not self.metrics:
            raise ConfigError("metrics=(): name at least one metric")

    def prepare(self, run: EvaluationRun) -> Measure:
        real = self._held_out(run)
        net = get("features", "folder")(path=self.features).open() if self.features else None
        known = ["real", "caption", *(["features"] if net is not None else [])]
        known += ["texts"] if net is not None and net.reads_text else []
        known += ["scene"] if real[0].scene is not None else []
        metrics = metrics_of(self.metrics, known)
        sampler = run.sampler([case.caption or "" for case in real])
        truth = VideoSet(name="real", cases=[lambda case=case: case for case in real])
        alone = [metric for metric in metrics if hasattr(metric, "measure")]
        usual = {figure.name: figure.interval.value for figure in evaluate(truth, alone).figures} if alone else {}
        features = None if net is None else embed(truth, net)

        def measure(params: PyTree) -> dict[str, float]:
            made = np.round((np.clip(np.asarray(sampler(params)), -1, 1) + 1) * 127.5).astype(np.uint8)
            cases = [dataclasses.replace(case, video=video) for case, video in zip(real, made)]
            videos = VideoSet(name="made", cases=[lambda case=case: case for case in cases])
            found = evaluate(videos, metrics, net=net, real=features)
            relative = lambda f: f.interval.value / max(usual[f.name], 1e-8)  # noqa: E731
            return {f.name: relative(f) if f.better == "real" else f.interval.value for f in found.figures}

        return measure

    def _held_out(self, run: EvaluationRun) -> list[Case]:
        """Held-out videos of the size that is sampled; of worlds, whole scenes with all that is true of them."""
        sample = run.experiment.sample
        world = getattr(getattr(run.source, "library", None), "world", None)
        if world is not None:
            scenes = [world.render(i, size=sample.size, frames=sample.frames, fps=sample.fps)
                      for i in range(self.videos)]  # fmt: skip
            return [Case(name=str(i), video=scene.video, fps=scene.fps, caption=scene.caption, scene=scene.meta)
                    for i, scene in enumerate(scenes)]  # fmt: skip
        crops = run.source.crops(size=sample.size, frames=sample.frames)
        return [Case(name=str(i), video=clip["video"], fps=sample.fps, caption=(clip["captions"] or [None])[0])
                for i, clip in enumerate(crops[i] for i in range(self.videos))]  # fmt: skip


def _latents(vae: VideoVAE, videos: np.ndarray) -> np.ndarray:
    """float32 [n c], all latents of videos [b t h w 3] in [-1, 1]."""
    made = [np.asarray(vae.encode(np.clip(video[None], -1, 1))) for video in videos]
    return np.concatenate([latents.reshape(-1, latents.shape[-1]) for latents in made])


def _motion(videos: np.ndarray) -> float:
    return float(np.abs(np.diff(videos, axis=1)).mean()) if videos.shape[1] > 1 else 0.0


def _relative(measure, made: np.ndarray, real: np.ndarray) -> float:
    return float(measure(made)) / max(float(measure(real)), 1e-8)


def evaluations(run: EvaluationRun, stage: str) -> list[Evaluation]:
    """The evaluators of an experiment that belong to a stage, ready to be called by the loop."""
    chosen = [evaluator for evaluator in run.experiment.evaluators if evaluator.stage == stage]
    return [
        Evaluation(every=evaluator.every, name=name_of("evaluator", evaluator), measure=evaluator.prepare(run))
        for evaluator in chosen
        if evaluator.every
    ]


def sample_hook(run: EvaluationRun) -> SampleHook:
    """Samples the experiment's prompts every `dit_train.sample_every` steps, for the log."""
    sampler = run.sampler(run.experiment.sample.prompts)

    def videos(step: int, state: TrainState) -> dict[str, Array]:
        return {"samples": sampler(state.params if state.ema is None else state.ema)}

    return SampleHook(every=run.experiment.dit_train.sample_every, sample=videos, fps=run.experiment.sample.fps)
