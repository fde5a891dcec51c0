"""The options of diffusers' schedulers: their defaults, and which of them we can do."""

from __future__ import annotations

import math
from typing import Any

from vdit.pretrained.options import TOKENS, Option, flag, number, several, whole, words

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
