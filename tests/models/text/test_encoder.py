import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdit.errors import ConfigError
from vdit.models.text import Encoder, TextConfig, drop_text

CONFIG = TextConfig(vocab_size=50, width=32, depth=2, heads=4)
LENGTHS = (5, 3, 7)


def pack(captions, length):
    """A row [1 length] of ids, clips and positions; the rest is padding."""
    ids, clip, position = (np.zeros((1, length), np.int32) for _ in range(3))
    start = 0
    for i, caption in enumerate(captions, 1):
        end = start + len(caption)
        ids[0, start:end], clip[0, start:end], position[0, start:end] = caption, i, range(len(caption))
        start = end
    return ids, clip, position


@pytest.fixture(scope="module")
def captions():
    rng = np.random.default_rng(0)
    return [rng.integers(1, CONFIG.vocab_size, n) for n in LENGTHS]


@pytest.fixture(scope="module")
def params(captions):
    variables = Encoder(CONFIG).init(jax.random.key(0), *pack(captions, 20))
    return nn.meta.unbox(variables["params"])


@pytest.fixture(scope="module")
def encode():
    return jax.jit(lambda params, *text: Encoder(CONFIG).apply({"params": params}, *text))


def test_packed_equals_separate(captions, params, encode):
    packed = encode(params, *pack(captions, 20))
    assert packed.shape == (1, 20, CONFIG.width)
    start = 0
    for caption in captions:
        alone = encode(params, *pack([caption], 20))
        length = len(caption)
        np.testing.assert_allclose(packed[0, start : start + length], alone[0, :length], atol=1e-5)
        start += length


def test_packed_gradients_equal_separate_ones(captions, params):
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=(n, CONFIG.width)).astype(np.float32) for n in LENGTHS]

    def loss(params, text, weights):
        return jnp.sum(Encoder(CONFIG).apply({"params": params}, *text)[0] * weights)

    def padded(weights):
        return np.pad(np.concatenate(weights), ((0, 20 - sum(map(len, weights))), (0, 0)))

    gradient = jax.jit(jax.grad(loss))
    packed = gradient(params, pack(captions, 20), padded(weights))
    parts = [gradient(params, pack([c], 20), padded([w])) for c, w in zip(captions, weights)]
    separate = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    for a, b in zip(jax.tree.leaves(packed), jax.tree.leaves(separate), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_nothing_crosses_captions(captions, params):
    """The gradient of one caption's output by another's embedding rows is exactly zero."""
    # Captions with ids of their own, so that a row of the table belongs to one caption.
    own, start = [], 1
    for n in LENGTHS:
        own.append(np.arange(start, start + n))
        start += n
    text = pack(own, 20)

    def output(params, clip):
        out = Encoder(CONFIG).apply({"params": params}, *text)
        return jnp.sum(jnp.where(text[1][..., None] == clip, out, 0.0) * jnp.arange(1.0, 33.0))

    gradient = jax.jit(jax.grad(output))
    for clip, ids in enumerate(own, 1):
        rows = np.abs(gradient(params, clip)["embed"]["embedding"]).sum(-1)
        assert np.all(rows[ids] > 0)  # bidirectional: every token of the caption matters
        assert np.all(np.delete(rows, ids) == 0)


def test_order_matters_inside_a_caption(captions, params, encode):
    a = encode(params, *pack([captions[0]], 20))[0, :5]
    b = encode(params, *pack([captions[0][::-1]], 20))[0, :5]
    assert np.abs(a - b[::-1]).max() > 1e-2


def test_output_is_normalised_and_bfloat16_is_close(captions, params, encode):
    text = pack(captions, 20)
    full = encode(params, *text)
    np.testing.assert_allclose(np.mean(np.square(full), -1), 1.0, atol=1e-2)
    half_config = TextConfig(vocab_size=50, width=32, depth=2, heads=4, dtype="bfloat16")
    half = Encoder(half_config).apply({"params": params}, *text)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(jnp.float32) - full).mean() < 0.02


def test_drop_keeps_only_the_first_token_of_dropped_clips():
    clip = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 3, 3, 3, 0]])
    position = jnp.array([[0, 1, 2, 0, 1, 0, 0, 0], [0, 0, 1, 2, 0, 1, 2, 0]])
    drop = jnp.array([[True, False, True], [False, True, False]])
    want = [[1, 0, 0, 2, 2, 3, 0, 0], [1, 2, 0, 0, 3, 3, 3, 0]]
    assert drop_text(clip, position, drop).tolist() == want
    assert jnp.array_equal(drop_text(clip, position, jnp.zeros_like(drop)), clip)


def test_a_dropped_caption_encodes_as_the_empty_prompt(captions, params, encode):
    ids, clip, position = pack(captions, 20)
    dropped = encode(params, ids, drop_text(clip, position, jnp.array([[False, True, False]])), position)
    empty = encode(params, *pack([captions[1][:1]], 20))
    np.testing.assert_allclose(dropped[0, 5], empty[0, 0], atol=1e-5)
    kept = encode(params, ids, clip, position)
    np.testing.assert_allclose(dropped[0, :5], kept[0, :5], atol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ({"width": 30}, r"text\.width=30 must be a multiple of text\.heads=4"),
    ({"depth": -1}, r"text\.depth=-1 must not be negative"),
    ({"max_length": 0}, r"text\.max_length=0 must be at least 1"),
    ({"width": 33, "heads": 3}, r"text\.width=33 must be even"),
])
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig(**change)
