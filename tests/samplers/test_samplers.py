"""What every sampler promises apart from its order: one state, one compiled step, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.diffusion import DDPM, Flow
from vdit.errors import ConfigError
from vdit.samplers import SAMPLERS, Grid, StatefulDenoiser, make

KEY = jax.random.key(0)


def towards(value, calls=None):
    """A velocity network that believes all data equal `value`."""

    def denoise(x, t):
        if calls is not None:
            calls.append(x.shape)
        return (x - value) / t

    return denoise


def run(name, x, denoise, grid=8, schedule=None, project=None, **options):
    schedule = schedule or Flow()
    return make(name, **options).sample(
        denoise, x, schedule=schedule, prediction="velocity", grid=grid, key=KEY, project=project
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_certain_network_is_believed_exactly(name):
    x = jax.random.normal(KEY, (2, 3, 4))
    np.testing.assert_allclose(run(name, x, towards(0.3)), np.full(x.shape, 0.3), atol=2e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_traced_once_however_many_steps(name):
    traces = []
    for steps in (4, 50):
        calls = []
        jax.eval_shape(lambda x: run(name, x, towards(0.3, calls), steps), jnp.zeros((2, 4)))  # noqa: B023
        traces.append(len(calls))
    assert traces[0] == traces[1] <= 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_denoiser_remembers_is_carried_from_call_to_call(name):
    """The same numbers as without; each call gets what the one before gave, and is told which one it is."""
    steps, x = 5, jax.random.normal(KEY, (2, 3))
    calls = {"heun": 2 * steps - 1, "resample": 4 * steps}.get(name, steps)

    def ask(x, t, memory, done, left):
        count, trace = memory
        right = (done == count) & (left == calls - 1 - done)
        return jnp.where(right, towards(0.3)(x, t), jnp.nan), (count + 1, trace.at[count].set(t))

    remembering = StatefulDenoiser(ask=ask, memory=(jnp.int32(0), jnp.zeros(calls)))
    np.testing.assert_array_equal(run(name, x, remembering, steps), run(name, x, towards(0.3), steps))


@pytest.mark.parametrize("name", ["ddpm", "heun", "unipc"])
def test_memory_does_not_grow_with_steps(name):
    x = jnp.zeros((512, 1024))

    def temporaries(steps):
        compiled = jax.jit(lambda x: run(name, x, towards(0.3), steps)).lower(x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(64) - temporaries(8) < x.nbytes / 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_tokens_are_put_back_before_the_network_looks(name):
    known = jnp.arange(6) < 2
    clean = jnp.where(known, 5.0, 0.0)[None, :, None]
    x = jnp.where(known[None, :, None], clean, jax.random.normal(KEY, (1, 6, 1)))

    def denoise(x, t):
        untouched = (x[:, :2] == clean[:, :2]).all()
        return jnp.where(untouched, (x - 0.3) / t, jnp.nan)

    y = run(name, x, denoise, project=lambda x, t: jnp.where(known[None, :, None], clean, x))
    np.testing.assert_allclose(y[:, 2:], 0.3, atol=2e-6)
    np.testing.assert_array_equal(y[:, :2], clean[:, :2])


def test_project_is_told_the_level_just_reached():
    levels = np.array([0.9, 0.5, 0.2, 0.0])
    seen = run(
        "euler", jnp.zeros(1), lambda x, t: jnp.zeros_like(x), levels, project=lambda x, t: 10.0 * x + t
    )
    np.testing.assert_allclose(seen, 10 * (10 * 0.5 + 0.2), rtol=1e-6)


def test_the_network_sees_the_levels_of_the_grid():
    levels = np.array([0.9, 0.5, 0.2])
    ys = run("euler", jnp.zeros(1), lambda x, t: t * jnp.ones_like(x), levels)
    np.testing.assert_allclose(ys, -0.4 * 0.9 - 0.3 * 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_states_in_bfloat16_are_carried_in_float32(name):
    x = jax.random.normal(KEY, (4, 4), jnp.bfloat16)
    y = run(name, x, lambda x, t: ((x - 0.3) / t).astype(jnp.bfloat16))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, 0.3, atol=0.1)


@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "dpmpp2m", "unipc"])
def test_a_variance_that_is_not_asked_for_is_ignored(name):
    x = jax.random.normal(KEY, (4, 3))

    def with_variance(x, t):
        return jnp.concatenate([towards(0.3)(x, t), jnp.full_like(x, 99.0)], axis=-1)

    np.testing.assert_array_equal(run(name, x, with_variance), run(name, x, towards(0.3)))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun"])
def test_clipped_estimates_of_the_data_stay_in_their_range(name):
    x = jax.random.normal(KEY, (3, 4))
    np.testing.assert_allclose(run(name, x, towards(2.0), clip=1.5), 1.5, atol=2e-6)
    np.testing.assert_allclose(run(name, x, towards(0.3), clip=1.5), run(name, x, towards(0.3)), atol=2e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_compiled_program_holds_the_network_once(name):
    """Copies of it would cost their compile time again, and it is most of a sampler's."""
    text = jax.jit(lambda x: run(name, x, lambda x, t: jnp.cbrt(x) + t, 4)).lower(jnp.zeros((2, 4))).as_text()
    assert text.count("chlo.cbrt") + text.count("stablehlo.cbrt") == 1


def test_one_step_may_leave_the_state_as_it_is():
    """Diffusers' DDIM ends on the first level, where set_alpha_to_one is off, and may begin its last step there."""
    x = jax.random.normal(KEY, (3, 4))
    grid = Grid(steps=10, spacing="leading", last=0.001)
    whole = run("ddim", x, towards(0.3), grid, DDPM())
    levels = grid.levels(DDPM())
    assert levels[-1] == levels[-2]
    np.testing.assert_allclose(whole, run("ddim", x, towards(0.3), levels[:-1], DDPM()), atol=1e-6)


def test_euler_is_ddim_without_noise():
    def denoise(x, t):
        return jnp.sin(3 * x) + t

    x = jax.random.normal(KEY, (5,))
    for schedule in (Flow(shift=3.0), DDPM()):
        euler, ddim = (run(name, x, denoise, 10, schedule) for name in ("euler", "ddim"))
        np.testing.assert_allclose(euler, ddim, atol=1e-5)


def test_stochastic_samplers_repeat_with_the_key_and_differ_without():
    x = jnp.zeros((3, 3))
    network = lambda x, t: 0.5 * x  # noqa: E731
    draws = [
        make("ddpm").sample(
            network, x, schedule=DDPM(), prediction="noise", grid=4, key=jax.random.key(seed)
        )
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).min() > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make("unipcc"), "did you mean 'unipc'"),
        (lambda: make("heun", fram="straight"), "did you mean 'frame'"),
        (lambda: make("ddim", eta=2.0), "eta is 2.0"),
        (lambda: make("ddpm", variance="lots"), "'lots'"),
        (lambda: make("ddim", clip=0.0), "clip is 0.0"),
        (lambda: run("ddim", jnp.zeros(1), towards(0), even_stride=True), "even_stride"),
        (lambda: make("unipc", order=4), "order is 4"),
        (lambda: make("dpmpp2m", solver="bh2"), "'bh2'"),
        (lambda: Grid(steps=4, spacing="uniform", open_end=True), "open_end"),
        (lambda: Grid(steps=4, high=0.0), "high is 0.0"),
        (lambda: Grid(steps=4, last=1.0), "last is 1.0"),
        (lambda: run("euler", jnp.zeros(1), towards(0), np.array([0.5, 0.5])), "fall strictly"),
        (lambda: run("euler", jnp.zeros(1), towards(0), 2000, DDPM()), "has 1000"),
        (lambda: Grid(steps=4, spacing="quadratic"), "'quadratic'"),
        (lambda: Grid(steps=0), "steps is 0"),
        (lambda: Grid(steps=4, start=0.0), "start is 0.0"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_samplers_say_what_they_cannot_do():
    x = jnp.zeros((2, 2))
    flow = {"schedule": Flow(), "grid": 4}
    with pytest.raises(ConfigError, match="says nothing of the data"):
        make("euler").sample(towards(0), x, prediction="noise", **flow)
    with pytest.raises(ConfigError, match="give it key"):
        make("ddpm").sample(towards(0), x, prediction="velocity", **flow)
    with pytest.raises(ConfigError, match="exploding"):
        make("heun", frame="exploding").sample(towards(0), x, prediction="velocity", **flow)
    with pytest.raises(ConfigError, match="the network gives none"):
        make("ddpm", variance="learned").sample(towards(0), x, prediction="velocity", key=KEY, **flow)
