"""Filling in a canvas: what is known stays, guidance 1 is no guidance, videos do not see each other."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit import samplers
from vdit.data.patches import patchify
from vdit.diffusion import Flow, Guidance
from vdit.errors import ConfigError, ShapeError
from vdit.models.backbone import Output
from vdit.models.dit.config import DiTConfig
from vdit.models.network import Network
from vdit.models.text import TextConfig
from vdit.models.vae.config import preset
from vdit.samplers.grid import Grid
from vdit.sampling.canvas import Canvas, Prompts, blank
from vdit.sampling.config import SamplingConfig
from vdit.sampling.denoise import denoise
from vdit.sampling.programs import TextToVideo, compiled

NETWORK = Network(
    text=TextConfig(vocab_size=16, max_length=6, width=16, depth=1, heads=2),
    backbone=DiTConfig(in_channels=4, width=32, depth=1, heads=2),
)
SHAPE = (3, 4, 2, 4)


def method(**changes):
    base = SamplingConfig(
        schedule=Flow(), prediction="velocity", sampler=samplers.make("euler"), grid=Grid(steps=3),
        guidance=Guidance(scale=3.0),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def prompts(*lengths):
    ids = np.random.default_rng(3).integers(1, 16, (len(lengths), 6))
    return Prompts(ids=jnp.asarray(ids), length=jnp.asarray(lengths))


@pytest.fixture(scope="module")
def params():
    params = nn.meta.unbox(jax.jit(NETWORK.init)(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def run(params, canvas, words, method, key=0):
    negative = Prompts(ids=words.ids, length=jnp.ones_like(words.length))
    run = jax.jit(lambda *args: denoise(NETWORK, *args, method))
    return np.asarray(run(params, canvas, words, negative, jax.random.key(key)))


def test_known_frames_come_back_bit_for_bit_and_matter(params):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    known = np.array([[True, False, False], [False, False, True]])
    level = jnp.where(known, 0.0, 1.0)[..., None, None]
    words = prompts(3, 5)
    out = run(params, Canvas(latents=jnp.asarray(latents), level=level), words, method())
    np.testing.assert_array_equal(out[known], latents[known])
    assert np.all(np.isfinite(out))
    latents[known] += 1
    moved = run(params, Canvas(latents=jnp.asarray(latents), level=level), words, method())
    assert np.abs(moved - out)[~known].min(axis=(-1, -2, -3)).max() > 0, "known frames must guide the others"


def test_unknown_values_are_not_read(params):
    junk = Canvas(latents=jnp.full((1, *SHAPE), 50.0), level=jnp.ones((1, 3, 1, 1)))
    np.testing.assert_array_equal(
        run(params, junk, prompts(3), method()), run(params, blank(1, SHAPE), prompts(3), method())
    )


def test_guidance_one_is_the_conditional_model(params):
    """A doubled batch with scale 1 in effect gives what the single batch gives."""
    nothing = Guidance(scale=3.0, interval=(0.0, 0.0))
    a = run(params, blank(2, SHAPE), prompts(3, 4), method(guidance=nothing))
    b = run(params, blank(2, SHAPE), prompts(3, 4), method(guidance=Guidance(scale=1.0)))
    np.testing.assert_allclose(a, b, atol=1e-5)
    c = run(params, blank(2, SHAPE), prompts(3, 4), method())
    assert np.abs(a - c).max() > 1e-3


def test_words_past_the_prompt_are_not_read(params):
    words = prompts(3)
    other = Prompts(ids=words.ids.at[:, 3:].set(0), length=words.length)
    np.testing.assert_array_equal(
        run(params, blank(1, SHAPE), words, method()), run(params, blank(1, SHAPE), other, method())
    )
    assert np.abs(run(params, blank(1, SHAPE), prompts(2), method())
                  - run(params, blank(1, SHAPE), words, method())).max() > 1e-4  # fmt: skip


def test_sizes_that_cannot_be_made_are_named():
    vae = preset("tiny", latent_channels=4)
    make = lambda frames, size: TextToVideo(network=NETWORK, vae=vae, method=method(), frames=frames, size=size)  # noqa: E731
    with pytest.raises(ShapeError, match=r"frames=6 must be 1 \+ a multiple of 4.*use 5 or 9"):
        make(6, (64, 64))
    with pytest.raises(ShapeError, match=r"height=50 must be a multiple of 16.*use 48 or 64"):
        make(5, (50, 64))
    with pytest.raises(ShapeError, match=r"width=8 .*use 16 or 32"):
        make(5, (64, 8))
    task = make(5, (64, 64))
    assert compiled(task) is compiled(make(5, (64, 64)))
    assert compiled(task) is not compiled(make(9, (64, 64)))


def test_a_level_between_follows_the_canvas_down_to_it(params):
    """SDEdit: begun at the grid's start, the result nears the canvas as that falls, and is its own far from it."""
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32))
    far = []
    for start in (0.05, 0.5, 0.95):
        canvas = Canvas(latents=latents, level=jnp.full((1, 3, 1, 1), start))
        out = run(params, canvas, prompts(3), method(grid=Grid(steps=4, start=start)))
        far.append(np.abs(out - latents).mean())
    assert far[0] < 0.3 * far[1] < 0.3 * far[2]
    # Held to its own level within a longer way down, a canvas ends where one does that begins there.
    held = Canvas(latents=latents, level=jnp.full((1, 3, 1, 1), 0.5))
    begun = run(params, held, prompts(3), method(grid=Grid(steps=2, start=0.5)))
    np.testing.assert_allclose(run(params, held, prompts(3), method(grid=Grid(steps=4))), begun, atol=1e-5)


def test_masks_within_frames_are_kept_and_read(params):
    """Known latents within a frame come back, of tokens that are known in part too, and guide the rest."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    level = np.ones((1, *SHAPE[:3]), np.float32)
    level[:, :, :3] = 0  # of two rows of tokens, the second is known in part
    level[0, 1, 3, 0] = 0.5
    out = run(params, Canvas(latents=jnp.asarray(latents), level=jnp.asarray(level)), prompts(3), method())
    np.testing.assert_array_equal(out[:, :, :3], latents[:, :, :3])
    assert np.abs(out - latents)[:, :, 3:].min() > 0
    for rows in (slice(0, 2), slice(2, 3)):
        other = latents.copy()
        other[:, :, rows] += 1
        moved = run(params, Canvas(latents=jnp.asarray(other), level=jnp.asarray(level)), prompts(3), method())
        assert np.abs(moved - out)[:, :, 3:].max() > 1e-3
    whole = np.zeros_like(level)
    whole[:, 1:] = 1
    by_frame = Canvas(latents=jnp.asarray(latents), level=jnp.asarray(whole[:, :, :1, :1]))
    by_place = Canvas(latents=jnp.asarray(latents), level=jnp.asarray(whole))
    a, b = (run(params, canvas, prompts(3), method()) for canvas in (by_frame, by_place))
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_models_of_one_level_get_what_is_known_at_matching_noise():
    """Replacement: the network is told one level, and sees known tokens noised to it with the noise of the start."""
    seen = []

    class Spy(Network):
        def apply(self, params, row, time, text=None, **more):
            jax.debug.callback(lambda *x: seen.append(jax.tree.map(np.asarray, x)), row.values, time)
            return Output(prediction=jnp.zeros_like(row.values))

    network = Spy(text=NETWORK.text, backbone=NETWORK.backbone)
    params = {"text": jax.jit(NETWORK.init)(jax.random.key(0))["text"]}
    params = nn.meta.unbox(params)
    latents, noise = (jax.random.normal(jax.random.key(k), (1, *SHAPE)) for k in (1, 2))
    canvas = Canvas(latents=latents, level=jnp.asarray([0.0, 1.0, 1.0]).reshape(1, 3, 1, 1))
    one = method(guidance=Guidance(), conditioning="replacement", grid=Grid(steps=4))
    out = denoise(network, params, canvas, prompts(3), prompts(3), jax.random.key(0), one, noise=noise)
    np.testing.assert_array_equal(out[:, 0], latents[:, 0])
    x0, z = (np.asarray(patchify(x[:, :1], NETWORK.backbone.patch)) for x in (latents, noise))
    assert len(seen) == 4
    for values, time in seen:
        assert len(np.unique(time)) == 1
        t = time[0, 0] / 1000
        np.testing.assert_allclose(values[:, : x0.shape[1]], (1 - t) * x0 + t * z, atol=1e-5)


def test_guidance_on_the_context_adds_what_the_context_says(params):
    """At 1 it is none; beyond, it differs from the model without it only where something is known."""
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32))
    canvas = Canvas(latents=latents, level=jnp.asarray([0.0, 1.0, 1.0]).reshape(1, 3, 1, 1))
    for guidance in (Guidance(), Guidance(scale=3.0, interval=(0.2, 0.6))):
        plain = run(params, canvas, prompts(3), method(guidance=guidance))
        strong = run(params, canvas, prompts(3), method(guidance=guidance, context_guidance=2.0))
        almost = run(params, canvas, prompts(3), method(guidance=guidance, context_guidance=1.0 + 1e-6))
        np.testing.assert_allclose(almost, plain, atol=1e-4)
        assert np.abs(strong - plain)[:, 1:].max() > 1e-2
        np.testing.assert_array_equal(strong[:, 0], latents[:, 0])
    nothing = [run(params, blank(1, SHAPE), prompts(3), method(context_guidance=c)) for c in (1.0, 2.0)]
    np.testing.assert_allclose(*nothing, atol=1e-4)


def test_a_little_noise_on_what_is_known_is_not_in_the_result(params):
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32))
    canvas = Canvas(latents=latents, level=jnp.asarray([0.0, 1.0, 1.0]).reshape(1, 3, 1, 1))
    outs = [run(params, canvas, prompts(3), method(known_level=level)) for level in (0.0, 0.2)]
    np.testing.assert_array_equal(outs[1][:, 0], latents[:, 0])
    assert np.abs(outs[1] - outs[0])[:, 1:].max() > 1e-3


def test_a_window_begins_at_its_position(params):
    """Positions are told: with sin-cos or absolute ones a window that slid on is another; rotary ones are relative."""
    shifted = dataclasses.replace(blank(1, SHAPE), start_position=jnp.asarray([1]))
    np.testing.assert_allclose(
        run(params, shifted, prompts(3), method()), run(params, blank(1, SHAPE), prompts(3), method()), atol=1e-4
    )
    absolute = dataclasses.replace(NETWORK, backbone=dataclasses.replace(NETWORK.backbone, position="both"))
    words = prompts(3)
    a, b = (
        jax.jit(lambda canvas: denoise(absolute, params, canvas, words, words, jax.random.key(0), method()))(canvas)
        for canvas in (shifted, blank(1, SHAPE))
    )
    assert np.abs(a - b).max() > 1e-3


def test_what_a_method_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="conditioning='dirty': use 'clean' or 'replacement'"):
        method(conditioning="dirty")
    with pytest.raises(ConfigError, match=r"known_level=1.0: a noise level"):
        method(known_level=1.0)
    with pytest.raises(ConfigError, match="need a model that is told what is known"):
        method(conditioning="replacement", context_guidance=2.0)
