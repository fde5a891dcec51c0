"""How to optimise and how to run: plain numbers, checked where they are given."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from vdit.errors import ConfigError
from vdit.experiment.optimizer import Optimizer, OptimizerConfig, require
from vdit.registry import OneOf
from vdit.reprs import short_repr


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the loop.

    steps: optimizer steps, skipped ones included.
    optimizer: any registered optimizer (vdit.experiment.optimizer).
    batch_size: clips or rows a step, over all devices and accumulation steps.
    accumulation: in how many pieces a batch is worked through, one after the other.
    ema_decay: decay of the averaged parameters; None keeps none.
    ema_warmup: decay is at most (1 + n) / (10 + n) after n updates, so that early steps are forgotten.
    save_every, keep: a checkpoint every so many steps, and how many are kept.
    log_every: steps between lines of metrics.
    sample_every: steps between samples of the prompts for the log; 0 for never.
    best_metric: a figure of an evaluator, as "eval/denoising/loss". The checkpoint with the best one is kept beside the
        newest ones, and saved when it is measured; None keeps the newest ones only.
    best_is: whether the lowest or the highest value is the best.
    max_nonfinite: how many non-finite steps in a row are skipped before the run is stopped.
    stall_seconds: if no step finishes for so long, and for ten times the usual, all hosts log their stacks.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    optimizer: Annotated[Optimizer, OneOf("optimizer")] = OptimizerConfig()
    ema_decay: float | None = 0.999
    ema_warmup: bool = True
    save_every: int = 500
    keep: int = 2
    log_every: int = 10
    sample_every: int = 0
    best_metric: str | None = None
    best_is: Literal["lowest", "highest"] = "lowest"
    max_nonfinite: int = 10
    stall_seconds: float = 300.0

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation", "save_every", "keep", "log_every"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("sample_every", "max_nonfinite"):
            require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        require("stall_seconds", self.stall_seconds, self.stall_seconds > 0, "above 0")
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"batch_size={self.batch_size} must be a multiple of accumulation={self.accumulation}"
            )
        decay = self.ema_decay
        require("ema_decay", decay, decay is None or 0 <= decay < 1, "in [0, 1), or none")
        self.optimizer.check(self.steps)


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
        require("lora.rank", self.rank, self.rank >= 1, "1 or more")
        require("lora.alpha", self.alpha, self.alpha is None or self.alpha > 0, "above 0, or none for the rank")
        require("lora.targets", self.targets, len(self.targets) > 0, "at least one pattern")

    @property
    def scale(self) -> float:
        """Factor on the product of A and B."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
