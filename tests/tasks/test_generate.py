"""Filling in a canvas: what is known stays, guidance 1 is no guidance, videos do not see each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit import samplers
from vdit.diffusion import Flow, Guidance
from vdit.dit.config import DiTConfig
from vdit.errors import ShapeError
from vdit.samplers.grid import Grid
from vdit.tasks.canvas import Canvas, Prompts, blank
from vdit.tasks.generate import Method, fill
from vdit.tasks.network import Network
from vdit.tasks.sample import TextToVideo, compiled
from vdit.text import TextConfig
from vdit.vae.config import preset

NETWORK = Network(
    text=TextConfig(vocab_size=16, max_length=6, width=16, depth=1, heads=2),
    dit=DiTConfig(in_channels=4, width=32, depth=1, heads=2),
)
SHAPE = (3, 4, 2, 4)


def method(**changes):
    base = Method(
        schedule=Flow(), prediction="velocity", sampler=samplers.make("euler"), grid=Grid(steps=3),
        guidance=Guidance(scale=3.0),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def prompts(*lengths):
    ids = np.random.default_rng(3).integers(1, 16, (len(lengths), 6))
    return Prompts(ids=jnp.asarray(ids), length=jnp.asarray(lengths))


@pytest.fixture(scope="module")
def params():
    import flax.linen as nn

    params = nn.meta.unbox(jax.jit(NETWORK.init)(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def run(params, canvas, words, method, key=0):
    negative = Prompts(ids=words.ids, length=jnp.ones_like(words.length))
    run = jax.jit(lambda *args: fill(NETWORK, *args, method))
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
