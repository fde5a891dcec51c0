"""How to optimise and how to run: plain numbers, checked where they are given."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vdit.errors import ConfigError
from vdit.reprs import short_repr


def _require(name: str, value, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value!r}: must be {rule}")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then constant or cosine.

    learning_rate: the peak.
    warmup_steps: steps from 0 to the peak.
    schedule: what follows the warm-up; "cosine" falls to final_scale * learning_rate at the last step.
    weight_decay: decoupled; arrays of fewer than two dimensions (biases, norms) are exempt.
    clip_norm: largest global norm of the gradient; None leaves it alone.
    lr_scale: (top-level key of the parameters, factor on its learning rate); a group named here is
        also clipped by its own norm, so that a GAN's two sides do not throttle each other.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    final_scale: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    lr_scale: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        _require("learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        _require("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more")
        _require("schedule", self.schedule, self.schedule in ("constant", "cosine"), "'constant' or 'cosine'")
        _require("final_scale", self.final_scale, 0 <= self.final_scale <= 1, "from 0 to 1")
        for name in ("b1", "b2"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _require("eps", self.eps, self.eps > 0, "above 0")
        _require("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        _require("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "above 0 or none")
        for group, scale in self.lr_scale:
            _require(f"lr_scale[{group}]", scale, scale >= 0, "0 or more")
        groups = [group for group, _ in self.lr_scale]
        _require("lr_scale", groups, len(set(groups)) == len(groups), "one factor for each group")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the loop.

    steps: optimizer steps, skipped ones included.
    batch_size: clips or rows a step, over all devices and accumulation steps.
    accumulation: in how many pieces a batch is worked through, one after the other.
    ema_decay: decay of the averaged parameters; None keeps none.
    ema_warmup: decay is at most (1 + n) / (10 + n) after n updates, so that early steps are forgotten.
    save_every, keep: a checkpoint every so many steps, and how many are kept.
    log_every: steps between lines of metrics.
    sample_every: steps between calls of the sample hook; 0 for never.
    max_nonfinite: how many non-finite steps in a row are skipped before the run is stopped.
    stall_seconds: without a step for so long, and for ten times the usual, all hosts write down where they stand.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float | None = 0.999
    ema_warmup: bool = True
    save_every: int = 500
    keep: int = 2
    log_every: int = 10
    sample_every: int = 0
    max_nonfinite: int = 10
    stall_seconds: float = 300.0

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "save_every", "keep", "log_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("sample_every", "max_nonfinite"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _require("stall_seconds", self.stall_seconds, self.stall_seconds > 0, "above 0")
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"batch_size={self.batch_size} must be a multiple of accumulation={self.accumulation}"
            )
        decay = self.ema_decay
        _require("ema_decay", decay, decay is None or 0 <= decay < 1, "in [0, 1), or none")
        warmup = self.optimizer.warmup_steps
        _require("optimizer.warmup_steps", warmup, warmup <= self.steps, f"at most steps={self.steps}")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adaptation of the DiT (Hu et al., 2021): y = x W + (alpha / rank) x A B, with W frozen.

    rank: columns of A, rows of B. alpha: weight of the product; None is `rank`, so a factor of 1.
    targets: patterns (`*`, `?`, `[...]`) of the dense layers that are adapted, as they are called inside a block
        ("attention/q", "cross_attention/k", "mlp/up") or, outside of blocks, in the DiT ("time_projection").
    weights: how the frozen weights are held while training (vdit.nn.quantise).
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ("*attention/*", "mlp/*")
    weights: Literal["float32", "bfloat16", "int8", "fp8"] = "float32"

    def __post_init__(self):
        _require("lora.rank", self.rank, self.rank >= 1, "1 or more")
        _require("lora.alpha", self.alpha, self.alpha is None or self.alpha > 0, "above 0, or none for the rank")
        _require("lora.targets", self.targets, len(self.targets) > 0, "at least one pattern")

    @property
    def scale(self) -> float:
        """Factor on the product of A and B."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Consistency distillation of the model in `start_from` (vdit.train.distill). Captions are never dropped.

    guidance: scale of the teacher's classifier-free guidance, which the student learns to give in one call.
    interval: (low, high) noise levels between which the teacher is guided.
    steps: of the grid that the teacher steps down.
    huber: c of the pseudo-Huber distance, in units of a latent value; large is the squared error.
    """

    guidance: float = 4.0
    interval: tuple[float, float] = (0.0, 1.0)
    steps: int = 32
    huber: float = 0.03

    def __post_init__(self):
        _require("distill.guidance", self.guidance, self.guidance >= 0, "0 or more; 1 for none")
        _require("distill.steps", self.steps, self.steps >= 2, "2 or more")
        _require("distill.huber", self.huber, self.huber > 0, "above 0")
        low, high = self.interval
        _require("distill.interval", self.interval, 0 <= low <= high <= 1, "0 <= low <= high <= 1")
