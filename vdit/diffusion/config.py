"""The config of the diffusion process: the choices that training and sampling share."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from vdit.errors import ConfigError
from vdit.reprs import short_repr

Kind = Literal["flow", "ddpm"]
Prediction = Literal["velocity", "noise", "v", "sample"]
BetaSchedule = Literal["linear", "scaled_linear", "cosine"]
Interpolation = Literal["log_alpha", "sigma"]
TimestepSampling = Literal["logit_normal", "uniform"]
LossSpace = Literal["prediction", "velocity"]


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise schedule, what the network predicts, and how training draws noise levels.

    Args:
        kind: "flow", straight paths from data to noise; "ddpm", the discrete variance-preserving process.
        prediction: what the network predicts (see vdit.diffusion.objectives).
        loss_space: whose squared error is the loss: of what the network predicts, or of the velocity that it implies.
            "velocity" is for the prediction "sample". A network narrower than its tokens have values can predict clean
            data, which fill few dimensions, where it cannot pass on the noise that a velocity holds (JiT, Li and He,
            2025). Flow only.
        shift: moves training levels and sampling grids toward noise. 1 does nothing. Flow only.
        timestep_sampling, logit_mean, logit_std: how training draws levels, before the shift.
        stratified: spread the levels of a batch evenly. The distribution of each level alone stays the same.
        integer_timesteps: round the network's time down to whole numbers, as Wan's samplers do. Flow only: the times
            of ddpm are whole.
        beta_schedule, steps: the discrete process. "scaled_linear" is even in the root of beta. ddpm only.
        beta_start, beta_end: the first and the last beta of the linear schedules at 1000 steps. At another number of
            steps they are scaled, so that the total noise stays the same (Nichol and Dhariwal, 2021). ddpm only.
        interpolation: what is interpolated between the levels of the process: "log_alpha", or "sigma", which is
            sigma / alpha, as in samplers after Karras et al. (2022). ddpm only.
        learn_variance: the network also predicts a variance, in as many channels again. ddpm only.

    Raises:
        ConfigError: a value is out of range, or two values do not fit each other.
    """

    kind: Kind = "flow"
    prediction: Prediction = "velocity"
    loss_space: LossSpace = "prediction"
    shift: float = 1.0
    timestep_sampling: TimestepSampling = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    stratified: bool = False
    integer_timesteps: bool = False
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000
    interpolation: Interpolation = "log_alpha"
    learn_variance: bool = False

    def __post_init__(self):
        for field, choices in (
            ("kind", Kind),
            ("prediction", Prediction),
            ("loss_space", LossSpace),
            ("timestep_sampling", TimestepSampling),
            ("beta_schedule", BetaSchedule),
            ("interpolation", Interpolation),
        ):
            value = getattr(self, field)
            if value not in get_args(choices):
                raise ConfigError(f"diffusion {field} is {value!r}: use {' or '.join(get_args(choices))}")
        for field in ("shift", "logit_std"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"diffusion {field} is {getattr(self, field)}: it must be above 0")
        if self.steps < 2:
            raise ConfigError(f"diffusion steps is {self.steps}: a discrete process needs 2 or more")
        if not 0 < self.beta_start <= self.beta_end:
            raise ConfigError(f"diffusion beta_start is {self.beta_start}: it must be in (0, beta_end={self.beta_end}]")
        largest = self.beta_end * 1000 / self.steps
        if self.kind == "ddpm" and self.beta_schedule != "cosine" and largest >= 1:
            raise ConfigError(f"diffusion steps is {self.steps}: betas grow to {largest:.3g} there, give more steps")
        if self.kind == "flow" and self.learn_variance:
            raise ConfigError("learn_variance is True with kind='flow': only kind='ddpm' has a variance")
        if self.kind == "ddpm" and self.shift != 1:
            raise ConfigError(f"shift is {self.shift} with kind='ddpm': only kind='flow' shifts; set 1")
        if self.kind == "ddpm" and self.integer_timesteps:
            raise ConfigError("integer_timesteps is True with kind='ddpm': its times are whole already; set False")
        if self.kind == "flow" and self.prediction == "noise":
            raise ConfigError(
                "prediction is 'noise' with kind='flow': pure noise says nothing of the data there, "
                "so use 'velocity', 'v' or 'sample'"
            )
        flow_of_data = self.kind == "flow" and self.prediction in ("sample", "velocity")
        if self.loss_space == "velocity" and not flow_of_data:
            raise ConfigError(
                f"loss_space is 'velocity' with kind={self.kind!r} and prediction={self.prediction!r}: use kind='flow' "
                "with prediction 'sample' or 'velocity', or loss_space='prediction'"
            )
