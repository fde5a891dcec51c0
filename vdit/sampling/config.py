"""How a canvas is sampled: schedule, sampler, guidance, and what the network is told of the known."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vdit import samplers
from vdit.diffusion import Guidance, make_schedule
from vdit.diffusion.schedules import Schedule
from vdit.errors import ConfigError
from vdit.experiment.experiment import Experiment
from vdit.models.cache import BlockCall, Residuals
from vdit.reprs import short_repr
from vdit.samplers.base import Sampler, StatefulDenoiser
from vdit.samplers.grid import Grid, GridOptions
from vdit.types import Array, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """While sampling is above the level `until`, low frequencies are those of the canvas, noised to the level (ILVR,
    Choi et al. 2021).

    factor: how much smaller a picture of them would be: 1 is everything, larger keeps less. In latents, of which each
        is some pixels already.
    until: 0 keeps them to the end, 1 never.
    """

    factor: float = 4.0
    until: float = 0.3

    def __post_init__(self) -> None:
        if not self.factor >= 1.0:
            raise ConfigError(f"structure factor={self.factor}: give 1 (everything is kept) or more")
        if not 0.0 <= self.until <= 1.0:
            raise ConfigError(f"structure until={self.until}: a noise level, give 0 to 1")

    def low(self, x: Array) -> Array:
        """Low frequencies of [... h w c]: a projection, so what is low already stays as it is.

        The lowest cosines along h and w (DCT-II); ILVR shrinks and enlarges instead, which is no projection.
        """
        height, width = (jnp.asarray(_lowest(n, self.factor), x.dtype) for n in x.shape[-3:-1])
        return jnp.einsum("yh,xw,...hwc->...yxc", height, width, x, precision="highest")


@functools.lru_cache(maxsize=64)
def _lowest(n: int, factor: float) -> np.ndarray:
    """float64 [n n]: the projection of n values onto their first n / factor cosines, the constant at least."""
    count = max(1, round(n / factor))
    cosines = np.cos(np.pi * (np.arange(n)[:, None] + 0.5) * np.arange(count) / n)
    cosines /= np.linalg.norm(cosines, axis=0)
    return cosines @ cosines.T


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockCache:
    """When blocks are passed over (vdit/models/cache.py): faster, and not quite the same video.

    threshold: how much of what the first block adds may change, summed over calls, before all blocks run again: 0 never
        passes over, 0.05 to 0.2 are usual. tools/reuse.py measures time and error on a model.
    first, last: so many calls of the network at the beginning and the end of sampling run all blocks.
    """

    threshold: float
    first: int = 1
    last: int = 1

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ConfigError(f"reuse.threshold={self.threshold}: a relative change, give 0 or more")
        for name in ("first", "last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reuse.{name}={getattr(self, name)}: calls that run all blocks, give 1 or more")

    def limit(self, done: Array, left: Array) -> Array:
        """Below which change blocks are passed over: float32 []; done, left: calls before and after this one."""
        free = (done >= self.first) & (left >= self.last)
        return jnp.where(free, jnp.float32(self.threshold), 0.0)


Ask = Callable[[Array, Array, BlockCall], tuple[Array, Residuals]]


def remembering(
    reuse: BlockCache, high: Ask, low: Ask, is_high: Callable[[Array], Array], *, kept: Residuals, weight: Array
) -> StatefulDenoiser:
    """A denoiser that remembers residuals, of two transformers or one (then high is low).

    is_high(t): which of them is asked. kept, weight: as in BlockCall; kept before the first call.
    """

    def ask(x: Array, t: Array, memory: PyTree, done: Array, left: Array) -> tuple[Array, PyTree]:
        kept, was_high = memory
        now_high = is_high(t)
        # What another transformer added is of no use.
        kept = dataclasses.replace(kept, change=jnp.where(now_high == was_high, kept.change, jnp.inf))
        call = BlockCall(residuals=kept, limit=reuse.limit(done, left), weight=weight)
        output, kept = high(x, t, call) if low is high else jax.lax.cond(now_high, high, low, x, t, call)
        return output, (kept, now_high)

    return StatefulDenoiser(ask=ask, memory=(kept, jnp.bool_(True)))


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a canvas is filled in; all of it static under jit.

    schedule, prediction: of the model. sampler, grid: the method and its noise levels. guidance: by the prompt.
    low_guidance: for the second transformer of a network that has two; None is `guidance`.
    conditioning: how the network is told what is known. "clean": at noise level 0, beside the noisy rest, as models are
        trained that draw canvases. "replacement": at the running level like the rest, noised to it again at every step
        (replacement; Song et al. 2021), for models that know one level for all.
    known_level: the level that known tokens are told and noised to instead of 0 (clean only). A little noise hides
        the small errors that a long rollout would add up.
    context_guidance: how strongly to follow what is known: 1 as the model says, more moves away from its prediction
        without (that frames are pure noise; history guidance, Song et al. 2025). Costs a further row (clean only).
    structure: low frequencies that are the canvas' while sampling is above a level; then its latents matter at level
        1 too. None: none are.
    reuse: when the network's blocks are passed over, for speed. None: never. Guidance then asks both rows at every
        level, also outside of its interval.
    """

    schedule: Schedule
    prediction: str
    sampler: Sampler
    grid: Grid
    guidance: Guidance
    low_guidance: Guidance | None = None
    conditioning: Literal["clean", "replacement"] = "clean"
    known_level: float = 0.0
    context_guidance: float = 1.0
    structure: Structure | None = None
    reuse: BlockCache | None = None

    def __post_init__(self) -> None:
        if self.conditioning not in ("clean", "replacement"):
            raise ConfigError(f"conditioning={self.conditioning!r}: use 'clean' or 'replacement'")
        if not 0.0 <= self.known_level < 1.0:
            raise ConfigError(f"known_level={self.known_level}: a noise level, give 0 or more and below 1")
        if self.conditioning == "replacement" and (self.known_level or self.context_guidance != 1.0):
            raise ConfigError(
                "known_level and context_guidance need a model that is told what is known (conditioning='clean'): "
                "leave them at 0 and 1"
            )

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is asked about: not where all guidance is 1."""
        return self.guidance.needed or (self.low_guidance is not None and self.low_guidance.needed)

    @property
    def rows(self) -> int:
        """Rows that the network is asked about at once, for each video."""
        return 1 + self.guided + (self.context_guidance != 1.0)


def replaces_known(experiment: Experiment) -> bool:
    """Whether what a user gives is put back at the running noise, the model having never seen any beside noise."""
    known = experiment.sample.conditioning or ("clean" if experiment.canvases.gives else "replacement")
    return known == "replacement" and not experiment.network.reference_channels


def resampling(experiment: Experiment, steps: int | None = None) -> dict[str, Any]:
    """Changes for `sampling_config` with which replacement joins what is made and what is given better.

    The network is asked about as often as the experiment's own sampler asks it in that many steps. Models of few steps
    keep their own sampler.

    Args:
        steps: None is as in the experiment's `sample`.
    """
    sample = experiment.sample
    if not isinstance(sample.sampler, samplers.Euler | samplers.Heun | samplers.DPMpp2M | samplers.UniPC):
        return {}
    calls = (sample.steps if steps is None else steps) * (2 if isinstance(sample.sampler, samplers.Heun) else 1)
    return {"sampler": "resample", "grid": sample.grid, "steps": max(1, round(calls / samplers.Resample().times))}


def known_changes(experiment: Experiment, changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` for a video of which something is given, and more where the model was not trained on canvases.

    Such a model is sampled with steps repeated, unless a sampler is named.
    """
    if replaces_known(experiment) and "sampler" not in changes:
        return changes | resampling(experiment, changes.get("steps"))
    return changes


def sampling_config(experiment: Experiment, **changes: Any) -> SamplingConfig:
    """How an experiment samples, with changes to single fields.

    Args:
        experiment: its `sample` holds the defaults.
        **changes: fields of `vdit.experiment.SampleConfig` to set otherwise.

    Returns:
        The sampling config.
    """
    if isinstance(changes.get("sampler"), str):
        own, named = experiment.sample.sampler, samplers.make(changes["sampler"])
        changes |= {"sampler": own if type(own) is type(named) else named}  # a name leaves the options as they are
    if changes.get("sampler", experiment.sample.sampler) != experiment.sample.sampler:
        changes = {"grid": None} | changes
    if "guidance" in changes:
        changes = {"low_guidance": None} | changes
    sample = dataclasses.replace(experiment.sample, **changes)
    grid = sample.grid or GridOptions(ceiling=1.0 if experiment.diffusion.kind == "flow" else 0.999)
    more = {"interval": tuple(sample.interval), "rescale": sample.rescale}
    low = None if sample.low_guidance is None else Guidance(scale=sample.low_guidance, **more)
    return SamplingConfig(
        schedule=make_schedule(experiment.diffusion),
        prediction=experiment.diffusion.prediction,
        sampler=sample.sampler,
        grid=Grid(steps=sample.steps, **dataclasses.asdict(grid)),
        guidance=Guidance(scale=sample.guidance, **more),
        low_guidance=low,
        conditioning=sample.conditioning or ("clean" if experiment.canvases.gives else "replacement"),
        known_level=sample.known_level,
        context_guidance=sample.context_guidance,
        reuse=BlockCache(threshold=sample.reuse) if sample.reuse else None,
    )
