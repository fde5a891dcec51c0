"""diffusers' scheduler_config.json, read into our schedule, sampler and grid, and written.

Every option of the classes below is honoured or refused by name; absent ones have diffusers' defaults.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vdit import samplers
from vdit.diffusion.config import DiffusionConfig
from vdit.errors import ConfigError, WeightsError
from vdit.pretrained.options import TOKENS, Option, check_option, flag, number, several, whole, words
from vdit.samplers.grid import GridOptions

_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0, "rescale_betas_zero_snr": False}
_OTHER_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_DYNAMIC = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_MULTISTEP = _BETAS | _THRESHOLD | _OTHER_SIGMAS | _DYNAMIC | {
    "solver_order": 2,
    "lower_order_final": True,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "timestep_spacing": "linspace",
    "final_sigmas_type": "zero",
    "rescale_betas_zero_snr": False,
}  # fmt: skip

# The options of each class, with their defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _BETAS | _THRESHOLD | _CLIP | {"set_alpha_to_one": True, "timestep_spacing": "leading"},
    "DDPMScheduler": _BETAS | _THRESHOLD | _CLIP | {"variance_type": "fixed_small", "timestep_spacing": "leading"},
    "DPMSolverMultistepScheduler": _MULTISTEP | {
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "UniPCMultistepScheduler": _MULTISTEP | {
        "predict_x0": True,
        "solver_type": "bh2",
        "disable_corrector": [],
        "solver_p": None,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "HeunDiscreteScheduler": _BETAS | _OTHER_SIGMAS | {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "timestep_spacing": "linspace",
    },
    "FlowMatchEulerDiscreteScheduler": _OTHER_SIGMAS | _DYNAMIC | {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}  # fmt: skip

# What the values of an option may be, in every class that has it.
_BIG = 1e6
CHECKS: dict[str, Option] = {
    "num_train_timesteps": whole(high=TOKENS),
    "steps_offset": whole(low=0, high=TOKENS),
    "solver_order": whole(high=3),
    **dict.fromkeys(("beta_start", "beta_end", "dynamic_thresholding_ratio"), number()),
    **dict.fromkeys(("flow_shift", "shift"), number(low=1e-6, high=_BIG)),
    "clip_sample_range": number(low=1e-6, high=_BIG),
    **dict.fromkeys(("sample_max_value", "base_shift", "max_shift"), number(low=-_BIG, high=_BIG)),
    **dict.fromkeys(("base_image_seq_len", "max_image_seq_len"), whole(high=TOKENS)),
    **dict.fromkeys(("sigma_min", "sigma_max", "shift_terminal"), number(high=_BIG, none=True)),
    "lambda_min_clipped": number(low=-math.inf, high=math.inf),
    "trained_betas": several(None, number(), 0, TOKENS, none=True),
    "disable_corrector": several(None, whole(low=0, high=TOKENS), 0, 1000),
    **dict.fromkeys(("beta_schedule", "prediction_type", "timestep_spacing", "time_shift_type"), words()),
    **dict.fromkeys(("final_sigmas_type", "algorithm_type", "solver_type"), words()),
    "variance_type": words(none=True),
    **dict.fromkeys(
        (
            "thresholding", "clip_sample", "rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "use_dynamic_shifting", "lower_order_final", "use_flow_sigmas", "set_alpha_to_one",
            "euler_at_final", "use_lu_lambdas", "predict_x0", "invert_sigmas", "stochastic_sampling",
        ),
        flag(none=True),
    ),
}  # fmt: skip

# The one value that we can do of each of these.
ONLY = _OTHER_SIGMAS | {
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "predict_x0": True,
    "solver_p": None,
    "algorithm_type": "dpmsolver++",
    "use_lu_lambdas": False,
    "lambda_min_clipped": -math.inf,
}  # fmt: skip

# Without effect while those above that they belong to are off.
IDLE = (
    "dynamic_thresholding_ratio", "sample_max_value", "time_shift_type", "base_shift", "max_shift",
    "base_image_seq_len", "max_image_seq_len", "sigma_min", "sigma_max",
)  # fmt: skip
OptionValue = bool | int | float | str





@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduling:
    """How a published model is sampled; plain values only.

    Attributes:
        diffusion: noise schedule and prediction.
        sampler: name of the sampler, for `samplers.make(sampler, **dict(options))`.
        options: (name, value) of the sampler's options.
        grid: for `Grid(steps=..., **dataclasses.asdict(grid))`.
    """

    diffusion: DiffusionConfig
    sampler: str
    options: tuple[tuple[str, OptionValue], ...] = ()
    grid: GridOptions = GridOptions()

    def __post_init__(self):
        samplers.make(self.sampler, **dict(self.options))


_PREDICTIONS = {"epsilon": "noise", "sample": "sample", "v_prediction": "v", "flow_prediction": "velocity"}
_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "learned_range": "learned"}
# diffusers moves a first sigma of 1 down by 1e-6, and keeps it in float32.
_BELOW_ONE = float(np.float32(1.0 - 1e-6))


def scheduler_config(json: Mapping[str, Any]) -> Scheduling:
    """Read a scheduler_config.json.

    The DDIM file of a model does not say whether its network learns a variance: learn_variance is False unless the
    class is DDPMScheduler with "learned_range".

    Args:
        json: content of the file.

    Raises:
        WeightsError: the class or an option is unknown, or asks for what cannot be done here.
    """
    name = json.get("_class_name")
    if not isinstance(name, str) or name not in OPTIONS:
        raise WeightsError(f"scheduler class {name!r} is unknown: use one of {', '.join(OPTIONS)}")
    given = {key: value for key, value in json.items() if not key.startswith("_")}
    for key, value in given.items():
        if key not in OPTIONS[name]:
            raise WeightsError(f"{name} has no option {key!r}: remove it from scheduler_config.json")
        if key in CHECKS:
            check_option(key, value, CHECKS[key], where="scheduler_config.json")
        only = ONLY.get(key, value)
        if value != only and (value or only):
            raise _refused(name, key, value, f"only {only!r} is supported")
    options = OPTIONS[name] | given
    try:
        return _READERS[name](name, options)
    except ConfigError as error:
        raise WeightsError(f"{name}: {error}") from None


def scheduler_json(scheduling: Scheduling) -> dict[str, Any]:
    """Write a scheduler_config.json: the inverse of `scheduler_config`.

    Raises:
        WeightsError: no class of diffusers does the same.
    """
    diffusion = scheduling.diffusion
    name = _CLASSES.get((diffusion.kind, scheduling.sampler))
    if name is None:
        raise WeightsError(
            f"sampler {scheduling.sampler!r} with kind={diffusion.kind!r} has no scheduler in diffusers: "
            f"export as one of {', '.join(sampler for kind, sampler in _CLASSES if kind == diffusion.kind)}"
        )
    json = {"_class_name": name} | _write(name, scheduling)
    back = scheduler_config(json)
    ours, theirs = (dataclasses.asdict(_sampling_only(s)) for s in (scheduling, back))
    for part in ours:
        if ours[part] != theirs[part]:
            raise WeightsError(f"{name} cannot do {part}={ours[part]}: the nearest is {theirs[part]}")
    return json


def usual_scheduling(diffusion: DiffusionConfig) -> Scheduling:
    """What diffusers can do for a model of ours: flow Euler (UniPC for integer timesteps), or DDIM for a discrete
    process.

    Args:
        diffusion: noise schedule and prediction of the model.
    """
    if diffusion.kind == "ddpm":
        json = {"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": "trailing"}
    elif diffusion.integer_timesteps:
        json = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    else:
        json = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": diffusion.shift}
    found = scheduler_config(json)
    return dataclasses.replace(found, diffusion=diffusion)


# Reading: one function a class.


def _read_ddim(name: str, o: Mapping[str, Any]) -> Scheduling:
    grid = _grid(name, o, last=0.0 if o["set_alpha_to_one"] else 1.0 / o["num_train_timesteps"])
    return _scheduling(_betas(name, o), "ddim", grid, clip=_clip(o), even_stride=grid.spacing != "leading")


def _read_ddpm(name: str, o: Mapping[str, Any]) -> Scheduling:
    variance = _choose(name, o, "variance_type", _VARIANCES)
    ends_above = o["timestep_spacing"] == "trailing" or (o["timestep_spacing"] == "leading" and o["steps_offset"] > 0)
    if variance != "small" and ends_above:
        raise _refused(name, "variance_type", o["variance_type"], "its last step would add noise with this spacing")
    diffusion = _betas(name, o, learn_variance=variance == "learned")
    return _scheduling(diffusion, "ddpm", _grid(name, o), clip=_clip(o), variance=variance)


def _read_dpm(name: str, o: Mapping[str, Any]) -> Scheduling:
    if o["variance_type"] is not None:
        raise _refused(name, "variance_type", o["variance_type"], "it keeps three channels; only null is supported")
    # The class itself reads the solver types of others so.
    types = {"midpoint": "midpoint", "heun": "heun", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}
    options = {"order": o["solver_order"], "solver": _choose(name, o, "solver_type", types)}
    n = o["num_train_timesteps"]
    zero = _ends_at_zero(name, o)
    if not zero and not o["euler_at_final"]:
        options |= {"lower_order_below": 15} if o["lower_order_final"] else {"lower_order_final": False}
    if not o["use_flow_sigmas"]:
        grid = _grid(name, o, open_end=True, last=0.0 if zero else 1.0 / n)
        return _scheduling(_betas(name, o), "dpmpp2m", grid, **options)
    # A quirk: the last sigma of a flow is taken from the betas, which the flow does not have otherwise.
    alpha = np.float32(1.0) - np.float32(o["beta_start"])
    last = 0.0 if zero else float(np.sqrt((np.float32(1.0) - alpha) / alpha))
    return _scheduling(_flow(name, o), "dpmpp2m", GridOptions(spacing="mirrored", last=last), **options)


def _read_unipc(name: str, o: Mapping[str, Any]) -> Scheduling:
    skip = list(o["disable_corrector"])
    if skip != list(range(len(skip))):
        raise _refused(name, "disable_corrector", skip, "only the first steps, [0, 1, ...], are supported")
    types = {"bh1": "bh1", "bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}
    options = {
        "order": o["solver_order"],
        "solver": _choose(name, o, "solver_type", types),
        "skip_corrections": len(skip),
        "lower_order_final": bool(o["lower_order_final"]),
    }
    zero = _ends_at_zero(name, o)
    if not o["use_flow_sigmas"]:
        last = 0.0 if zero else 1.0 / o["num_train_timesteps"]
        return _scheduling(_betas(name, o), "unipc", _grid(name, o, open_end=True, last=last), **options)
    if not zero:
        raise _refused(name, "final_sigmas_type", "sigma_min", "with use_flow_sigmas its last step does nothing")
    return _scheduling(_flow(name, o), "unipc", GridOptions(low=1e-3, ceiling=_BELOW_ONE), **options)


def _read_heun(name: str, o: Mapping[str, Any]) -> Scheduling:
    grid = dataclasses.replace(_grid(name, o), snap=o["timestep_spacing"] != "linspace")
    return _scheduling(_betas(name, o, interpolation="sigma"), "heun", grid, frame="exploding", clip=_clip(o))


def _read_flow(name: str, o: Mapping[str, Any]) -> Scheduling:
    # Its lowest sigma is shifted when it is built, in float32, and again with the rest of the grid.
    shift, low = np.float32(o["shift"]), np.float32(1.0) / np.float32(1000.0)
    low = shift * low / (np.float32(1.0) + np.float32(o["shift"] - 1.0) * low)
    known = {"prediction_type": "flow_prediction", "flow_shift": o["shift"]} | o
    diffusion = _flow(name, known, integer_timesteps=False)
    sampler = "heun" if name == "FlowMatchHeunDiscreteScheduler" else "euler"
    return _scheduling(diffusion, sampler, GridOptions(spacing="linspace", low=float(low)))


_READERS = {
    "DDIMScheduler": _read_ddim,
    "DDPMScheduler": _read_ddpm,
    "DPMSolverMultistepScheduler": _read_dpm,
    "UniPCMultistepScheduler": _read_unipc,
    "HeunDiscreteScheduler": _read_heun,
    "FlowMatchEulerDiscreteScheduler": _read_flow,
    "FlowMatchHeunDiscreteScheduler": _read_flow,
}


def _scheduling(
    diffusion: DiffusionConfig, sampler: str, grid: GridOptions, **options: OptionValue | None
) -> Scheduling:
    defaults = {field.name: field.default for field in dataclasses.fields(samplers.SAMPLERS[sampler])}
    changed = tuple((key, value) for key, value in sorted(options.items()) if value != defaults[key])
    return Scheduling(diffusion=diffusion, sampler=sampler, options=changed, grid=grid)


def _betas(name: str, o: Mapping[str, Any], **changes: Any) -> DiffusionConfig:
    """The discrete process. Our betas are those of 1000 steps; diffusers' are those of its own number."""
    if o["prediction_type"] == "flow_prediction":
        raise _refused(name, "prediction_type", "flow_prediction", "it needs use_flow_sigmas")
    schedule = _choose(name, o, "beta_schedule", _BETA_SCHEDULES)
    n = o["num_train_timesteps"]
    if schedule != "cosine":
        changes |= {"beta_start": o["beta_start"] * n / 1000, "beta_end": o["beta_end"] * n / 1000}
    return DiffusionConfig(
        kind="ddpm",
        prediction=_choose(name, o, "prediction_type", _PREDICTIONS),
        timestep_sampling="uniform",
        beta_schedule=schedule,
        steps=n,
        **changes,
    )


def _flow(name: str, o: Mapping[str, Any], *, integer_timesteps: bool = True) -> DiffusionConfig:
    if o["num_train_timesteps"] != 1000:
        raise _refused(name, "num_train_timesteps", o["num_train_timesteps"], "a flow's network knows times 0 to 1000")
    if o["prediction_type"] not in ("flow_prediction", "sample"):
        raise _refused(name, "prediction_type", o["prediction_type"], "a flow needs flow_prediction or sample")
    prediction = _PREDICTIONS[o["prediction_type"]]
    return DiffusionConfig(prediction=prediction, shift=float(o["flow_shift"]), integer_timesteps=integer_timesteps)


def _grid(name: str, o: Mapping[str, Any], *, open_end: bool = False, last: float = 0.0) -> GridOptions:
    """The grid of a discrete process; steps_offset moves the leading one only."""
    spacing = _choose(name, o, "timestep_spacing", {key: key for key in ("leading", "linspace", "trailing")})
    offset = o["steps_offset"] if spacing == "leading" else 0
    low = (offset + 1) / o["num_train_timesteps"] if offset else None
    return GridOptions(spacing=spacing, low=low, open_end=open_end and spacing != "trailing", last=last)


def _clip(o: Mapping[str, Any]) -> float | None:
    return float(o["clip_sample_range"]) if o["clip_sample"] else None


def _ends_at_zero(name: str, o: Mapping[str, Any]) -> bool:
    return _choose(name, o, "final_sigmas_type", {"zero": True, "sigma_min": False})


def _choose(name: str, o: Mapping[str, Any], key: str, choices: Mapping[str, Any]) -> Any:
    if o[key] not in choices:
        raise _refused(name, key, o[key], f"use one of {', '.join(choices)}")
    return choices[o[key]]


def _refused(name: str, key: str, value: Any, why: str) -> WeightsError:
    return WeightsError(f"{name} has {key}={value!r}: {why}")


# Writing.

_CLASSES = {
    ("ddpm", "ddim"): "DDIMScheduler",
    ("ddpm", "ddpm"): "DDPMScheduler",
    ("ddpm", "dpmpp2m"): "DPMSolverMultistepScheduler",
    ("ddpm", "unipc"): "UniPCMultistepScheduler",
    ("ddpm", "heun"): "HeunDiscreteScheduler",
    ("flow", "dpmpp2m"): "DPMSolverMultistepScheduler",
    ("flow", "unipc"): "UniPCMultistepScheduler",
    ("flow", "euler"): "FlowMatchEulerDiscreteScheduler",
    ("flow", "heun"): "FlowMatchHeunDiscreteScheduler",
}


def _write(name: str, scheduling: Scheduling) -> dict[str, Any]:
    """The options of that class nearest to ours, those with a default included."""
    diffusion, grid = scheduling.diffusion, scheduling.grid
    chosen = samplers.make(scheduling.sampler, **dict(scheduling.options))
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    n, scale = diffusion.steps, 1000 / diffusion.steps
    written = {
        "prediction_type": predictions[diffusion.prediction],
        "num_train_timesteps": n,
        "shift": diffusion.shift,
        "flow_shift": diffusion.shift,
        "use_flow_sigmas": diffusion.kind == "flow",
        "beta_start": _rounded(diffusion.beta_start * scale),
        "beta_end": _rounded(diffusion.beta_end * scale),
        "beta_schedule": {"cosine": "squaredcos_cap_v2"}.get(diffusion.beta_schedule, diffusion.beta_schedule),
        "timestep_spacing": grid.spacing if diffusion.kind == "ddpm" else "linspace",
        "steps_offset": 0 if grid.low is None or diffusion.kind == "flow" else round(grid.low * n) - 1,
        "set_alpha_to_one": grid.last == 0.0,
        "final_sigmas_type": "zero" if grid.last == 0.0 else "sigma_min",
    }
    clip = getattr(chosen, "clip", None)
    written |= {"clip_sample": clip is not None, "clip_sample_range": 1.0 if clip is None else clip}
    if isinstance(chosen, samplers.DDPM):
        variances = {"large": "fixed_large", "learned": "learned_range"}
        written["variance_type"] = variances.get(chosen.variance, "fixed_small")
    if isinstance(chosen, samplers.DPMpp2M | samplers.UniPC):
        written |= {"solver_order": chosen.order, "solver_type": chosen.solver}
        written |= {"lower_order_final": chosen.lower_order_final}
    if isinstance(chosen, samplers.UniPC):
        written["disable_corrector"] = list(range(chosen.skip_corrections))
    if isinstance(chosen, samplers.DPMpp2M):
        written["euler_at_final"] = grid.last > 0 and chosen.lower_order_final and chosen.lower_order_below is None
    # Infinity is no JSON; it is the default anyway.
    options = {key: value for key, value in OPTIONS[name].items() if value != -float("inf")}
    return options | {key: value for key, value in written.items() if key in options}


def _sampling_only(scheduling: Scheduling) -> Scheduling:
    """Without what only training uses, and what the schedule does not."""
    old = scheduling.diffusion
    if old.kind == "flow":
        diffusion = DiffusionConfig(prediction=old.prediction, shift=old.shift, integer_timesteps=old.integer_timesteps)
    else:
        diffusion = DiffusionConfig(
            kind="ddpm",
            prediction=old.prediction,
            beta_schedule=old.beta_schedule,
            steps=old.steps,
            interpolation=old.interpolation,
        )
        if old.beta_schedule != "cosine":
            betas = {key: _rounded(getattr(old, key)) for key in ("beta_start", "beta_end")}
            diffusion = dataclasses.replace(diffusion, **betas)
    return dataclasses.replace(scheduling, diffusion=diffusion)


def _rounded(value: float) -> float:
    """Rid of what a product and a quotient left in the last digits."""
    return float(f"{value:.12g}")
