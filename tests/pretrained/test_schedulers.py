"""Every sampler beside diffusers' scheduler, after each step, from the scheduler_config.json that sets both up."""

from __future__ import annotations

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from vdit import config, samplers
from vdit.diffusion import DiffusionConfig, Flow, make_schedule
from vdit.errors import WeightsError
from vdit.pretrained.scheduler import IDLE, OPTIONS, Scheduling, scheduler_config, scheduler_json, usual_scheduling
from vdit.samplers import Grid, GridOptions
from vdit.samplers.base import discretize

KEY = jax.random.key(7)
SHAPE = (2, 3, 4)  # ours [b n c]; theirs [b c n]

WAN = {
    "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_type": "bh2",
    "solver_order": 2, "predict_x0": True, "lower_order_final": True, "disable_corrector": [],
    "timestep_spacing": "linspace", "num_train_timesteps": 1000, "final_sigmas_type": "zero", "thresholding": False,
}  # fmt: skip
DIT = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
STABLE_V = STABLE | {"prediction_type": "v_prediction", "timestep_spacing": "leading"}
TRAILING, LINSPACE = {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}
SHORT = {"num_train_timesteps": 400}

DPM, FLOW = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
UNIPC, HEUN, FLOW_HEUN = "UniPCMultistepScheduler", "HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
FLOW_DPM = WAN_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

CASES = {  # class, options, steps, eta
    "UniPC, Wan, shift 3": (UNIPC, WAN, 50, 0),
    "UniPC, Wan, shift 5": (UNIPC, WAN | {"flow_shift": 5.0}, 20, 0),
    "UniPC, Wan, shift 8": (UNIPC, WAN | {"flow_shift": 8.0}, 30, 0),
    "UniPC, flow, order 1": (UNIPC, WAN | {"solver_order": 1}, 12, 0),
    "UniPC, flow, order 3": (UNIPC, WAN | {"solver_order": 3}, 12, 0),
    "UniPC, flow, late corrector": (UNIPC, WAN | {"disable_corrector": [0, 1]}, 12, 0),
    "UniPC, betas, bh1": (UNIPC, {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, 12, 0),
    "UniPC, betas": (UNIPC, {}, 20, 0),
    "UniPC, betas, sigma_min": (UNIPC, {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, 20, 0),
    "UniPC, betas, v, leading": (UNIPC, STABLE_V, 20, 0),
    "DPM++ 2M": (DPM, {}, 20, 0),
    "DPM++ 2M, few steps, sigma_min": (DPM, {"final_sigmas_type": "sigma_min"}, 10, 0),
    "DPM++ 2M, many steps, sigma_min": (DPM, {"final_sigmas_type": "sigma_min"}, 20, 0),
    "DPM++ 2M, Euler at last": (DPM, {"final_sigmas_type": "sigma_min", "euler_at_final": True}, 20, 0),
    "DPM++ 2M, heun, v, trailing": (DPM, STABLE_V | TRAILING | {"solver_type": "heun"}, 20, 0),
    "DPM++ 1": (DPM, {"solver_order": 1, "timestep_spacing": "leading"}, 10, 0),
    "DPM++ 2M, flow, shift 1": (DPM, FLOW_DPM, 27, 0),
    "DPM++ 2M, flow, shift 5": (DPM, FLOW_DPM | {"flow_shift": 5.0}, 20, 0),
    "DPM++ 2M, flow, sigma_min": (DPM, FLOW_DPM | {"flow_shift": 3.0, "final_sigmas_type": "sigma_min"}, 10, 0),
    "DDIM, DiT": ("DDIMScheduler", DIT, 250, 0),
    "DDIM, eta 1": ("DDIMScheduler", DIT, 20, 1.0),
    "DDIM, Stable Diffusion": ("DDIMScheduler", STABLE | {"clip_sample": False, "set_alpha_to_one": False}, 50, 0),
    "DDIM, alpha not 1": ("DDIMScheduler", DIT | {"set_alpha_to_one": False}, 20, 1.0),
    "DDIM, clipped": ("DDIMScheduler", {}, 20, 0.5),
    "DDIM, linspace": ("DDIMScheduler", DIT | LINSPACE, 30, 1.0),
    "DDIM, trailing, v": ("DDIMScheduler", DIT | TRAILING | {"prediction_type": "v_prediction"}, 30, 0),
    "DDIM, 400 levels": ("DDIMScheduler", DIT | SHORT | {"beta_schedule": "squaredcos_cap_v2"}, 20, 0),
    "DDPM, small": ("DDPMScheduler", DIT, 20, 0),
    "DDPM, small, clipped, trailing": ("DDPMScheduler", TRAILING, 30, 0),
    "DDPM, large, linspace": ("DDPMScheduler", DIT | LINSPACE | {"variance_type": "fixed_large"}, 20, 0),
    "DDPM, learned": ("DDPMScheduler", DIT | {"variance_type": "learned_range"}, 20, 0),
    "DDPM, sample": ("DDPMScheduler", DIT | SHORT | {"prediction_type": "sample"}, 20, 0),
    "flow Euler, shift 3": (FLOW, {"shift": 3.0}, 50, 0),
    "flow Euler, shift 1": (FLOW, {}, 20, 0),
    "flow Heun, shift 3": (FLOW_HEUN, {"shift": 3.0}, 20, 0),
    "Heun": (HEUN, {}, 20, 0),
    "Heun, DiT's betas, trailing": (HEUN, TRAILING | {"beta_start": 1e-4, "beta_end": 0.02}, 20, 0),
    "Heun, v, leading, clipped": (HEUN, STABLE_V | {"clip_sample": True}, 20, 0),
}  # fmt: skip


def network(xp, x, time):
    """Some function of a state and a time, in float32: [...] -> [...]. Near pure noise it says that all is noise,
    as networks do; else states would grow a hundredfold, and their rounding errors with them.
    """
    share = 0.001 * time
    return share * x + (1.0 - share) * xp.tanh(1.3 * x + xp.sin(0.013 * time))


def run_ours(scheduling: Scheduling, steps: int, eta: float, x, *, learned: bool):
    """(states after every step [steps ...], times that the network was called at)."""
    times, states = [], []
    schedule = make_schedule(scheduling.diffusion)
    options = dict(scheduling.options) | ({"eta": eta} if eta else {})

    def denoise(x, t):
        time = schedule.time(t)
        io_callback(lambda time: times.append(np.asarray(time)), None, time, ordered=True)
        output = network(jnp, x, time)
        return jnp.concatenate([output, jnp.sin(3 * output)], axis=-1) if learned else output

    def record(x, t):
        io_callback(lambda x: states.append(np.asarray(x)), None, x, ordered=True)
        return x

    grid = Grid(steps=steps, **dataclasses.asdict(scheduling.grid))
    sampler = samplers.make(scheduling.sampler, **options)
    settings = {"schedule": schedule, "prediction": scheduling.diffusion.prediction, "grid": grid, "key": KEY}
    jax.jit(lambda x: sampler.sample(denoise, x, project=record, **settings))(x).block_until_ready()
    jax.effects_barrier()
    return np.stack(states), np.array(times)


def run_theirs(torch, scheduler, steps: int, eta: float, x, monkeypatch, *, learned: bool):
    """The same of diffusers' own loop."""
    draws = (torch.from_numpy(np.array(jax.random.normal(key, SHAPE))).mT for key in jax.random.split(KEY, steps))
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(draws))
    scheduler.set_timesteps(steps)
    x, states = torch.from_numpy(np.array(x)).mT.contiguous(), []
    exploding = type(scheduler).__name__ == HEUN
    if exploding:
        x = x * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for i, t in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(torch, inputs, t.float())
        if learned:
            output = torch.cat([output, torch.sin(3 * output)], dim=1)
        x = scheduler.step(output, t, x, **({"eta": eta} if eta else {})).prev_sample
        # Heun's sigmas come twice, once for each call, but for the first and the last.
        scale = (scheduler.sigmas[i + 1] ** 2 + 1) ** 0.5 if exploding else 1.0
        states.append((x / scale).mT)
    return torch.stack(states), scheduler.timesteps.numpy()


@pytest.fixture(scope="module")
def diffusers(torch):
    return pytest.importorskip("diffusers", reason="pip install -e '.[parity]' for the reference to compare with")


def our_sigmas(scheduling: Scheduling, steps: int) -> np.ndarray:
    """What diffusers calls sigmas: levels of a flow, sigma / alpha of a discrete process; float32 [steps + 1]."""
    schedule = make_schedule(scheduling.diffusion)
    levels = Grid(steps=steps, **dataclasses.asdict(scheduling.grid)).levels(schedule)
    flow = scheduling.diffusion.kind == "flow"
    return np.asarray(levels if flow else schedule.sigma(levels) / schedule.alpha(levels), np.float32)


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_that_of_diffusers(case, diffusers, torch, parity, monkeypatch):
    name, options, steps, eta = CASES[case]
    scheduling = scheduler_config({"_class_name": name} | options)
    learned = options.get("variance_type") == "learned_range"
    x = jax.random.normal(jax.random.key(1), SHAPE)
    ours, our_times = run_ours(scheduling, steps, eta, x, learned=learned)
    scheduler = getattr(diffusers, name)(**options)
    theirs, their_times = run_theirs(torch, scheduler, steps, eta, x, monkeypatch, learned=learned)
    # Heun's times between whole ones: a float32 level near 1 says them to 6e-5.
    np.testing.assert_allclose(our_times, their_times, rtol=0, atol=0 if scheduling.grid.snap else 1e-4)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.numpy()
        sigmas = np.append(sigmas[:-1:2], sigmas[-1]) if name in (HEUN, FLOW_HEUN) else sigmas
        flow = scheduling.diffusion.kind == "flow"
        # Their float32 takes 0.9999 from 1, and keeps four digits.
        np.testing.assert_allclose(our_sigmas(scheduling, steps), sigmas, rtol=0 if flow else 1e-4)
    # Values of 3 have a last bit of 2.4e-7 in float32; what processors round otherwise adds up over many steps.
    parity(f"{case}, {steps} steps", ours, theirs, atol=1e-5 if steps <= 100 else 2e-5)


def test_another_grid_is_told_apart(diffusers, torch, parity, monkeypatch):
    name, options, steps, _ = CASES["UniPC, Wan, shift 5"]
    scheduling = scheduler_config({"_class_name": name} | options)
    scheduling = dataclasses.replace(scheduling, grid=WAN_OWN_GRID)
    x = jax.random.normal(jax.random.key(1), SHAPE)
    ours, _ = run_ours(scheduling, steps, 0, x, learned=False)
    theirs, _ = run_theirs(torch, getattr(diffusers, name)(**options), steps, 0, x, monkeypatch, learned=False)
    with pytest.raises(AssertionError, match="max abs error"):
        parity("another grid", ours, theirs)


# The sampler of Wan's own repository goes from 1 - 1/1000, in float32, down to 0.
WAN_OWN_GRID = GridOptions(high=float(np.float32(0.999)))


def test_wans_own_grid():
    for shift in (3.0, 5.0, 8.0):
        sigmas = np.linspace(np.float32(1 - 1 / 1000).item(), 0.0, 41)[:-1]
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        schedule = Flow(shift=shift, integer_timesteps=True)
        levels = Grid(steps=40, **dataclasses.asdict(WAN_OWN_GRID)).levels(schedule)
        np.testing.assert_array_equal(levels, np.append(sigmas, 0.0))
        np.testing.assert_array_equal(schedule.time(levels[:-1]), (sigmas * 1000).astype(np.int64))


@pytest.mark.parametrize(("name", "options"), [(UNIPC, WAN), (DPM, FLOW_DPM)])
def test_whole_times_are_exact_in_float32_for_every_shift_and_number_of_steps(name, options, diffusers):
    """A model of two experts switches at a whole time: one too low would take the wrong one."""
    told, wanted = [], []
    for shift in (1.0, 3.0, 5.0, 8.0, 12.0):
        scheduling = scheduler_config({"_class_name": name} | options | {"flow_shift": shift})
        schedule = make_schedule(scheduling.diffusion)
        scheduler = getattr(diffusers, name)(**options | {"flow_shift": shift})
        for steps in range(20, 51):
            grid = Grid(steps=steps, **dataclasses.asdict(scheduling.grid))
            told.append(discretize(schedule, "velocity", grid).t)
            scheduler.set_timesteps(steps)
            wanted.append(scheduler.timesteps.numpy())
    times = jax.jit(Flow(integer_timesteps=True).time)(jnp.asarray(np.concatenate(told), jnp.float32))
    np.testing.assert_array_equal(times, np.concatenate(wanted))


@pytest.mark.parametrize("case", CASES)
def test_written_files_say_the_same_to_us_and_to_diffusers(case, diffusers):
    name, options, steps, _ = CASES[case]
    scheduling = scheduler_config({"_class_name": name} | options)
    written = json.loads(json.dumps(scheduler_json(scheduling), allow_nan=False))
    assert scheduler_config(written) == scheduling
    assert config.from_json(Scheduling, config.to_json(scheduling)) == scheduling
    theirs, back = getattr(diffusers, name)(**options), getattr(diffusers, name).from_config(written)
    for scheduler in (theirs, back):
        scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(back.timesteps, theirs.timesteps)
    for table in ("sigmas", "alphas_cumprod"):
        if hasattr(theirs, table):
            np.testing.assert_allclose(getattr(back, table), getattr(theirs, table), rtol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_defaults_are_those_of_diffusers(name, diffusers):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if key != "self"}
    assert OPTIONS[name] == defaults


# What the class itself ignores: the offset but for leading grids, betas and spacing of a flow, and so on.
OTHER = {
    "num_train_timesteps": 500, "beta_start": 2e-4, "beta_end": 0.01, "beta_schedule": "squaredcos_cap_v2",
    "trained_betas": [0.1], "prediction_type": "v_prediction", "steps_offset": 3, "timestep_spacing": "trailing",
    "solver_order": 1, "solver_type": "heun", "final_sigmas_type": "sigma_min", "flow_shift": 2.0, "shift": 2.0,
    "disable_corrector": [0], "solver_p": "DDIMScheduler", "shift_terminal": 0.1, "algorithm_type": "sde-dpmsolver++",
    "lambda_min_clipped": -5.1, "clip_sample_range": 2.0, "variance_type": "learned_range",
    "dynamic_thresholding_ratio": 0.5, "sample_max_value": 2.0, "time_shift_type": "linear", "sigma_min": 0.1,
    "sigma_max": 0.9, "base_shift": 0.4, "max_shift": 2.0, "base_image_seq_len": 64, "max_image_seq_len": 128,
}  # fmt: skip
CONTEXT = {
    "steps_offset": {"timestep_spacing": "leading"}, "flow_shift": WAN_FLOW, "clip_sample_range": {"clip_sample": True},
    "lower_order_final": {"final_sigmas_type": "sigma_min"}, "euler_at_final": {"final_sigmas_type": "sigma_min"},
    "use_flow_sigmas": {"prediction_type": "sample"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, options in OPTIONS.items() for key in options])
def test_every_option_counts_or_is_refused(name, key):
    context = {k: v for k, v in CONTEXT.get(key, {}).items() if k in OPTIONS[name]}
    plain = {"_class_name": name} | OPTIONS[name] | context
    if key == "solver_type":
        plain[key] = "bh1" if name == UNIPC else "midpoint"
    changed = plain | {key: OTHER.get(key, not plain[key])}
    if key in IDLE:
        assert scheduler_config(changed) == scheduler_config(plain)
        return
    try:
        other = scheduler_config(changed)
    except WeightsError as refusal:
        other = str(refusal)
    assert key in other if isinstance(other, str) else other != scheduler_config(plain)


@pytest.mark.parametrize(
    ("json", "words"),
    [
        ({"_class_name": "LCMScheduler"}, "'LCMScheduler' is unknown"),
        ({}, "None is unknown"),
        ({"_class_name": FLOW, "sigma_data": 1.0}, "no option 'sigma_data'"),
        ({"_class_name": UNIPC} | WAN | {"disable_corrector": [3]}, "disable_corrector"),
        ({"_class_name": UNIPC} | WAN | {"prediction_type": "epsilon"}, "prediction_type"),
        ({"_class_name": UNIPC} | WAN | {"final_sigmas_type": "sigma_min"}, "last step does nothing"),
        ({"_class_name": UNIPC, "prediction_type": "flow_prediction"}, "needs use_flow_sigmas"),
        ({"_class_name": DPM, "solver_order": 3}, "order is 3"),
        ({"_class_name": "DDPMScheduler", "timestep_spacing": "trailing", "variance_type": "fixed_large"}, "last step"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type='learned'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(json, words):
    with pytest.raises(WeightsError, match=words):
        scheduler_config(json)


def test_what_diffusers_cannot_do_is_refused_by_name():
    own = Scheduling(diffusion=DiffusionConfig(), sampler="euler")
    with pytest.raises(WeightsError, match="cannot do grid"):
        scheduler_json(own)
    with pytest.raises(WeightsError, match="no scheduler in diffusers"):
        scheduler_json(Scheduling(diffusion=DiffusionConfig(), sampler="ddim"))


@pytest.mark.parametrize(
    "diffusion",
    [
        DiffusionConfig(shift=3.0),
        DiffusionConfig(shift=5.0, integer_timesteps=True),
        DiffusionConfig(kind="ddpm", prediction="noise", beta_schedule="cosine", learn_variance=True),
        DiffusionConfig(kind="ddpm", prediction="v", steps=400),
    ],
)
def test_a_model_of_ours_has_a_usual_scheduling_that_can_be_written(diffusion):
    scheduling = usual_scheduling(diffusion)
    assert scheduling.diffusion == diffusion
    back = scheduler_config(scheduler_json(scheduling))
    assert (back.sampler, back.options, back.grid) == (scheduling.sampler, scheduling.options, scheduling.grid)
