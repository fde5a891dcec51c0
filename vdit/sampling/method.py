"""How a canvas is filled in: schedule, sampler, guidance, and what the network is told of the known."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vdit.diffusion import Guidance
from vdit.diffusion.schedules import Schedule
from vdit.errors import ConfigError
from vdit.reprs import short_repr
from vdit.samplers.base import Sampler
from vdit.samplers.grid import Grid
from vdit.sampling.reuse import BlockCache
from vdit.sampling.structure import Structure


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How a canvas is filled in; all of it static under jit.

    low_guidance: for the second transformer of a network that has two; None is `guidance`.
    known: how the network is told what is known. "clean": at noise level 0, beside the noisy rest, as models are
        trained that draw canvases. "noised": at the running level like the rest, noised to it again at every step
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
    known: Literal["clean", "noised"] = "clean"
    known_level: float = 0.0
    context_guidance: float = 1.0
    structure: Structure | None = None
    reuse: BlockCache | None = None

    def __post_init__(self) -> None:
        if self.known not in ("clean", "noised"):
            raise ConfigError(f"known={self.known!r}: use 'clean' or 'noised'")
        if not 0.0 <= self.known_level < 1.0:
            raise ConfigError(f"known_level={self.known_level}: a noise level, give 0 or more and below 1")
        if self.known == "noised" and (self.known_level or self.context_guidance != 1.0):
            raise ConfigError(
                "known_level and context_guidance need a model that is told what is known (known='clean'): "
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
