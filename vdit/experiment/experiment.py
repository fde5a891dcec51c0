"""One experiment: every choice of a run, from the videos to the samples, in one frozen tree."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from vdit import samplers
from vdit.data.config import DataConfig
from vdit.data.data_source import DataSource
from vdit.diffusion import DiffusionConfig
from vdit.dist.mesh import MeshConfig
from vdit.errors import ConfigError
from vdit.experiment.canvases import CanvasConfig
from vdit.experiment.evaluator import Evaluator
from vdit.experiment.objectives import DenoisingLoss, DiffusionModel, Objective
from vdit.experiment.training import LoRAConfig, TrainConfig
from vdit.models.backbone import Backbone
from vdit.models.conditioner import Conditioner
from vdit.models.dit.config import DiTConfig
from vdit.models.network import Network
from vdit.models.text.config import TextConfig
from vdit.models.vae.config import DiscriminatorConfig, VAEConfig, VAELossConfig, VAEObjective
from vdit.models.vision import CLIPVisionConfig
from vdit.registry import OneOf
from vdit.reprs import short_repr
from vdit.samplers import Sampler
from vdit.samplers.grid import GridOptions
from vdit.seeds import check_seed


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """The stage that encodes videos once, so that DiT training reads latents from disk.

    samples: how many clips to encode; 0 is one pass over the source. With more samples than videos
        each pass draws other cuts (start, size, duration, frame rate).
    dtype: type on disk.
    latent_frames: encode so many latent frames at a time; 0 is whole clips at once. 1 compiles two programs
        for each height and width whatever the durations, and holds long clips in flat memory.
    text: also encode the captions once (vdit.data.texts), so that the training step holds no text encoder. For models
        whose text encoder is not trained: a LoRA, or a T5 of the model that training starts from.
    text_dtype: type of encoded captions on disk and in rows.
    """

    samples: int = 0
    latent_frames: int = 0
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    text: bool = False
    text_dtype: Literal["float16", "bfloat16", "float32"] = "float16"


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class VAETrainConfig:
    """Windows that the VAE is trained on: `frames` frames of `size` (height, width) pixels."""

    frames: int = 17
    size: tuple[int, int] = (64, 64)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How videos are sampled while training goes, and by default afterwards.

    prompts: shown in the log at every `dit_train.sample_every` steps.
    size: (height, width) in pixels. frames, fps: duration and frame rate.
    sampler: any registered sampler (vdit.samplers); in Python its name stands for the one with its usual options.
    grid: where the levels lie; None is the usual for the kind of diffusion. Asking for another sampler leaves it out.
    guidance: scale of classifier-free guidance, 1 for none; interval, rescale: see vdit.diffusion.Guidance.
    low_guidance: its scale for the second transformer of a model that has two; None is `guidance`.
    conditioning, known_level, context_guidance: how the model receives and follows what a user gives
        (vdit.sampling.SamplingConfig);
        conditioning=None is "clean" for models trained with canvases (Experiment.canvases), else "replacement".
    joins: how generated frames meet given ones: "motion" mixes frames beside a join with the given frame, moved along,
        and matches colours; "colour" only matches colours (vdit.generate.blend).
    reuse: threshold under which blocks are passed over between steps, for speed (vdit.sampling.config); 0 for never.
    """

    prompts: tuple[str, ...] = ()
    frames: int = 17
    size: tuple[int, int] = (64, 64)
    fps: float = 8.0
    sampler: Annotated[Sampler, OneOf("sampler")] = samplers.Euler()
    grid: GridOptions | None = None
    steps: int = 20
    guidance: float = 4.0
    low_guidance: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    conditioning: Literal["clean", "replacement"] | None = None
    known_level: float = 0.0
    context_guidance: float = 1.0
    reuse: float = 0.0
    joins: Literal["motion", "colour"] = "motion"

    def __post_init__(self) -> None:
        if isinstance(self.sampler, str):
            object.__setattr__(self, "sampler", samplers.make(self.sampler))


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run of `vdit train`. Its stages: tokenizer, VAE, latents, DiT.

    name: of the run. mesh: how devices share the work.
    vae, vae_loss, discriminator, vae_clips, vae_train: the VAE, what it is trained on, and for how long.
    text, vision, diffusion, dit_train: encoders, noise schedule and prediction, and the transformer's training.
    backbone: the transformer, any registered backbone.
    conditions: what the backbone takes besides text and what its own config declares: any registered
        conditioners.
    expert_boundary: the time (0 to 1000) above which the first of two transformers is used; None for one.
    first_label, label_names: number of the first class in prompts, and names of classes.
    sample: how videos are sampled by default.
    seed: from 0 to 2**64 - 1: of weights, of the order of the data and of the parts that are cut from it.
    holdout: ids of videos (file names in a folder) that nothing is trained on.
    held_out: data that evaluators measure on; None is what `data.source` leaves out: the files in `holdout`, other
        scenes of a world.
    evaluators: what is measured while training goes: any registered evaluators, each of a kind once.
    text_dropout: share of captions replaced by the empty prompt, for classifier-free guidance.
    canvases: what is known of the clips that the DiT is trained on (vdit.experiment.canvases).
    topology: the TPU topology that it is for, as "v5p:8x8x8"; what `vdit plan` compiles it for by default.
    start_from: folder of the model whose weights the DiT's training starts from; its VAE and tokenizer are used.
    lora: train low-rank additions to that model instead of its weights.
    objective: what the DiT's training minimises: any registered objective. "consistency" trains a model of few steps,
        with the model in `start_from` as its teacher.
    """

    name: str
    seed: int = 0
    data: DataConfig = DataConfig()
    holdout: tuple[str, ...] = ()
    held_out: Annotated[DataSource, OneOf("data_source")] | None = None
    evaluators: tuple[Annotated[Evaluator, OneOf("evaluator")], ...] = ()
    mesh: MeshConfig = MeshConfig()
    topology: str | None = None

    vae: VAEConfig = VAEConfig()
    vae_loss: Annotated[VAEObjective, OneOf("vae_objective")] = VAELossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    vae_clips: VAETrainConfig = VAETrainConfig()
    vae_train: TrainConfig = TrainConfig(steps=1000, batch_size=8)

    latents: LatentsConfig = LatentsConfig()

    text: TextConfig = TextConfig()
    text_dropout: float = 0.1
    vision: CLIPVisionConfig | None = None
    backbone: Annotated[Backbone, OneOf("backbone")] = DiTConfig()
    conditions: tuple[Annotated[Conditioner, OneOf("conditioner")], ...] = ()
    expert_boundary: float | None = None
    first_label: int = 1
    label_names: tuple[str, ...] = ()
    diffusion: DiffusionConfig = DiffusionConfig()
    canvases: CanvasConfig = CanvasConfig()
    dit_train: TrainConfig = TrainConfig(steps=1000, batch_size=8)
    start_from: str | None = None
    lora: LoRAConfig | None = None
    objective: Annotated[Objective, OneOf("objective")] = DenoisingLoss()

    sample: SampleConfig = SampleConfig()

    def __post_init__(self) -> None:
        check_seed(self.seed)
        kinds = [type(evaluator) for evaluator in self.evaluators]
        if len(set(kinds)) < len(kinds):
            raise ConfigError("evaluators: the same one is given twice; their figures would have one name")
        if self.backbone.in_channels != self.vae.latent_channels:
            raise ConfigError(
                f"backbone.in_channels={self.backbone.in_channels} must equal "
                f"vae.latent_channels={self.vae.latent_channels}"
            )
        if self.backbone.learn_variance != self.diffusion.learn_variance:
            raise ConfigError("backbone.learn_variance and diffusion.learn_variance must be the same")
        multiple = self.size_multiple
        if self.data.size_multiple % multiple:
            raise ConfigError(
                f"data.size_multiple={self.data.size_multiple} must be a multiple of {multiple}: "
                f"VAE stride {self.vae.spatial_stride} times the backbone's patch {self.backbone.patch[1:]}"
            )
        if self.data.frame_multiple % self.vae.temporal_stride:
            raise ConfigError(
                f"data.frame_multiple={self.data.frame_multiple} must be a multiple of the VAE's "
                f"stride in time, {self.vae.temporal_stride}"
            )
        if not 0 <= self.text_dropout <= 1:
            raise ConfigError(f"text_dropout={self.text_dropout}: a probability, give 0 to 1")
        wanted = self.data.actions * self.vae.temporal_stride * self.backbone.patch[0]
        width = self.network.action_width
        if width != wanted:
            raise ConfigError(
                f"backbone.action_width={width} must be {wanted}: data.actions={self.data.actions} numbers for each "
                "video frame that a frame of tokens stands for"
            )
        if self.lora is not None and self.start_from is None:
            raise ConfigError("lora is added to a trained model: name its folder in start_from, or set lora=none")
        if self.latents.text and not self.text_is_frozen:
            raise ConfigError(
                "latents.text=True: captions are encoded once only for a text encoder that is not trained: a LoRA, or "
                "a model with a T5 named in start_from; set latents.text=False"
            )
        self.objective.check(self.diffusion)
        if self.objective.teacher and self.start_from is None:
            raise ConfigError("objective needs a teacher: name the folder of a trained model in start_from")
        if self.objective.teacher and self.lora is not None:
            raise ConfigError("an objective with a teacher trains all weights: set lora=none")
        if self.data.max_text_per_row < self.text.max_length and self.backbone.uses_text:
            raise ConfigError(
                f"data.max_text_per_row={self.data.max_text_per_row} must hold one caption of "
                f"text.max_length={self.text.max_length}"
            )

    def check_rate(self) -> None:
        """Raises ConfigError if videos would be sampled at a frame rate (sample.fps) that nothing was trained at.

        Every command takes sample.fps for the rate that the model knows. Latents made elsewhere say no rate here.
        """
        if self.data.source.has_frame_rate and max(self.data.frames) > 1 and self.sample.fps not in self.data.fps:
            trained = ", ".join(f"{fps:g}" for fps in self.data.fps)
            raise ConfigError(
                f"sample.fps={self.sample.fps:g}: the model is trained at {trained} frames a second (data.fps), and "
                f"knows no other rate; set sample.fps={self.data.fps[0]:g}"
            )

    @property
    def text_is_frozen(self) -> bool:
        """Whether the model has a text encoder that its training does not change."""
        return self.start_from is not None and self.backbone.uses_text and (
            self.lora is not None or self.text.t5 is not None
        )  # fmt: skip

    @property
    def size_multiple(self) -> int:
        """Heights and widths of videos must be multiples of this."""
        return self.vae.spatial_stride * max(self.backbone.patch[1:])

    @property
    def model(self) -> DiffusionModel:
        """What objectives are made for: the network, and how it is trained."""
        return DiffusionModel(
            network=self.network, diffusion=self.diffusion, canvases=self.canvases, text_dropout=self.text_dropout
        )

    @property
    def network(self) -> Network:
        text = self.text if self.backbone.uses_text else None
        return Network(
            text=text,
            backbone=self.backbone,
            conditions=self.conditions,
            vision=self.vision,
            boundary=self.expert_boundary,
        )
